"""Loads published denoisers from a folder or a file: the network, its parameters, and what they mean.

  network, params, process, parametrization, latent = read_dit("DiT-XL-2-256.safetensors", "dit")
  output = network.apply({"params": params}, z, noise_level, {"label": labels})

`noise_level` is parametrization.c_noise(process, t) at our time t, 0 for data and 1 for noise.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jldm.core.errors import UserError
from jldm.interop import dit, rename, safetensors
from jldm.interop.locate import CONFIG, parse_config, weights_file
from jldm.interop.scheduler import find_scheduler, read_scheduler

TRANSFORMER = "transformer"  # of a pipeline's folder


class Denoiser(NamedTuple):
  """A published denoiser.   latent: [h, w, C] of the size that it was trained on."""

  network: Any
  params: Any
  process: Any
  parametrization: Any
  latent: tuple[int, int, int]


def read_dit(
  source: str | Path,
  family: str,
  heads: int | None = None,
  as_diffusers: bool = False,
  allow_nan: bool = False,
) -> Denoiser:
  """A transformer of one of dit.FAMILIES, parameters in float32.

  source: a .safetensors file in its authors' names, or a folder of diffusers, a pipeline's too.
  heads: of a file whose width is not published.   as_diffusers: as in `dit.read_diffusers`.

  Raises:
    UserError: the source does not exist, is of another kind, or tensors do not fit.
  """
  path = Path(source)
  rules = dit.FAMILIES[family]
  process, parametrization = rules.process, rules.parametrization
  if path.is_dir():
    folder = path / TRANSFORMER if (path / TRANSFORMER / CONFIG).is_file() else path
    config = read_config(folder, dit.CLASS)
    if family != "dit":
      raise UserError(
        f"{str(path)!r} is a {dit.CLASS} of diffusers; expected --kind dit, or a file of a {family}"
      )
    if heads is not None:
      raise UserError(
        f"--heads {heads}: {str(folder / CONFIG)!r} says how many heads there are; leave it out"
      )
    found = dit.read_diffusers(config, safetensors.tensors(weights_file(folder)), as_diffusers)
    remedy = rename.OWN_CONFIG
    if scheduler := find_scheduler(folder):
      process, parametrization = read_scheduler(scheduler)
  else:
    if as_diffusers:
      raise UserError(
        f"--as-diffusers: {str(path)!r} is a file; expected a folder of diffusers, or leave it out"
      )
    found, remedy = dit.read(safetensors.tensors(path), family, heads), dit.REMEDY
  latent = (found.side, found.side, found.channels)
  like = shapes(found.network, latent, {"label": jax.ShapeDtypeStruct((1,), jnp.int32)})
  params = rename.import_tensors(
    found.table, like, found.tensors, found.others, allow_nan, repr(str(path)), remedy
  )
  return Denoiser(found.network, params, process, parametrization, latent)


def shapes(network: Any, latent: tuple[int, int, int], inputs: Mapping[str, Any]) -> Any:
  """The parameters of a network as shapes; nothing is allocated."""
  z = jax.ShapeDtypeStruct((1, *latent), jnp.float32)
  level = jax.ShapeDtypeStruct((1,), jnp.float32)
  key = jax.eval_shape(lambda: jax.random.key(0))
  return jax.eval_shape(network.init, key, z, level, inputs)["params"]


def read_config(folder: Path, kind: str) -> dict[str, Any]:
  """The config.json of a class of diffusers, without what is null.

  Raises:
    UserError: there is none, or it is of another class.
  """
  path = folder / CONFIG
  if not path.is_file():
    raise UserError(
      f"{str(folder)!r} has no {CONFIG}; expected a folder of diffusers' {kind}, or a pipeline's"
    )
  config = parse_config(path, "a denoiser's")
  name = config.get("_class_name") if isinstance(config, dict) else None
  if name != kind:
    raise UserError(f"{str(path)!r} is of {str(name)[:40]!r}; expected {kind}")
  return {name: value for name, value in config.items() if value is not None}
