"""torch-fidelity's InceptionV3 and ours.  Needs torch, torch-fidelity 0.4 and, to write, safetensors.

  python tests/parity/inception.py                    makes inception.npz: what the network makes of images
  python tests/parity/inception.py WEIGHTS.pth OUT    writes OUT.safetensors for `jldm convert --kind inception`

WEIGHTS.pth is the file that pytorch-fid and torch-fidelity download,
(pt_|weights-)inception-2015-12-05-6726825d.pth; any other is written too, but will not be called
official.  OUT says the sha256 of the file that it was made from, and a hash of its arrays, so that
`jldm convert` notices when they are no longer those.

The weights of the fixture are drawn again from a seed by `randomised`, the same here and in the
tests: they are large. numpy promises never to change what RandomState draws.
"""

import hashlib
import json
from pathlib import Path
import sys

import numpy as np

LAYERS = ("64", "192", "768", "2048", "logits_unbiased")
CASES = {"colour": (2, 40, 56, 3), "large": (1, 310, 299, 3)}
SMALL = {
  "Mixed_5b": 192,
  "Mixed_6a": 288,
  "Mixed_6b": 768,
  "Mixed_7a": 768,
  "Mixed_7b": 1280,
  "Mixed_7c": 2048,
}  # channels in
PLACES = (
  slice(None, None, 3),
  slice(None, None, 3),
  slice(None, None, 29),
)  # of a block's output [B, H, W, C] that are kept


def randomised(shapes: dict[str, list[int]], seed: int = 0) -> dict[str, np.ndarray]:
  """Weights by torch's names and shapes, in their order, so that features neither vanish nor grow;
  variances are positive.
  """
  rng, found = np.random.RandomState(seed), {}
  for name, shape in sorted(shapes.items()):
    noise = rng.standard_normal(shape)
    if name.endswith("conv.weight"):
      noise *= (2 / np.prod(shape[1:])) ** 0.5
    elif name.endswith(("running_var", "bn.weight")):
      noise = np.exp(0.3 * noise)
    else:
      noise *= 0.2
    found[name] = noise.astype(np.float32)
  return found


def pictures(shape: tuple[int, ...]) -> np.ndarray:
  """uint8, waves with noise."""
  rng = np.random.RandomState(1)
  y, x, c = np.mgrid[: shape[1], : shape[2], : shape[3]]
  waves = [np.sin(0.2 * (i + 1) * y + c) * np.cos(0.15 * x - i) for i in range(shape[0])]
  return np.rint(np.clip(127 + 90 * np.stack(waves) + 12 * rng.standard_normal(shape), 0, 255)).astype(
    np.uint8
  )


def small(channels: int) -> np.ndarray:
  """What a block is fed alone, [1, 7, 8, channels]."""
  return np.random.RandomState(2).standard_normal((1, 7, 8, channels)).astype(np.float32)


def digest(arrays: dict[str, np.ndarray]) -> str:
  """As jldm.metrics.extractors.weights has it."""
  found = hashlib.sha256()
  for name in sorted(arrays):
    found.update(f"{name} {list(arrays[name].shape)}\n".encode() + arrays[name].astype("<f4").tobytes())
  return found.hexdigest()


def network():
  import torch_fidelity.feature_extractor_inceptionv3 as theirs

  class Unloaded(theirs.FeatureExtractorInceptionV3):
    def load_state_dict(self, state, **kwargs):
      return super().load_state_dict(state, **kwargs) if state else None

  theirs.load_state_dict_from_url = lambda *args, **kwargs: {}
  return Unloaded("inception-v3-compat", list(LAYERS))


def main() -> None:
  import torch
  from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x

  extractor = network()
  shapes = {
    name: list(value.shape) for name, value in extractor.state_dict().items() if "num_batches" not in name
  }
  extractor.load_state_dict(
    {name: torch.from_numpy(value) for name, value in randomised(shapes).items()}, strict=False
  )
  arrays, seen = {"shapes": json.dumps(shapes)}, {}
  for name, channels in SMALL.items():
    with torch.no_grad():
      out = getattr(extractor, name)(torch.from_numpy(small(channels)).permute(0, 3, 1, 2))
    arrays[f"small_{name}"] = out.permute(0, 2, 3, 1).numpy()[..., ::7]
  for name, module in extractor.named_children():
    if name.startswith("Mixed"):
      module.register_forward_hook(lambda module, args, out, name=name: seen.update({name: out}))
  for case, shape in CASES.items():
    images = torch.from_numpy(pictures(shape)).permute(0, 3, 1, 2)
    resized = interpolate_bilinear_2d_like_tensorflow1x(images.float(), size=(299, 299), align_corners=False)
    arrays[f"{case}_resized"] = resized.permute(0, 2, 3, 1).numpy()[:, ::17, ::17]
    with torch.no_grad():
      found = dict(zip(LAYERS, extractor(images)))
    arrays |= {f"{case}_{layer}": value.numpy() for layer, value in found.items()}
    if case == "colour":
      arrays |= {
        f"{case}_{name}": value.permute(0, 2, 3, 1).numpy()[:, *PLACES] for name, value in seen.items()
      }
  np.savez_compressed(Path(__file__).with_suffix(".npz"), **arrays)


def write(weights: str, out: str) -> None:
  from safetensors.numpy import save_file
  import torch

  state = torch.load(weights, map_location="cpu", weights_only=True)
  arrays = {name: value.numpy() for name, value in state.items() if "num_batches" not in name}
  source = hashlib.sha256(Path(weights).read_bytes()).hexdigest()
  save_file(arrays, Path(out).with_suffix(".safetensors"), {"source": source, "digest": digest(arrays)})


if __name__ == "__main__":
  write(*sys.argv[1:]) if len(sys.argv) == 3 else main()
