"""Text towers that jldm wrote, read by transformers: the log is round_trip_text.txt.

python tests/parity/round_trip_text.py write FOLDER    where jldm is, with the repository on PYTHONPATH
python tests/parity/round_trip_text.py check FOLDER    where torch and transformers are: prints the log
"""

import json
from pathlib import Path
import sys

import numpy as np

HERE = Path(__file__).parent
CLASSES = {"clip_text_model": "CLIPTextModel", "t5": "T5EncoderModel"}


def networks(folder: Path) -> dict:
  """By name (network, parameters): those of clip.npz and t5.npz, and two that jldm initialised."""
  from jldm.interop import safetensors, towers
  from jldm.models.towers.clip import CLIPText
  from jldm.models.towers.t5 import T5Encoder
  from tests.networks import randomised
  from tests.parity.drawn import parameters

  found = {}
  for file, names in (("clip", ("quick", "exact", "projected")), ("t5", ("relu", "gated"))):
    told = json.loads(str(np.load(HERE / f"{file}.npz")["told"]))
    for name in names:
      source = folder / f"{name}_source"
      source.mkdir()
      safetensors.write(source / towers.WEIGHTS, parameters(told[name]["shapes"], told[name]["seed"]))
      (source / towers.CONFIG).write_text(json.dumps(told[name]["config"]))
      tower, params = towers.load_tower(source)
      found[f"imported_{name}"] = tower.network, params
  own = CLIPText(vocabulary=60, length=10, width=24, depth=2, heads=3, hidden=40, end_token=0)
  found["own_clip"] = own, randomised(towers.init_shapes(own), scale=0.1)
  own = T5Encoder(vocabulary=60, width=24, depth=2, heads=3, hidden=40)
  found["own_t5"] = own, randomised(towers.init_shapes(own), scale=0.1)
  return found


def write(folder: Path) -> None:
  """Folders for transformers, and beside each the tokens that jldm's network makes of random ids."""
  import jax

  from jldm.interop import towers

  folder.mkdir(parents=True)
  for name, (network, params) in networks(folder).items():
    ids = np.random.default_rng(0).integers(3, 55, (3, 8))
    with jax.default_matmul_precision("highest"):
      tokens = jax.jit(network.apply)({"params": params}, ids).tokens
    towers.save_tower(folder / f"{name}_transformers", network, params)
    np.savez(folder / f"{name}.npz", tokens=tokens, ids=ids)


def check(folder: Path) -> None:
  import torch
  import transformers

  transformers.logging.set_verbosity_error()
  print(f"transformers {transformers.__version__}, torch {torch.__version__}")
  for path in sorted(folder.glob("*_transformers")):
    name = path.name.removesuffix("_transformers")
    config, kept = json.loads((path / "config.json").read_text()), np.load(folder / f"{name}.npz")
    named = config.get("architectures") or [CLASSES[config["model_type"]]]
    kind = getattr(transformers, named[0])
    model, told = kind.from_pretrained(path, output_loading_info=True, dtype=torch.float32)
    with torch.no_grad():
      tokens = model.eval()(torch.from_numpy(kept["ids"])).last_hidden_state.numpy()
    far = np.abs(tokens - kept["tokens"]).max() / np.abs(kept["tokens"]).max()
    print(
      f"{name}: {kind.__name__}, {len(model.state_dict())} tensors, {len(told['missing_keys'])} missing, "
      f"{len(told['unexpected_keys'])} unexpected, {len(told['mismatched_keys'])} misshapen; "
      f"max|difference| / max|ours| {far:.1e}"
    )


if __name__ == "__main__":
  {"write": write, "check": check}[sys.argv[1]](Path(sys.argv[2]))
