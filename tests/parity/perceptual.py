"""The `lpips` package and ours.  Needs torch, torchvision, lpips and safetensors, each as its makers ship it.

  python tests/parity/perceptual.py                          makes perceptual.npz: what the package measures
  python tests/parity/perceptual.py NETWORK BACKBONE OUT     writes OUT.safetensors for `jldm convert --kind lpips`

NETWORK is vgg or alex; BACKBONE the ImageNet weights that torchvision would download
(vgg16-397923af.pth, alexnet-owt-7be5be79.pth); the heads are the ones in the package (Copyright (c)
2018 Richard Zhang, Phillip Isola, Alexei A. Efros, Eli Shechtman, Oliver Wang; BSD-2-Clause).

The fixture has these heads and images; the backbone is drawn again from a seed by `randomised`, the
same here and in the tests, for it is large.  numpy promises never to change what RandomState draws.
"""

from pathlib import Path
import sys

import numpy as np

NETWORKS = ("vgg", "alex")
CASES = {"colour": (3, 48, 64, 3), "odd": (2, 67, 35, 3), "grey": (2, 64, 48, 1)}


def randomised(shapes: dict[str, tuple[int, ...]], seed: int = 0) -> dict[str, np.ndarray]:
  """Convolutions by torch's names and shapes, in their order: normal, so that features neither vanish nor
  grow.
  """
  rng = np.random.RandomState(seed)
  scale = lambda shape: (2 / np.prod(shape[1:])) ** 0.5 if len(shape) == 4 else 0.2
  return {
    name: (scale(shape) * rng.standard_normal(shape)).astype(np.float32) for name, shape in shapes.items()
  }


def pairs(rng: np.random.Generator, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
  """Images uint8 [B, H, W, C] and what they became: noisy, shifted, darker."""
  _, height, width, _ = shape
  y, x, _ = np.mgrid[:height, :width, :1]
  phase, speed = (
    rng.uniform(0, 6, (2, shape[0], 1, 1, shape[3])),
    rng.uniform(0.1, 0.5, (2, shape[0], 1, 1, 1)),
  )
  images = (
    127 + 100 * np.sin(speed[0] * y + phase[0]) * np.cos(speed[1] * x + phase[1]) + rng.normal(0, 5, shape)
  )
  others = np.stack([images[0] + rng.normal(0, 20, shape[1:]), np.roll(images[1], 3, 1), 0.6 * images[-1]])[
    : shape[0]
  ]
  return tuple(np.rint(np.clip(some, 0, 255)).astype(np.uint8) for some in (images, others))


def module(network: str):
  import lpips

  return lpips.LPIPS(net=network, pnet_rand=True, verbose=False)


def main() -> None:
  import torch

  rng = np.random.default_rng(0)
  arrays = {}
  for case, shape in CASES.items():
    arrays[f"{case}_a"], arrays[f"{case}_b"] = pairs(rng, shape)
  for network in NETWORKS:
    measure = module(network)
    state = measure.state_dict()
    shapes = {name: tuple(value.shape) for name, value in state.items() if name.startswith("net.")}
    state |= {name: torch.from_numpy(value) for name, value in randomised(shapes).items()}
    measure.load_state_dict(state)
    heads = [name for name in state if name.startswith("lin") and not name.startswith("lins")]
    arrays |= {f"{network}_{name}": state[name].numpy() for name in heads}
    for case in CASES:
      signed = [
        torch.from_numpy(arrays[f"{case}_{side}"].astype(np.float32) / 127.5 - 1).permute(0, 3, 1, 2)
        for side in "ab"
      ]
      with torch.no_grad():
        arrays[f"{network}_{case}"] = measure(*signed).numpy().reshape(-1)
  np.savez_compressed(Path(__file__).with_suffix(".npz"), **arrays)


def write(network: str, backbone: str, out: str) -> None:
  from safetensors.torch import save_file
  import torch

  measure = module(network)
  trained = torch.load(backbone, map_location="cpu", weights_only=True)
  state = {
    name: value
    for name, value in measure.state_dict().items()
    if not name.startswith(("lins.", "scaling_layer."))
  }
  for name in state:
    if name.startswith("net."):
      state[name] = trained["features." + name.split(".", 2)[2]]
  save_file(
    {name: value.contiguous() for name, value in state.items()}, Path(out).with_suffix(".safetensors")
  )


if __name__ == "__main__":
  write(*sys.argv[1:]) if len(sys.argv) == 4 else main()
