"""What every edit walks with: a model, its parameters, and what a person chose of sampler, grid, guidance, labels and seed."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jldm.config import presets
from jldm.core.errors import UserError
from jldm.core.keys import row_keys
from jldm.core.trees import traced
from jldm.editing import invert as inversion
from jldm.editing.edict import EDICT
from jldm.inference import pipeline
from jldm.inference.pipeline import Model
from jldm.models.codecs import codec as codecs
from jldm.samplers.guidance import ClassifierFree
from jldm.samplers.sample import Denoise

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class How:
  """What all edits share; what is left out stands in `model.sampling`."""

  sampler: Any = None
  steps: int | None = None
  guidance_scale: float | None = None
  seed: int = 0
  grid: str | None = None  # of samplers.grid.GRIDS
  guidance: Any = None  # a rule of samplers.guidance in place of ClassifierFree(guidance_scale)


class Walk(NamedTuple):
  """What the samplers are told; all of it is traced."""

  params: dict
  sampler: Any
  pairs: Array  # [N, 2]
  labels: Array  # int [B]
  rule: Any  # of guidance
  concat: Array | None  # [B, h, w, Cc] the condition of a model that has one
  keys: Array  # [B]

  def denoise(self, model: Model) -> Denoise:
    return pipeline.steered(model, self.params, self.labels, self.rule, concat=self.concat)

  def told(self, model: Model, *x0: Array, pairs: Array | None = None) -> tuple:
    """(process, denoise, sampler, *x0, pairs, keys), as jldm.editing and jldm.samplers take them."""
    return model.process, self.denoise(model), self.sampler, *x0, self.pairs if pairs is None else pairs, self.keys

  def decoded(self, model: Model, z: Array) -> Array:
    """[B, h, w, c] -> [B, H, W, C] in [-1, 1]."""
    return codecs.decode(model.autoencoder, self.params["codec"], z, model.tiles)


def begin(
  model: Model, params: dict, how: How, label: Any, count: int, back: bool = False, beside: Array | None = None
) -> Walk:
  """The walk of `count` samples; `back` where the sampler must lead from data to noise too (by default EDICT).

  `beside` is what a model with a condition is told; by default, that nothing is known.

  Raises:
    UserError: an illegal label, steps < 1, a network that says nothing at one of the times, a sampler that draws noise
      where it must lead back, or a model that was always trained beside a condition.
  """
  sampling = model.sampling
  labels = pipeline.check_labels(np.asarray(label, np.int32).reshape(-1), model.classes)
  if len(labels) not in (1, count):
    raise UserError(f"{len(labels)} labels for {count} pictures; expected one, or one a picture")
  sampler = traced(how.sampler or (EDICT() if back else presets.make_sampler(sampling.sampler)))
  if isinstance(sampler, EDICT) and not back:
    raise UserError("EDICT walks a pair of states, for inversion; this edit begins with one: use another sampler")
  if back:
    inversion.refuse_noise(model.process, sampler)
  pairs = pipeline.times(model, sampling.steps if how.steps is None else how.steps, how.grid)
  rule = how.guidance or ClassifierFree(sampling.guidance_scale if how.guidance_scale is None else how.guidance_scale)
  keys = row_keys(jax.random.key(how.seed), jnp.arange(count, dtype=jnp.uint32))
  labels = jnp.asarray(np.broadcast_to(labels, count))
  return Walk(params, sampler, pairs, labels, traced(rule), nothing_known(model, count) if beside is None else beside, keys)


def nothing_known(model: Model, count: int) -> Array | None:
  """Zeros for a model with a condition: what it was told now and then in training."""
  if model.condition is None:
    return None
  if not model.condition.dropout:
    kind = type(model.condition).__name__
    raise UserError(f"this model was always trained beside a condition, {kind}; this edit needs a model that was not")
  return jnp.zeros((count, *pipeline.concat_shape(model)))
