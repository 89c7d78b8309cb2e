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
from jldm.diffusion.process import Discrete, ScaledLinearBetas
from jldm.diffusion.target import Predict
from jldm.interop import dit, rename, safetensors, unet
from jldm.interop.locate import CONFIG, parse_config, save_folder, weights_file
from jldm.interop.pretrained import Renamed
from jldm.interop.scheduler import find_scheduler, read_scheduler

TRANSFORMER, UNET = "transformer", "unet"  # of a pipeline's folder
SMALLEST = 128  # side of latents that every U-Net can divide, for its shapes
SINGLE = "give a whole model of Stable Diffusion 1, 2 or XL"


CLASSES = {unet.CLASS: lambda config: unet.network(config)[0], dit.CLASS: dit.network}  # of diffusers


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


def read_unet(
  source: str | Path,
  prediction_type: str | None = None,
  allow_nan: bool = False,
  dtype: str = "float32",
  place: rename.Place = rename.on_default_device,
) -> Denoiser:
  """A U-Net of Stable Diffusion.

  source: a folder of diffusers' UNet2DConditionModel or of a pipeline, or a single .safetensors file of
    CompVis or Stability.
  prediction_type: eps or v, of a source that does not state it: a folder without a scheduler beside it, and
    single files of Stable Diffusion 2.
  dtype, place: as in `towers.load_tower`.

  Raises:
    UserError: the source does not exist or is of another kind, tensors do not fit, or it is not known
      what is predicted.
  """
  rename.check_dtype(dtype)
  path = Path(source)
  if path.is_dir():
    folder = path / UNET if (path / UNET / CONFIG).is_file() else path
    network, shape = unet.network(read_config(folder, unet.CLASS))
    tensors, family, remedy = safetensors.tensors(weights_file(folder)), "diffusers", rename.OWN_CONFIG
    stated = find_scheduler(folder)
  else:
    whole = safetensors.tensors(path)
    prefix = unet.PREFIX if any(name.startswith(unet.PREFIX) for name in whole) else ""
    tensors = Renamed(whole, {name.removeprefix(prefix): name for name in whole if name.startswith(prefix)})
    network, shape = unet.compvis_network({name: whole.entry(prefix + name).shape for name in tensors})
    family, remedy, stated = "CompVis", SINGLE, None
    if not unet.is_linear(network) or shape.vector:
      prediction_type = prediction_type or "eps"
  process, parametrization = stated_process(path, stated, prediction_type)
  latent = (shape.side, shape.side, shape.out_channels)
  network = network.clone(dtype=dtype)
  like = shapes(network, (SMALLEST, SMALLEST, shape.out_channels), unet_inputs(network, shape))
  params = rename.import_tensors(
    unet.table(network, family, linear=True),
    rename.in_dtype(like, dtype),
    tensors,
    "",
    allow_nan,
    repr(str(path)),
    remedy,
    place,
  )
  return Denoiser(network, params, process, parametrization, latent)


def stated_process(path: Path, scheduler: Path | None, prediction_type: str | None) -> tuple[Any, Any]:
  """The process and the parametrization of a U-Net, by its scheduler or Stable Diffusion's.

  Raises:
    UserError: it is not known what is predicted, or it is stated and given otherwise.
  """
  if scheduler is None:
    if prediction_type is None:
      raise UserError(
        f"{str(path)!r} does not say what it predicts; give prediction_type: 'v' for Stable Diffusion 2 at "
        "768 pixels, 'eps' for its base version, 1 and XL"
      )
    return Discrete(ScaledLinearBetas()), Predict(prediction_type)
  process, parametrization = read_scheduler(scheduler)
  if prediction_type not in (None, parametrization.prediction_type):
    raise UserError(
      f"prediction_type={prediction_type!r}; expected {parametrization.prediction_type!r}, which "
      f"{str(scheduler)!r} says"
    )
  return process, parametrization


def unet_inputs(network: Any, shape: unet.Shape) -> dict[str, jax.ShapeDtypeStruct]:
  """The inputs of a U-Net on latents of side SMALLEST, as shapes."""
  of = lambda *sides: jax.ShapeDtypeStruct((1, *sides), jnp.float32)
  inputs = {"tokens": of(1, network.token_width)}
  if further := shape.in_channels - shape.out_channels:
    inputs["concat"] = of(SMALLEST, SMALLEST, further)
  return inputs | ({"vector": of(shape.vector)} if shape.vector else {})


def save_unet(
  folder: str | Path, network: Any, params: Any, side: int = 64, size_features: int = 256
) -> None:
  """Writes what diffusers' UNet2DConditionModel reads: config.json and its weights.

  side: of the latents that it is for.   size_features: as in `unet.config`.

  Raises:
    UserError: a network that diffusers does not have, or a folder that cannot be written.
  """
  folder = Path(folder)
  vector = params["vector"]["in"]["kernel"].shape[0] if network.vector_layers == 2 else 0
  channels = params["in"]["kernel"].shape[2], params["out"]["kernel"].shape[3]
  config = unet.config(network, unet.Shape(*channels, vector, side), size_features)
  tensors = rename.publish(unet.table(network), params)
  save_folder(folder, config, tensors)
