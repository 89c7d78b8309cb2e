"""Random arrays, the same in a fixture script and in the test of what it wrote: numpy never changes
what RandomState draws.
"""

from pathlib import Path

import numpy as np

SD = Path(__file__).parent / "vae_sd"  # what diffusers saved


def parameters(shapes: dict[str, tuple[int, ...]], seed: int) -> dict[str, np.ndarray]:
  """float32 by name, none of them zero or one: kernels keep the variance, norms scale by about 1,
  biases are small.
  """
  rng = np.random.RandomState(seed)
  return {name: parameter(name, tuple(shapes[name]), rng) for name in sorted(shapes)}


def parameter(name: str, shape: tuple[int, ...], rng: np.random.RandomState) -> np.ndarray:
  value = rng.standard_normal(shape)
  if len(shape) > 1:
    value = value if "embedding" in name and "linear" not in name else value / np.sqrt(np.prod(shape[1:]))
  else:
    value = 0.1 * value + ("norm" in name and name.endswith("weight"))
  return value.astype(np.float32)


def places(side: int, width: int) -> np.ndarray:
  """DiT's table of fixed places [1, side^2, width]: sines and cosines of the column, then those of the row."""
  rate = 10_000 ** (-np.arange(width // 4) / (width / 4))
  row, column = np.mgrid[:side, :side].reshape(2, -1, 1)
  waves = [function(place * rate) for place in (column, row) for function in (np.sin, np.cos)]
  return np.concatenate(waves, -1)[None].astype(np.float32)


def inputs(factor: int, channels: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
  """Images [1, H, W, 3] in [-1, 1] and latents [1, h, w, channels] of two sizes, one of them not square."""
  rng, short = np.random.RandomState(1), factor > 8
  sizes = {"square": (2, 2) if short else (4, 4), "wide": (1, 3) if short else (2, 5)}
  return {
    name: (
      rng.uniform(-1, 1, (1, h * factor, w * factor, 3)).astype(np.float32),
      rng.standard_normal((1, h, w, channels)).astype(np.float32),
    )
    for name, (h, w) in sizes.items()
  }


def old_flax(arrays: dict[str, np.ndarray]) -> dict:
  """AutoencoderKL's parameters as FlaxAutoencoderKL had them: its modules by name, attention as dense
  layers, norms' scale.
  """
  theirs = {}
  for name, value in arrays.items():
    for new, old in (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")):
      name = name.replace(new, old)
    *modules, leaf = name.split(".")
    path = []
    for module in modules:  # a list's entry carries the list's name
      path = [*path[:-1], f"{path[-1]}_{module}"] if module.isdigit() else [*path, module]
    if leaf == "weight":
      leaf = "scale" if "norm" in path[-1] else "kernel"
      value = {4: lambda v: v.transpose(2, 3, 1, 0), 2: np.transpose, 1: np.array}[value.ndim](value)
    node = theirs
    for module in path:
      node = node.setdefault(module, {})
    node[leaf] = value
  return theirs
