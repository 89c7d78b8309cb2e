"""An extractor computes features of pictures: a pure function with a name, a version, weights and
preprocessing.

  from jldm.metrics.extractors.extractor import Extracted, Extractor, register_extractor

  def apply(params, images):  # uint8 [B, H, W, C], traced
    return Extracted(images.astype("float32").mean((1, 2)))

  register_extractor(Extractor(name="colour", version="1", preprocessing="none", apply=apply))

Metrics of two extractors do not compare, nor those of one extractor with other weights or other
preprocessing: each set of features carries its `source`.
"""

from collections.abc import Callable, Mapping
import dataclasses
import difflib
from typing import Any, NamedTuple

import jax
import numpy as np

from jldm.core.errors import UserError
from jldm.metrics.extractors import weights

Array = jax.Array


class Extracted(NamedTuple):
  """Features float [B, D] and, of a classifier, logits float [B, K]."""

  features: Array
  logits: Array | None = None


def refuse_weights(arrays: Mapping[str, np.ndarray] | None) -> Any:
  """The empty parameters of an extractor without weights; UserError if arrays are given."""
  if arrays is not None:
    raise UserError("this extractor takes no weights; leave --weights out")
  return ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Extractor:
  """The functions of an extractor.

  apply: (params, images) -> Extracted, traced; images are the result of `prepare`.
  prepare: uint8 [B, H, W, C] -> images, on the host; UserError for pictures that do not fit.
  load: the arrays of a file of weights by name -> params; None -> the params that ship with jldm.
  blake2b: the hash of the weights that ship.   blind: what of pictures the features do not see.
  """

  name: str
  version: str
  preprocessing: str  # in words
  apply: Callable[[Any, Array], Extracted]
  prepare: Callable[[np.ndarray], np.ndarray] = np.asarray
  load: Callable[[Mapping[str, np.ndarray] | None], Any] = refuse_weights
  blake2b: str = ""
  blind: str = ""
  batch_size: int = 250


class LoadedExtractor(NamedTuple):
  """An extractor with its parameters.

  weights: the hash of the arrays that they come from.   distance: what its Fréchet distance may be called.
  """

  definition: Extractor
  params: Any
  weights: str
  distance: str = "Fréchet distance"  # "FID" for the official weights only

  @property
  def source(self) -> str:
    """What features depend on: features of two sources do not compare."""
    each = self.definition
    return f"{each.name} {each.version}, weights {self.weights or 'none'}, {each.preprocessing}"

  def width(self, shape: tuple[int, int, int]) -> int:
    """The number of features D of images [H, W, C]; UserError for images that do not fit."""
    image = self.definition.prepare(np.zeros((1, *shape), np.uint8))
    return jax.eval_shape(self.definition.apply, self.params, image).features.shape[-1]

  def record(self) -> dict[str, str]:
    """As JSON."""
    each = self.definition
    return {
      "name": each.name,
      "version": each.version,
      "weights": self.weights,
      "preprocessing": each.preprocessing,
    }


EXTRACTORS: dict[str, Extractor] = {}


def register_extractor(extractor: Extractor) -> Extractor:
  """Adds an extractor to EXTRACTORS; UserError if another one has its name."""
  if EXTRACTORS.setdefault(extractor.name, extractor) is not extractor:
    raise UserError(f"another extractor named {extractor.name!r} is registered; give it another name")
  return extractor


def find_extractor(name: str) -> Extractor:
  """The extractor of that name; UserError if there is none."""
  if name not in EXTRACTORS:
    near = difflib.get_close_matches(name, EXTRACTORS, 1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise UserError(
      f"extractor={name!r}; {hint}expected one of {', '.join(sorted(EXTRACTORS))}, or one that Python "
      f"code registers"
    )
  return EXTRACTORS[name]


def load_extractor(
  extractor: Extractor,
  arrays: Mapping[str, np.ndarray] | None = None,
  metadata: Mapping[str, str] | None = None,
) -> LoadedExtractor:
  """Loads the arrays of a file of weights with its metadata, or the weights that ship with jldm."""
  if arrays is None:
    return LoadedExtractor(extractor, extractor.load(None), extractor.blake2b)
  params, name = extractor.load(arrays), weights.official_name(metadata or {}, arrays)
  return LoadedExtractor(extractor, params, weights.arrays_digest(arrays), name or "Fréchet distance")
