"""Optimizers and learning-rate schedules as data: small dataclasses whose `build` gives optax objects."""

from collections.abc import Callable
import dataclasses
import operator
import re
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import optax

from jldm.core.errors import UserError
from jldm.core.trees import leaf_names, map_named


@dataclasses.dataclass(frozen=True, kw_only=True)
class Constant:
  """A linear warm-up to `peak`, which then holds."""

  peak: float = 1e-4
  warmup_steps: int = 0

  def build(self, steps: int) -> optax.Schedule:
    del steps
    return optax.linear_schedule(
      0.0 if self.warmup_steps else self.peak, self.peak, max(self.warmup_steps, 1)
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class WarmupCosine:
  """A linear warm-up to `peak`, then half a cosine down to `end` at the last step."""

  peak: float = 1e-3
  end: float = 0.0
  warmup_steps: int = 100

  def build(self, steps: int) -> optax.Schedule:
    warmup = min(self.warmup_steps, max(steps - 1, 0))
    return optax.warmup_cosine_decay_schedule(
      0.0 if warmup else self.peak, self.peak, warmup, max(steps, 1), self.end
    )


def clip_by_global_norm(max_norm: float) -> optax.GradientTransformation:
  """optax's, as one product: its choice for every value takes longer than all of AdamW on a CPU.

  Pascanu et al. 2013 (1211.5063), algorithm 1.
  """

  def clip(updates: Any, params: Any) -> Any:
    del params
    factor = max_norm / jnp.maximum(optax.global_norm(updates), max_norm)
    return jax.tree.map(lambda u: u * factor.astype(u.dtype), updates)

  return optax.stateless(clip)


def match_paths(regex: str, params: Any, ranks: tuple[int, ...] | None = None) -> Any:
  """Whether each parameter's path, such as "blocks/mlp/in/kernel", matches `regex` and its rank is legal."""

  def one(path: str, leaf: Any) -> bool:
    return re.search(regex, path) is not None and (ranks is None or leaf.ndim in ranks)

  return map_named(one, params)


def no_match_error(name: str, regex: str, what: str, params: Any) -> UserError:
  """The error for a regex that matches nothing, with some paths as examples."""
  paths = leaf_names(params)
  some = ", ".join(paths[:: max(len(paths) // 4, 1)][:4])
  return UserError(f"{name}={regex!r} matches no {what}; expected a regex for paths such as {some}")


def partition_by(choose: Callable, **parts: optax.GradientTransformation) -> optax.GradientTransformation:
  """The second of two named `parts` for parameters with choose(params) True, the first for the others."""
  other, chosen = parts
  return optax.partition(
    parts, lambda params: jax.tree.map(lambda yes: chosen if yes else other, choose(params))
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Optimizer:
  """update = -rate (direction + weight_decay params), of clipped gradients.

  Gradients are clipped to the norm `clip_norm`; 0 switches that off.

  `no_decay` and `frozen` are regexes that are searched for in paths such as "blocks/mlp/in/kernel".
  Parameters that match `no_decay` do not decay.  Those that match `frozen` are not trained, have no
  state and do not count in the norm.  An empty regex matches none.

  Raises:
    UserError: a regex is invalid; in `init` of the built transformation, one matches no parameter, or
      `frozen` matches all.
  """

  schedule: Any = WarmupCosine()
  weight_decay: float = 0.0
  clip_norm: float = 1.0
  no_decay: str = ""
  frozen: str = ""

  regexes: ClassVar[tuple[str, ...]] = ("no_decay", "frozen")  # the fields that are one

  def __post_init__(self):
    for name in self.regexes:
      try:
        re.compile(getattr(self, name))
      except (re.error, TypeError) as error:
        raise UserError(
          f"{name}={getattr(self, name)!r} is no regex: {error}; expected one such as 'bias$'"
        ) from error

  def direction(self) -> optax.GradientTransformation:
    """Maps clipped gradients to what the rate multiplies."""
    raise NotImplementedError

  def check_regexes(self, params: Any) -> None:
    """Raises a UserError if the regexes do not fit `params`, arrays or shapes."""
    for name in self.regexes:
      regex = getattr(self, name)
      if regex and not any(jax.tree.leaves(match_paths(regex, params))):
        raise no_match_error(name, regex, "parameter's path", params)
    if self.frozen and all(jax.tree.leaves(match_paths(self.frozen, params))):
      raise UserError(
        f"frozen={self.frozen!r} matches all parameters' paths; expected one that leaves some to train"
      )

  def learning_rate(self, steps: int) -> optax.Schedule:
    """The rate of each update of a run of `steps`, by the number of updates before it."""
    return self.schedule.build(steps)

  def build(self, steps: int) -> optax.GradientTransformation:
    """The transformation for a run of `steps` updates."""
    decays = (
      (lambda params: jax.tree.map(operator.not_, match_paths(self.no_decay, params)))
      if self.no_decay
      else None
    )
    rate = optax.scale_by_learning_rate(self.schedule.build(steps))
    tx = optax.chain(self.direction(), optax.add_decayed_weights(self.weight_decay, decays), rate)
    tx = optax.chain(clip_by_global_norm(self.clip_norm), tx) if self.clip_norm else tx
    if self.frozen:
      tx = partition_by(
        lambda params: match_paths(self.frozen, params), trained=tx, frozen=optax.set_to_zero()
      )

    def init(params):
      self.check_regexes(params)
      return tx.init(params)

    return optax.GradientTransformationExtraArgs(init, tx.update)


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdamW(Optimizer):
  """Loshchilov & Hutter 2019 (1711.05101)."""

  b1: float = 0.9
  b2: float = 0.999

  def direction(self) -> optax.GradientTransformation:
    return optax.scale_by_adam(self.b1, self.b2)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Adafactor(Optimizer):
  """Shazeer & Stern 2018 (1804.04235), algorithms 4 and 5: second moments of matrices are factored.

  They are factored if two axes have at least `min_dim_size_to_factor` entries.  The average of step t
  keeps the share 1 - t^-decay_rate.  `momentum` (0: none) costs a tree.
  `multiply_by_parameter_scale` multiplies rates by the rms of a parameter, which keeps zero gates at
  zero for long.  Decay is multiplied by the rate, as in AdamW; in optax.adafactor it is not.
  """

  decay_rate: float = 0.8
  momentum: float = 0.0
  min_dim_size_to_factor: int = 128
  multiply_by_parameter_scale: bool = False

  def direction(self) -> optax.GradientTransformation:
    parts = [
      optax.scale_by_factored_rms(
        decay_rate=self.decay_rate, min_dim_size_to_factor=self.min_dim_size_to_factor
      ),
      optax.clip_by_block_rms(1.0),
    ]
    parts += [optax.scale_by_param_block_rms()] if self.multiply_by_parameter_scale else []
    parts += [optax.ema(self.momentum, debias=False)] if self.momentum else []
    return optax.chain(*parts)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Muon(Optimizer):
  """Orthogonalised momentum for matrices, Jordan 2024; Adam with (b1, b2) for all else.

  Matrices are kernels [in, out], or stacks of them [depth, in, out], in whose path the regex `hidden`
  matches.  First and last layers, embeddings, biases and convolutions are left to Adam.  Updates have
  an rms of about 0.2 for any shape, so rates and decay are those of AdamW: Liu et al. 2025
  (2502.16982), eq. 4.
  """

  momentum: float = 0.95
  b1: float = 0.9
  b2: float = 0.999
  hidden: str = r"^(?!(in|out)/).*kernel$"

  regexes = ("no_decay", "frozen", "hidden")

  def direction(self) -> optax.GradientTransformation:
    matrix = optax.contrib.MuonDimensionNumbers(-2, -1)
    everywhere = lambda params: jax.tree.map(lambda _: matrix, params)
    # The factor is 0.2 max(in, out)^1/2: muon applies max(1, out / in)^1/2, `rest` the rest.
    # A rate of -1 keeps the sign: `build` applies the learning rate.
    muon = optax.contrib.muon(-1.0, beta=self.momentum, muon_weight_dimension_numbers=everywhere)
    rest = optax.stateless(
      lambda updates, params: jax.tree.map(lambda u: 0.2 * u.shape[-2] ** 0.5 * u, updates)
    )

    def matrices(params):
      chosen = match_paths(self.hidden, params, ranks=(2, 3))
      if not any(jax.tree.leaves(chosen)):
        raise no_match_error("hidden", self.hidden, "path of a matrix that is trained", params)
      return chosen

    adam = optax.scale_by_adam(self.b1, self.b2)
    return partition_by(matrices, adam=adam, muon=optax.chain(muon, rest))
