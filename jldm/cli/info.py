"""`jldm info SOURCE`: lists the arrays of a file, a folder of diffusers or a workdir, or how a PNG was made.

One line per array: name, dtype, shape.  With --statistics also the minimum, maximum, mean and
standard deviation of its finite values, and the number of others.  Arrays are read one at a time,
and only for --statistics.
"""

import argparse
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from jldm.config.experiment import Stage
from jldm.config.registry import field_names
from jldm.core.errors import UserError, printable
from jldm.inference.load import find_stage, restore_result
from jldm.interop import flat, msgpack, pretrained, safetensors
from jldm.media.images import read_provenance
from jldm.storage import workdir as workdirs
from jldm.storage.checkpoint import Checkpoints


def add_arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument(
    "source",
    metavar="SOURCE",
    help="a workdir, a folder of diffusers, a file, a PNG that jldm wrote, or a name of the hub",
  )
  parser.add_argument(
    "--statistics", action="store_true", help="also read the arrays and print statistics of their values"
  )


def main(args: argparse.Namespace) -> None:
  path = Path(args.source)
  describe = describe_workdir if (path / "experiment.json").is_file() else describe_published
  for line in describe(path, args.statistics):
    print(line)


def describe_published(path: Path, statistics: bool) -> Iterator[str]:
  """The lines of a folder of diffusers, or a file."""
  path = pretrained.find_source(str(path))
  file = pretrained.weights_file(path) if path.is_dir() else path
  if path.is_dir():
    config = pretrained.read_config(path / pretrained.CONFIG)
    network = pretrained.CLASSES[config["_class_name"]].network(config)
    mean, std = pretrained.read_statistics(config, network.latent_channels)
    yield f"{path}: {config['_class_name']} of diffusers"
    yield from describe_latent_network(network, mean, std)
  else:
    yield f"{path}: a file of arrays"
    if file.suffix == ".safetensors":
      for name, value in safetensors.read_header(file).metadata.items():
        yield f"  {safetensors.shown(name)}: {safetensors.shown(value[:100])}"
  if file.suffix == ".msgpack":
    yield from array_lines(msgpack.tensors(file), statistics)
    return
  arrays = safetensors.tensors(file)
  legible = {name: name for name in arrays if arrays.entry(name).dtype in safetensors.DTYPES}
  for name in sorted(arrays.keys() - legible.keys()):
    entry = arrays.entry(name)
    yield f"  {name}  {entry.dtype} {list(entry.shape)}, a dtype that is not read here"
  yield from array_lines(pretrained.Renamed(arrays, legible), statistics)


def describe_workdir(path: Path, statistics: bool) -> Iterator[str]:
  """The lines of a workdir: its stages, finished codecs and averaged denoisers."""
  experiment = workdirs.read_experiment(path)
  yield f"{path}: a workdir"
  steps = {}
  for stage in experiment.stages:
    with Checkpoints(workdirs.checkpoints_folder(path, stage.name), read_only=True) as saved:
      steps[stage.name] = saved.latest()
    at = "not begun" if steps[stage.name] is None else f"at step {steps[stage.name]} of {stage.steps}"
    yield f"{stage.name}: {type(stage.objective).__name__}, {at}"
  for stage in experiment.stages:
    if steps[stage.name] is not None and (stage.makes != "codec" or steps[stage.name] == stage.steps):
      yield from describe_result(path, stage, statistics)


def describe_result(path: Path, stage: Stage, statistics: bool) -> Iterator[str]:
  """The lines of a stage's result, after those of a codec in its needs."""
  at = find_stage(path, stage.name)
  for codec in at.given().values():
    yield from describe_latent_network(codec)
  params = restore_result(at)[1].params
  scale = (params["mean"], params["std"]) if stage.makes == "codec" else ()
  yield from describe_latent_network(stage.objective.network, *scale)
  yield from array_lines(flat.flatten(params), statistics)


def describe_latent_network(network: Any, mean: Any = None, std: Any = None) -> Iterator[str]:
  """The lines of a network, and of the mean and std of its latents."""
  shown = ", ".join(f"{name}={getattr(network, name)!r}" for name in field_names(network))
  yield f"{type(network).__name__}({shown})"
  for name, values in (("mean", mean), ("std", std)):
    if values is not None:
      values = np.unique(np.asarray(values)) if np.ptp(values) == 0 else np.asarray(values)
      yield f"  {name} of latents: {' '.join(f'{value:.6g}' for value in values)}"


def array_lines(arrays: Mapping[str, Any], statistics: bool) -> Iterator[str]:
  """A line per array, and one for the total."""
  width = max((len(name) for name in arrays), default=0)
  count, size, dtypes, bad = 0, 0, {}, 0
  for name in arrays:
    value = arrays[name]
    line = f"  {name:{width}}  {value.dtype.name:8} {list(value.shape)}"
    if statistics and jnp.issubdtype(value.dtype, jnp.floating) and value.size:
      text, odd = array_statistics(value)
      line, bad = f"{line:{width + 32}} {text}", bad + odd
    count, size = count + value.size, size + value.nbytes
    dtypes[value.dtype.name] = dtypes.get(value.dtype.name, 0) + 1
    yield line
  kinds = ", ".join(f"{number} {name}" for name, number in sorted(dtypes.items()))
  yield f"{len(arrays)} arrays ({kinds}), {count / 1e6:.3f} M values, {size / 1e6:.1f} MB" + (
    f", {bad} values not finite" if statistics else ""
  )


def array_statistics(value: Any) -> tuple[str, int]:
  """Statistics of an array's finite values as text, and how many values are not finite."""
  value = np.asarray(value, np.float32)
  good = value[np.isfinite(value)]
  odd = value.size - good.size
  least, most = (good.min(), good.max()) if good.size else (np.nan, np.nan)
  mean, std = (good.mean(dtype=np.float64), good.std(dtype=np.float64)) if good.size else (np.nan, np.nan)
  return f"{least:10.4g} to {most:10.4g}, mean {mean:10.4g}, std {std:10.4g}" + (
    f", {odd} not finite" if odd else ""
  ), odd
