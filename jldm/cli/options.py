"""Options that several commands share: each is declared, and checked, in one place."""

import argparse
from collections.abc import Callable, Iterator, Sequence
import contextlib
import math
from pathlib import Path
import tempfile
from typing import Any, NamedTuple

from tqdm import tqdm

import jldm
from jldm.config import presets
from jldm.config.experiment import Sampling
from jldm.core.errors import UserError
from jldm.distributed import multihost
from jldm.inference.load import Origin
from jldm.interop import flat
from jldm.media.open import MAX_PIXELS
from jldm.metrics.extractors.weights import arrays_digest
from jldm.samplers.grid import GRIDS


def finite(text: str) -> float:
  """The `type=` of every option that is a number with a fraction; NaN and infinity are refused."""
  try:
    value = float(text)
  except ValueError:
    value = math.nan
  if not math.isfinite(value):
    raise argparse.ArgumentTypeError(f"{text}; expected a finite number")
  return value


SHARED: dict[str, dict[str, Any]] = {
  "--workdir": dict(required=True, help="a folder that jldm train made"),
  "--stage": dict(metavar="NAME", help="the stage that draws the samples (default: the last that can)"),
  "--best": dict(
    action="store_const", const=True, help="use the denoiser that scored best while training, not the newest"
  ),
  "--sampler": dict(
    help=f"one of {', '.join(sorted(presets.SAMPLERS))}, or one written out, such as "
    '"Churn(Heun(), gamma=0.1)" (default: the experiment\'s)'
  ),
  "--steps": dict(type=int, help="number of sampling steps (default: the experiment's)"),
  "--grid": dict(
    help=f"how the steps are spaced: {', '.join(GRIDS)}, or written out, such as "
    "\"Timesteps('linspace', dropped=1)\" (default: the experiment's)"
  ),
  "--eta": dict(type=finite, help="noise of ddim or dpmpp: 0 is deterministic, 1 ancestral or SDE"),
  "--guidance-scale": dict(type=finite, help="1 is no guidance (default: the experiment's)"),
  "--seed": dict(type=int, default=0, help="the same seed gives the same pictures (default: 0)"),
  "--batch-size": dict(
    type=int, default=250, help="pictures at a time: changes the memory used, not the pictures (default: 250)"
  ),
  "--max-pixels": dict(
    type=int,
    default=MAX_PIXELS,
    help=f"refuse larger pictures before they are decoded (default: {MAX_PIXELS})",
  ),
  "--devices": dict(type=int, help="number of devices (default: all)"),
  "--overwrite": dict(
    action="store_true",
    help="also replace what another command of jldm made; files of others are never replaced",
  ),
}

MOST_NAMES = 10  # of classes in an error
MOST_LABEL = 2**31 - 1  # labels are int32


def add_shared(parser: argparse.ArgumentParser, *names: str, **changes: Any) -> None:
  """Adds options of SHARED; `changes`, such as help=…, replace their keywords."""
  for name in names:
    parser.add_argument(name, **SHARED[name] | changes)


def check_at_least(minimum: int, **values: int) -> None:
  """Raises a UserError that names the first option whose value is below `minimum`."""
  for name, value in values.items():
    if value < minimum:
      raise UserError(f"--{name.replace('_', '-')} {value}; expected at least {minimum}")


def parse_label(option: str, text: str, names: Sequence[str]) -> int:
  """The label of a class by its name in `names`, or else by its number.

  Raises:
    UserError: neither a name nor a whole number.
  """
  if text in names:
    return names.index(text)
  try:
    label = int(text)
    if abs(label) > MOST_LABEL:
      raise ValueError
    return label
  except ValueError as error:
    few = f"{', '.join(names[:MOST_NAMES])}{', ...' if len(names) > MOST_NAMES else ''}"
    legal = f"one of the classes {few}, or a number" if names else "a class by its number"
    raise UserError(f"{option} {text}; expected {legal}, or -1: unconditional") from error


class Only(NamedTuple):
  """An option that some other choice must go with, and what it is where it is left out."""

  option: str  # by its name in the namespace
  holds: Callable[[argparse.Namespace], Any]  # whether the choice was made
  needs: str  # the choice in words, such as "--degradation blur"
  default: Any = None


def settle(args: argparse.Namespace, rules: tuple[Only, ...]) -> None:
  """Refuses options without the choice that they go with, and gives the others their defaults.

  Raises:
    UserError: an option that would reach nothing.
  """
  for option, holds, needs, _ in rules:
    value = getattr(args, option)
    if value not in (None, False) and not holds(args):
      raise UserError(f"{option_text(option, value)}: expected only with {needs}; leave it out")
  for option, holds, _, default in rules:
    if getattr(args, option) is None and holds(args):
      setattr(args, option, default)


def option_text(option: str, value: Any) -> str:
  """An option as it was typed: "--guidance-scale 2.0", or "--best"."""
  values = value if isinstance(value, (list, tuple)) else [value]
  return " ".join([f"--{option.replace('_', '-')}", *(str(each) for each in values if each is not True)])


def check_writable(out: Path, option: str = "--out") -> None:
  """Raises a UserError if `out` cannot be made; commands call it before any work."""
  existing = next(folder for folder in (out, *out.absolute().parents) if folder.exists())
  folder = existing.parent if existing.is_file() and out.suffix == ".npz" else existing
  try:
    with tempfile.TemporaryFile(dir=folder):
      pass
  except OSError as error:
    raise UserError(f"cannot write to {option} {str(out)!r}: {error.strerror}; choose another") from error


def model_provenance(workdir: Path, origin: Origin, params: Any, sampling: Sampling) -> dict[str, Any]:
  """What a picture says of the model that drew it and of how: the sampling resolved, and written out."""
  return {
    "version": jldm.__version__,
    "model": workdir.resolve().name,
    **origin._asdict(),
    "params_sha256": arrays_digest(flat.flatten(params)),
    "resolved": {
      "sampler": repr(sampling.sampler),
      "steps": sampling.steps,
      "grid": repr(sampling.grid),
      "guidance": repr(sampling.guidance),
      "transforms": repr(sampling.transforms),
    },
  }


@contextlib.contextmanager
def writing(out: Path, option: str = "--out", remedy: str = "make room or choose another") -> Iterator[None]:
  """Says in one line that a disk is full or cannot be written to; what is whole there stays.

  Raises:
    UserError: instead of an OSError of the block.
  """
  try:
    yield
  except OSError as error:
    raise UserError(
      f"cannot write to {option} {str(out)!r}: {error.strerror or error}; what is whole there stays, {remedy}"
    ) from error


def progress_bar(batches: Any) -> Any:
  """The batches of sampling with a progress bar, shown by the primary process."""
  return tqdm(batches, desc="sample", unit="batch", disable=not multihost.is_primary())
