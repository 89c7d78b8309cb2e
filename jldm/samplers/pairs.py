"""Pairs of times (t, s) that a sampler steps along, made from times or given."""

from collections.abc import Sequence
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from jldm.core.errors import UserError
from jldm.diffusion.process import Process

Array = jax.Array


def adjacent_pairs(times: Array) -> Array:
  """Times [N + 1] -> adjoining pairs [N, 2]."""
  return jnp.stack([times[:-1], times[1:]], 1)


def pad_pairs(pairs: Sequence[Array]) -> Array:
  """Pairs [N_b, 2] of B requests -> [B, N, 2] with N the largest N_b.

  Shorter rows end with pairs (0, 0), which change nothing.  The padding is at the end, since step i
  draws its noise from the key folded with i.

  Raises:
    UserError: no pairs, or an array of another shape.
  """
  shapes = [np.shape(each) for each in pairs]
  if not shapes or any(len(shape) != 2 or shape[1] != 2 for shape in shapes):
    raise UserError(f"pairs of shapes {shapes}; expected at least one array, each [N, 2]")
  longest = max(count for count, _ in shapes)
  return jnp.stack([jnp.pad(jnp.asarray(each), ((0, longest - len(each)), (0, 0))) for each in pairs])


def restart(times: Array, t_min: float, t_max: float, repeats: int = 1, steps: int = 4) -> Array:
  """Pairs along times [N + 1] that at `t_min` go up to `t_max` and down again, `repeats` times.

  Each way down has `steps` even steps: Restart, Xu et al. 2023 (2306.14878), algorithm 1, for
  jldm.samplers.resample.  `t_min` is inserted if it is not one of the times.

  Raises:
    UserError: not times[N] <= t_min < t_max <= 1, t_min above times[0], or less than one repeat or step.
  """
  first, last = float(times[0]), float(times[-1])
  if not last <= t_min < t_max <= 1 or t_min > first or repeats < 1 or steps < 1:
    raise UserError(
      f"t_min={t_min}, t_max={t_max}, repeats={repeats}, steps={steps} of times from {first:g} to {last:g}; "
      "expected t_min < t_max, t_min within the times, and at least one repeat of one step"
    )
  times = np.asarray(times, np.float64)
  again = np.tile(np.linspace(t_max, t_min, steps + 1), repeats)
  return adjacent_pairs(
    jnp.asarray(np.concatenate([times[times > t_min + 1e-6], [t_min], again, times[times < t_min - 1e-6]]))
  )


def repaint(times: Array, jump_length: int = 10, jump_n_sample: int = 10) -> Array:
  """Pairs along times [N + 1] that go back up by `jump_length` times at every `jump_length`-th time.

  Each stretch is sampled `jump_n_sample` times: RePaint, Lugmayr et al. 2022 (2201.09865), section 4.2
  and its schedule.  Counted from the clean end, the jumps start at 1, 1 + jump_length, ... below
  N + 1 - jump_length.  Up is one step of noise, equal to theirs in distribution.

  Raises:
    UserError: jump_length or jump_n_sample < 1.
  """
  if jump_length < 1 or jump_n_sample < 1:
    raise UserError(f"jump_length={jump_length}, jump_n_sample={jump_n_sample}; expected at least 1")
  last = len(times) - 1
  left = {place: jump_n_sample - 1 for place in range(1, last + 1 - jump_length, jump_length)}
  places = [last]
  while places[-1] > 0:
    places.append(places[-1] - 1)
    if left.get(places[-1], 0) > 0:
      left[places[-1]] -= 1
      places.append(places[-1] + jump_length)
  return adjacent_pairs(times[last - np.array(places)])


@dataclasses.dataclass(frozen=True)
class Pairs:
  """Given pairs (t, s), such as ((1.0, 0.5), (0.5, 0.0)); the argument `steps` is ignored.

  Raises:
    UserError: times that are no pairs.
  """

  pairs: tuple[tuple[float, float], ...]

  def __post_init__(self):
    if not self.pairs or np.ndim(self.pairs) != 2 or np.shape(self.pairs)[1] != 2:
      raise UserError(f"pairs of shape {list(np.shape(self.pairs))}; expected (t, s), (t, s), …: [N, 2]")

  def __call__(self, process: Process, steps: int) -> Array:
    return jnp.asarray(self.pairs, jnp.float32)
