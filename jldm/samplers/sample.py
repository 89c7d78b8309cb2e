"""The one driver: a `lax.scan` of a sampler's step over pairs of times.

A sampler is a frozen dataclass registered as a pytree: numbers are leaves (traced), choices static.
It goes over an interval (t, s), never an index, and knows nothing of prompts, scales or rows.

A denoiser is denoise(z [B, ...], t, estimate=None, to=None) -> Denoised, with t [] or [B].
`estimate` [B, ...] is an earlier
x0: the driver always passes the last state's, zeros at first, for networks with self-conditioning.
`to`, [] or [B] as t, is the time that the step of a flow map ends at: the sampler of a flow map
passes it.  Wrappers of denoisers pass both on.
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
  """What a one-step sampler carries; a multistep sampler carries more, but always these."""

  z: Array  # [B, ...]
  x0: Array  # [B, ...] the last estimate of the data: previews, self-conditioning


@runtime_checkable
class Sampler(Protocol):
  """`init` may precompute; `step` takes the state from time t to time s, both [], with keys [B], one per sample.

  `denoise` knows the last state's x0; a step calls denoise(z, t), or denoise(z, t, to=s) of a flow map.

  A state with a history has a field `count` [], how much of it belongs to the path, by which
  `moved` begins it anew.
  """

  def init(self, process: Process, z: Array, pairs: Array) -> Any: ...
  def step(self, process: Process, denoise: Denoise, state: Any, t: Array, s: Array, keys: Array) -> Any: ...


def walk(
  process: Process,
  denoise: Denoise,
  sampler: Sampler,
  z: Array,
  pairs: Array,
  keys: Array,
  keep: Callable[[Any], Any] = lambda state: None,
) -> tuple[Any, Any]:
  """Takes z [B, ...] along pairs (t, s) [N, 2], or [B, N, 2] if each sample has its own; keys [B] from
  the global indices.

  Pairs need not adjoin (discrete DDIM), nor go down (resampling, inversion); where t = s nothing
  changes, so rows of [B, N, 2] are filled up at the end with (0, 0) (`grid.pad_pairs`).  Returns the
  state at the last s and what `keep` takes of every state, stacked [N, ...].

  With [B, N, 2] the sampler steps each sample by itself, as a batch of one, and each number of the
  sampler may be [B] too (an array of more axes has the samples on its first).  The denoiser is
  called on the whole batch, with t [B]; both branches of a sampler's `lax.cond` are evaluated.  Of
  the state, z and x0 come as [B, ...], the other fields as the steps of single samples have them,
  stacked.

  Raises:
    UserError: pairs of another shape.
  """
  shape = jnp.shape(pairs)
  if shape[-1:] != (2,) or not (len(shape) == 2 or (len(shape) == 3 and shape[0] == len(z))):
    raise UserError(f"pairs of shape {shape} for {len(z)} samples; expected [N, 2], or [{len(z)}, N, 2]")
  if len(shape) == 3:
    return walk_separately(process, denoise, sampler, z, pairs, keys, keep)

  def body(state, interval):
    i, t, s = interval
    after = advance(process, denoise, sampler, state, t, s, fold_each(keys, i))
    return after, keep(after)

  intervals = jnp.arange(len(pairs)), pairs[:, 0], pairs[:, 1]
  return jax.lax.scan(body, sampler.init(process, z, pairs), intervals)


def advance(
  process: Process, denoise: Denoise, sampler: Sampler, state: Any, t: Array, s: Array, keys: Array
) -> Any:
  """The state after the step from t to s, both [], with the last estimate; the same state where t = s."""

  def informed(z: Array, t: Array, estimate: Array | None = None, to: Array | None = None) -> Denoised:
    return denoise(z, t, state.x0 if estimate is None else estimate, to)

  after = sampler.step(process, informed, state, t, s, keys)
  return jax.tree.map(lambda old, new: jnp.where(t == s, old, new), state, after)


def walk_separately(
  process: Process,
  denoise: Denoise,
  sampler: Sampler,
  z: Array,
  pairs: Array,
  keys: Array,
  keep: Callable[[Any], Any],
) -> tuple[Any, Any]:
  """As `walk`, for pairs [B, N, 2]: a vmap over samples of the sampler's `init` and `step`, each on a
  batch of one.
  """
  numbers, structure = jax.tree.flatten(sampler)
  axes = [0 if is_per_sample(number) else None for number in numbers]
  denoise = called_once(denoise, len(z))

  def single(numbers: list) -> Sampler:
    """The sampler of one sample, whose arrays have a batch axis of one."""
    own = [x[None] if axis == 0 and jnp.ndim(x) else x for x, axis in zip(numbers, axes)]
    return jax.tree.unflatten(structure, own)

  def init(numbers, z, pairs):
    return single(numbers).init(process, z[None], pairs)

  def step(numbers, state, t, s, key):
    return advance(process, denoise, single(numbers), state, t, s, key[None])

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
  """Whether a sampler's leaf is one number [B] or one array [B, ...] per sample; [] and [1, ...] are
  those of all.
  """
  shape = jnp.shape(number)
  return len(shape) == 1 or (len(shape) > 1 and shape[0] > 1)


def called_once(denoise: Denoise, count: int) -> Denoise:
  """The denoiser of one sample, z [1, ...] and t [], of which a vmap over `count` samples makes one
  call on all of them.

  What `denoise` closes over becomes an operand, so that a step may call it within `lax.cond` and `lax.scan`.
  """

  def denoise_one(z: Array, t: Array, estimate: Array | None = None, to: Array | None = None) -> Denoised:
    sample = jax.tree.map(jnp.asarray, (z, t, estimate, to))
    whole = jax.tree.map(lambda x: jax.ShapeDtypeStruct((count, *x.shape[1:]), x.dtype), sample)
    closed, found = jax.make_jaxpr(denoise, return_shape=True)(*whole)
    leaves, structure = jax.tree.flatten(found)

    @jax.custom_batching.custom_vmap
    def alone(constants, *sample):
      """Only the shapes of it are ever needed."""
      return [jnp.full((1, *leaf.shape[1:]), jnp.nan, leaf.dtype) for leaf in leaves]

    @alone.def_vmap
    def together(size, is_batched, constants, *sample):
      constants = [
        x[0] if copied else x for x, copied in zip(constants, is_batched[0])
      ]  # `lax.cond` copies operands
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
  """z [B, ...] at the last s of `walk`."""
  return walk(process, denoise, sampler, z, pairs, keys)[0].z


def first_time(pairs: Array) -> Array:
  """The time that a path begins at: pairs [N, 2] -> [], pairs [B, N, 2] -> [B]."""
  return pairs[..., 0, 0]


def start(process: Process, like: Array, pairs: Array, keys: Array) -> tuple[Array, Array]:
  """Pure noise sigma(t0) eps in the shape of `like` [B, ...], and the keys [B] of the path; `keys` [B]
  are split in two.
  """
  key_start, key_path = split_each(keys)
  return expand(process.sigma(first_time(pairs)), like) * normal_like(key_start, like), key_path


def draw(
  process: Process, denoise: Denoise, sampler: Sampler, like: Array, pairs: Array, keys: Array
) -> Array:
  """Samples from noise, in the shape of `like` [B, ...]: starts at sigma(t0) eps; keys [B] are split
  into start and path.
  """
  z, key_path = start(process, like, pairs, keys)
  return sample(process, denoise, sampler, z, pairs, key_path)


def trajectory(
  process: Process, denoise: Denoise, sampler: Sampler, like: Array, pairs: Array, keys: Array
) -> tuple[Array, Array]:
  """As `draw`, with the estimate of x0 that every step made on its way: z [B, ...], x0 [N, B, ...]; one pass."""
  z, key_path = start(process, like, pairs, keys)
  state, x0 = walk(process, denoise, sampler, z, pairs, key_path, lambda state: state.x0)
  return state.z, x0


def moved(state: Any, z: Array, changed: Array | bool = True) -> Any:
  """The state at another z [B, ...]: what a wrapper returns after it changed z.

  The history of a multistep sampler belongs to the path that was left, and starts anew where `changed` [].
  """
  history = {"count": jnp.where(changed, 0, state.count)} if "count" in state._fields else {}
  return state._replace(z=z, **history)


def renoise(process: Process, z: Array, t: Array, s: Array, keys: Array, noise: Array | float = 1.0) -> Array:
  """The forward process from z_t to z_s, s >= t:  r z_t + (sigma_s^2 - r^2 sigma_t^2)^(1/2) eps',  r =
  alpha_s / alpha_t.

  z [B, ...], t and s [] or [B], keys [B]; the fresh noise is multiplied by `noise` [].  Unchanged
  where s = t.
  """
  alpha_t = process.alpha(t)
  ratio = jnp.where(s == t, 1, process.alpha(s) / jnp.where(alpha_t > 0, alpha_t, 1))
  old, new = ratio * process.sigma(t), process.sigma(s)
  fresh = jnp.sqrt(jnp.where(s == t, 0, jnp.maximum((new - old) * (new + old), 0)))
  return expand(ratio, z) * z + noise * expand(fresh, z) * normal_like(keys, z)
