"""U-Nets that jldm wrote, read by diffusers: the log is round_trip_unet.txt.

python tests/parity/round_trip_unet.py write FOLDER    where jldm is, with the repository on PYTHONPATH
python tests/parity/round_trip_unet.py check FOLDER    where torch and diffusers are: prints the log
"""

import json
from pathlib import Path
import sys

import numpy as np

HERE = Path(__file__).parent
SIZE_FEATURES = 8


def networks(folder: Path) -> dict:
  """By name (network, parameters): those of tests/parity/unet.npz, and one that jldm initialised."""
  import jax

  from jldm.interop import denoisers, locate, safetensors
  from jldm.models.denoisers.unet import UNet
  from tests.networks import randomised
  from tests.parity.drawn import parameters

  found = {}
  told = json.loads(str(np.load(HERE / "unet.npz")["told"]))
  for name in ("sd1", "inpaint", "sd2", "xl"):
    source = folder / f"{name}_source"
    source.mkdir()
    safetensors.write(source / locate.WEIGHTS, parameters(told[name]["shapes"], told[name]["seed"]))
    (source / locate.CONFIG).write_text(json.dumps(told[name]["config"]))
    read = denoisers.read_unet(source, "eps")
    found[f"imported_{name}"] = read.network, read.params
  own = UNet(widths=(8, 16, 24), resnets=2, attention=(False, True, True), heads=2, token_width=12, groups=4)
  inputs = {"tokens": jax.ShapeDtypeStruct((1, 1, 12), np.float32)}
  found["own"] = own, randomised(denoisers.shapes(own, (8, 8, 3), inputs), scale=0.1)
  return found


def write(folder: Path) -> None:
  """Folders for diffusers, and beside each what jldm's network makes of random inputs."""
  import jax

  from jldm.interop import denoisers

  folder.mkdir(parents=True)
  for name, (network, params) in networks(folder).items():
    rng = np.random.RandomState(0)
    draw = lambda *shape, rng=rng: rng.standard_normal(shape).astype(np.float32)
    channels, out = params["in"]["kernel"].shape[2], params["out"]["kernel"].shape[3]
    given = {
      "z": draw(2, 8, 12, channels),
      "level": np.float32([0.1, 0.9]),
      "tokens": draw(2, 5, network.token_width),
    }
    inputs = {"tokens": given["tokens"]}
    if channels > out:
      inputs["concat"] = given["z"][..., out:]
    if network.vector_layers == 2:
      from jldm.nn.embedding import sinusoids

      given |= {"text": draw(2, 16), "sizes": np.float32(rng.randint(0, 1024, (2, 6)))}
      waves = np.asarray(sinusoids(given["sizes"], SIZE_FEATURES)).reshape(2, -1)
      inputs["vector"] = np.concatenate([given["text"], waves], -1)
    with jax.default_matmul_precision("highest"):
      value = jax.jit(network.apply)({"params": params}, given["z"][..., :out], given["level"], inputs).value
    denoisers.save_unet(folder / f"{name}_diffusers", network, params, 8, SIZE_FEATURES)
    np.savez(folder / f"{name}.npz", value=value, **given)


def check(folder: Path) -> None:
  import diffusers
  import torch

  print(f"diffusers {diffusers.__version__}, torch {torch.__version__}")
  for path in sorted(folder.glob("*_diffusers")):
    name = path.name.removesuffix("_diffusers")
    kept = np.load(folder / f"{name}.npz")
    kind = getattr(diffusers, json.loads((path / "config.json").read_text())["_class_name"])
    model, told = kind.from_pretrained(path, output_loading_info=True, low_cpu_mem_usage=False)
    given = {key: torch.from_numpy(kept[key]) for key in kept}
    added = {"text_embeds": given["text"], "time_ids": given["sizes"]} if "text" in given else None
    with torch.no_grad():
      z = given["z"].permute(0, 3, 1, 2)
      value = model(z, given["level"] * 1000, given["tokens"], added_cond_kwargs=added).sample
    far = np.abs(value.permute(0, 2, 3, 1).numpy() - kept["value"]).max() / np.abs(kept["value"]).max()
    print(
      f"{name}: {kind.__name__}, {len(model.state_dict())} tensors, {len(told['missing_keys'])} missing, "
      f"{len(told['unexpected_keys'])} unexpected, {len(told['mismatched_keys'])} misshapen; "
      f"max|difference| / max|ours| {far:.1e}"
    )


if __name__ == "__main__":
  {"write": write, "check": check}[sys.argv[1]](Path(sys.argv[2]))
