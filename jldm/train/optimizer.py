"""Optimizers and learning-rate schedules as data: small dataclasses whose `build` gives optax objects."""

import dataclasses
from typing import Any

import optax


@dataclasses.dataclass(frozen=True, kw_only=True)
class Constant:
  """A linear warm-up to `peak`, which then holds."""

  peak: float = 1e-4
  warmup_steps: int = 0

  def build(self, steps: int) -> optax.Schedule:
    del steps
    return optax.linear_schedule(0.0 if self.warmup_steps else self.peak, self.peak, max(self.warmup_steps, 1))


@dataclasses.dataclass(frozen=True, kw_only=True)
class WarmupCosine:
  """A linear warm-up to `peak`, then half a cosine down to `end` at the last step."""

  peak: float = 1e-3
  end: float = 0.0
  warmup_steps: int = 100

  def build(self, steps: int) -> optax.Schedule:
    warmup = min(self.warmup_steps, max(steps - 1, 0))
    return optax.warmup_cosine_decay_schedule(0.0 if warmup else self.peak, self.peak, warmup, max(steps, 1), self.end)


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdamW:
  """Loshchilov & Hutter 2019 (1711.05101), after clipping the gradient's global norm to `clip_norm` (0: no clipping)."""

  schedule: Any = WarmupCosine()
  b1: float = 0.9
  b2: float = 0.999
  weight_decay: float = 0.0
  clip_norm: float = 1.0

  def build(self, steps: int) -> optax.GradientTransformation:
    """The transformation for a run of `steps` updates."""
    adamw = optax.adamw(self.schedule.build(steps), self.b1, self.b2, weight_decay=self.weight_decay)
    return optax.chain(optax.clip_by_global_norm(self.clip_norm), adamw) if self.clip_norm else adamw
