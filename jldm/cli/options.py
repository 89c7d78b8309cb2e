"""Options that several commands share: each is declared, and checked, in one place."""

import argparse
from collections.abc import Sequence
from pathlib import Path
import tempfile
from typing import Any

from tqdm import tqdm

from jldm.config import presets
from jldm.core.errors import UserError
from jldm.distributed import multihost
from jldm.media.open import MAX_PIXELS
from jldm.samplers.grid import GRIDS

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
  "--grid": dict(help=f"how the steps are spaced: {', '.join(GRIDS)} (default: the experiment's)"),
  "--eta": dict(type=float, help="noise of ddim or dpmpp: 0 is deterministic, 1 ancestral or SDE"),
  "--guidance-scale": dict(type=float, help="1 is no guidance (default: the experiment's)"),
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


def check_writable(out: Path) -> None:
  """Raises a UserError if `out` cannot be made; commands call it before any work."""
  existing = next(folder for folder in (out, *out.absolute().parents) if folder.exists())
  folder = existing.parent if existing.is_file() and out.suffix == ".npz" else existing
  try:
    with tempfile.TemporaryFile(dir=folder):
      pass
  except OSError as error:
    raise UserError(f"cannot write to --out {str(out)!r}: {error.strerror}; choose another") from error


def progress_bar(batches: Any) -> Any:
  """The batches of sampling with a progress bar, shown by the primary process."""
  return tqdm(batches, desc="sample", unit="batch", disable=not multihost.is_primary())
