"""The one driver: a `lax.scan` of a sampler's step over pairs of times.

A sampler is a frozen dataclass registered as a pytree: its numbers are traced leaves, its choices
static.  A step goes over an interval (t, s), never an index, and knows nothing of prompts, scales or
rows.

A denoiser is denoise(z [B, ...], t, estimate=None, to=None) -> Denoised, with t [] or [B].  `estimate`
[B, ...] is an earlier x0, for networks with self-conditioning: the driver always passes the last
state's, and zeros at first.  `to`, [] or [B] as t, is the time that the step of a flow map ends at;
only the sampler of a flow map passes it.  Wrappers of denoisers pass both on.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from jldm.core.errors import UserError
from jldm.core.keys import fold_each, normal_like, split_each
from jldm.core.shapes import expand
from jldm.diffusion.process import Process
from jldm.diffusion.target import Denoised

Array = jax.Array
Denoise = Callable[..., Denoised]  # denoise(z [B, ...], t [] or [B], estimate=None, to=None)


class State(NamedTuple):
  """The state of a one-step sampler; a multistep sampler's state has more fields, but always these."""

  z: Array  # [B, ...]
  x0: Array  # [B, ...] the last estimate of the data: previews, self-conditioning


@runtime_checkable
class Sampler(Protocol):
  """`init` may precompute; `step` takes the state from time t to time s, both [].

  There is one key per sample, keys [B].  `denoise` already has the last state's x0 as its estimate: a
  step calls denoise(z, t), or denoise(z, t, to=s) for a flow map.  A state with a history has a field
  `count` [], the number of its estimates that belong to this path; `replace_z` sets it to 0.
  """

  def init(self, process: Process, z: Array, pairs: Array) -> Any: ...
  def step(self, process: Process, denoise: Denoise, state: Any, t: Array, s: Array, keys: Array) -> Any: ...


def scan_steps(
  process: Process,
  denoise: Denoise,
  sampler: Sampler,
  z: Array,
  pairs: Array,
  keys: Array,
  keep: Callable[[Any], Any] = lambda state: None,
) -> tuple[Any, Any]:
  """Steps z [B, ...] along pairs (t, s) [N, 2], or [B, N, 2] if each sample has its own.

  keys [B] come from the global indices.  Pairs need not adjoin (discrete DDIM), nor go down
  (resampling, inversion).  A pair with t = s changes nothing, so `grid.pad_pairs` fills rows of
  [B, N, 2] with (0, 0).  Returns the state at the last s, and keep(state) of every step, stacked
  [N, ...].

  With [B, N, 2] the sampler steps each sample by itself, as a batch of one.  Each number of the
  sampler may then be [B] too; an array with more axes has the samples on its first.  The denoiser is
  called once for the whole batch, with t [B], and both branches of a sampler's `lax.cond` are
  evaluated.  z and x0 of the returned state are [B, ...]; its other fields are those of single
  samples, stacked.

  Raises:
    UserError: pairs of another shape.
  """
  shape = jnp.shape(pairs)
  if shape[-1:] != (2,) or not (len(shape) == 2 or (len(shape) == 3 and shape[0] == len(z))):
    raise UserError(f"pairs of shape {shape} for {len(z)} samples; expected [N, 2], or [{len(z)}, N, 2]")
  if len(shape) == 3:
    return scan_steps_per_sample(process, denoise, sampler, z, pairs, keys, keep)

  def body(state, interval):
    i, t, s = interval
    after = advance_state(process, denoise, sampler, state, t, s, fold_each(keys, i))
    return after, keep(after)

  intervals = jnp.arange(len(pairs)), pairs[:, 0], pairs[:, 1]
  return jax.lax.scan(body, sampler.init(process, z, pairs), intervals)


def advance_state(
  process: Process, denoise: Denoise, sampler: Sampler, state: Any, t: Array, s: Array, keys: Array
) -> Any:
  """The state after the step from t to s, both []; unchanged if t = s.  `denoise` gets the last estimate."""

  def informed(z: Array, t: Array, estimate: Array | None = None, to: Array | None = None) -> Denoised:
    return denoise(z, t, state.x0 if estimate is None else estimate, to)

  after = sampler.step(process, informed, state, t, s, keys)
  return jax.tree.map(lambda old, new: jnp.where(t == s, old, new), state, after)


def scan_steps_per_sample(
  process: Process,
  denoise: Denoise,
  sampler: Sampler,
  z: Array,
  pairs: Array,
  keys: Array,
  keep: Callable[[Any], Any],
) -> tuple[Any, Any]:
  """As `scan_steps`, for pairs [B, N, 2]: the sampler's `init` and `step` under vmap, on batches of one."""
  numbers, structure = jax.tree.flatten(sampler)
  axes = [0 if is_per_sample(number) else None for number in numbers]
  denoise = batch_calls(denoise, len(z))

  def single(numbers: list) -> Sampler:
    """The sampler of one sample, whose arrays have a batch axis of one."""
    own = [x[None] if axis == 0 and jnp.ndim(x) else x for x, axis in zip(numbers, axes)]
    return jax.tree.unflatten(structure, own)

  def init(numbers, z, pairs):
    return single(numbers).init(process, z[None], pairs)

  def step(numbers, state, t, s, key):
    return advance_state(process, denoise, single(numbers), state, t, s, key[None])

  def joined(state):  # [B, 1, ...] -> [B, ...]
    return state._replace(z=state.z[:, 0], x0=state.x0[:, 0])

  def body(state, interval):
    i, t, s = interval  # [], [B], [B]
    after = jax.vmap(step, (axes, 0, 0, 0, 0))(numbers, state, t, s, fold_each(keys, i))
    return after, keep(joined(after))

  intervals = jnp.arange(pairs.shape[1]), pairs[..., 0].T, pairs[..., 1].T
  state, kept = jax.lax.scan(body, jax.vmap(init, (axes, 0, 0))(numbers, z, pairs), intervals)
  return joined(state), kept


def is_per_sample(number: Any) -> bool:
  """Whether a sampler's leaf is [B] or [B, ...], one per sample; [] and [1, ...] are shared."""
  shape = jnp.shape(number)
  return len(shape) == 1 or (len(shape) > 1 and shape[0] > 1)


def batch_calls(denoise: Denoise, count: int) -> Denoise:
  """A denoiser of one sample, z [1, ...] and t [], that a vmap over `count` samples calls once for all.

  What `denoise` closes over becomes an operand, so a step may call it within `lax.cond` and `lax.scan`.
  """

  def denoise_one(z: Array, t: Array, estimate: Array | None = None, to: Array | None = None) -> Denoised:
    sample = jax.tree.map(jnp.asarray, (z, t, estimate, to))
    whole = jax.tree.map(lambda x: jax.ShapeDtypeStruct((count, *x.shape[1:]), x.dtype), sample)
    closed, shapes = jax.make_jaxpr(denoise, return_shape=True)(*whole)
    leaves, structure = jax.tree.flatten(shapes)

    @jax.custom_batching.custom_vmap
    def alone(constants, *sample):
      """Only the shapes of its results are used."""
      return [jnp.full((1, *leaf.shape[1:]), jnp.nan, leaf.dtype) for leaf in leaves]

    @alone.def_vmap
    def together(size, is_batched, constants, *sample):
      # `lax.cond` copies its operands for each sample
      constants = [x[0] if copied else x for x, copied in zip(constants, is_batched[0])]
      own = lambda x, batched: x if batched else jnp.broadcast_to(x, (size, *x.shape))
      whole = jax.tree.map(own, sample, tuple(is_batched[1:]))
      whole = jax.tree.map(lambda x: x[:, 0] if x.ndim > 1 else x, whole)  # [B, 1, ...] -> [B, ...]
      outputs = jax.core.eval_jaxpr(closed.jaxpr, constants, *jax.tree.leaves(whole))
      return [x[:, None] for x in outputs], [True] * len(outputs)

    return jax.tree.unflatten(structure, alone(closed.consts, *sample))

  return denoise_one


def sample(
  process: Process, denoise: Denoise, sampler: Sampler, z: Array, pairs: Array, keys: Array
) -> Array:
  """z [B, ...] at the last s of `scan_steps`."""
  return scan_steps(process, denoise, sampler, z, pairs, keys)[0].z


def first_time(pairs: Array) -> Array:
  """The first time of a path: pairs [N, 2] -> [], pairs [B, N, 2] -> [B]."""
  return pairs[..., 0, 0]


def draw_start(process: Process, like: Array, pairs: Array, keys: Array) -> tuple[Array, Array]:
  """Noise sigma(t0) eps in the shape of `like` [B, ...], and the keys [B] of the path.

  Both come from `keys` [B], split in two.
  """
  key_start, key_path = split_each(keys)
  return expand(process.sigma(first_time(pairs)), like) * normal_like(key_start, like), key_path


def draw_samples(
  process: Process, denoise: Denoise, sampler: Sampler, like: Array, pairs: Array, keys: Array
) -> Array:
  """Samples in the shape of `like` [B, ...], from noise sigma(t0) eps; keys [B] for noise and path."""
  z, key_path = draw_start(process, like, pairs, keys)
  return sample(process, denoise, sampler, z, pairs, key_path)


def trajectory(
  process: Process, denoise: Denoise, sampler: Sampler, like: Array, pairs: Array, keys: Array
) -> tuple[Array, Array]:
  """As `draw_samples`, with the estimate of x0 of every step: z [B, ...], x0 [N, B, ...]; one pass."""
  z, key_path = draw_start(process, like, pairs, keys)
  state, x0 = scan_steps(process, denoise, sampler, z, pairs, key_path, lambda state: state.x0)
  return state.z, x0


def replace_z(state: Any, z: Array, changed: Array | bool = True) -> Any:
  """The state with another z [B, ...], for wrappers that change z.

  The history of a multistep sampler belongs to the old path, so it starts anew if `changed` [].
  """
  history = {"count": jnp.where(changed, 0, state.count)} if "count" in state._fields else {}
  return state._replace(z=z, **history)


def renoise(process: Process, z: Array, t: Array, s: Array, keys: Array, noise: Array | float = 1.0) -> Array:
  """The forward process from z_t to z_s, s >= t, with r = alpha_s / alpha_t:

    z_s = r z_t + noise (sigma_s^2 - r^2 sigma_t^2)^(1/2) eps'

  z [B, ...], t and s [] or [B], noise [], keys [B].  z is unchanged if s = t.
  """
  alpha_t = process.alpha(t)
  ratio = jnp.where(s == t, 1, process.alpha(s) / jnp.where(alpha_t > 0, alpha_t, 1))
  old, new = ratio * process.sigma(t), process.sigma(s)
  fresh = jnp.sqrt(jnp.where(s == t, 0, jnp.maximum((new - old) * (new + old), 0)))
  return expand(ratio, z) * z + noise * expand(fresh, z) * normal_like(keys, z)
