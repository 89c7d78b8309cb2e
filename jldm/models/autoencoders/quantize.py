"""Latents as one of a finite number of vectors at every place.

A codebook of K vectors, van den Oord et al. 2017 (1711.00937), appendix A.1, kept as running
averages of how often each code was chosen, N [K], and of the vectors that chose it, m [K, D], in
shares of all places:

  (1)  N <- decay N + (1 - decay) mean(chosen),  m <- decay m + (1 - decay) mean(chosen z)
  (2)  e_k = m_k / N'_k,  N'_k = (N_k + epsilon / K) / (n + epsilon) n,  n = sum N

Both averages are linear in means over the batch, so that averaging them over devices or
microbatches is exact; (2) is done where the vectors are used.  Finite scalar quantisation, Mentzer
et al. 2023 (2309.15505), needs no state.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from jldm.core.errors import UserError

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class Codebook:
  """Equations (1) and (2): nearest of `size` vectors, which follow the latents that choose them.

  restart_below: a code chosen less often than that share of 1 / size is dead, and starts anew from
  a latent of the batch at every `restart_every_steps`-th step.

  Raises:
    UserError: a number out of range.
  """

  size: int = 512
  decay: float = 0.99
  epsilon: float = 1e-5
  restart_below: float = 0.1
  restart_every_steps: int = 20

  def __post_init__(self):
    if self.size < 2:
      raise UserError(f"size={self.size} of a codebook; expected at least 2")
    if not 0 <= self.decay < 1:
      raise UserError(f"decay={self.decay} of a codebook; expected at least 0 and below 1")
    if self.restart_every_steps < 0:
      raise UserError(f"restart_every_steps={self.restart_every_steps}; expected at least 0 (never)")

  def shapes(self, channels: int) -> dict[str, tuple[int, ...]]:
    """Of the state, for latents of D = `channels`."""
    return {"counts": (self.size,), "sums": (self.size, channels)}

  def vectors(self, state: dict) -> Array:
    """Equation (2): e [K, D]; zeros where nothing was ever counted."""
    total = jnp.maximum(state["counts"].sum(), 1e-30)
    smoothed = (state["counts"] + self.epsilon / self.size) / (total + self.epsilon) * total
    return state["sums"] / smoothed[:, None]

  def state(self, vectors: Array) -> dict:
    """A state of which `vectors` are these [K, D], all codes as frequent."""
    share = jnp.full((self.size,), 1 / self.size, jnp.float32)
    return {"counts": share, "sums": vectors / self.size}

  def quantize(self, state: dict, z: Array) -> tuple[Array, Array]:
    """z [..., D] -> (the nearest vectors [..., D], their codes int [...]); gradients pass straight through
    to z.
    """
    e = self.vectors(state)
    products = jnp.einsum("...d,kd->...k", z, e, precision="highest")
    codes = jnp.argmin(jnp.square(e).sum(-1) - 2 * products, -1)
    return z + jax.lax.stop_gradient(e[codes] - z), codes

  def update(self, state: dict, z: Array, codes: Array) -> dict:
    """Equation (1) for latents z [..., D] that chose codes int [...]."""
    chosen = jax.nn.one_hot(codes.reshape(-1), self.size)  # [N, K]
    flat = jax.lax.stop_gradient(z).reshape(len(chosen), -1)
    sums = jnp.einsum("nk,nd->kd", chosen, flat, precision="highest") / len(chosen)
    follow = lambda old, new: self.decay * old + (1 - self.decay) * new
    return {"counts": follow(state["counts"], chosen.mean(0)), "sums": follow(state["sums"], sums)}

  def dead(self, state: dict) -> Array:
    """Which codes are chosen too rarely, bool [K]."""
    return state["counts"] < self.restart_below / self.size

  def refresh(self, state: dict, z: Array, key: Array) -> dict:
    """Dead codes become latents of z [..., D] drawn by `key` [], with the mean share 1 / K; the others stay.

    All codes of a state of zeros are dead, so this also initialises a codebook.
    """
    flat = z.reshape(-1, z.shape[-1])
    order = jax.random.permutation(key, len(flat))
    # Latents repeat if there are fewer latents than codes.
    drawn = flat[order[jnp.arange(self.size) % len(flat)]]
    dead = self.dead(state)
    return {
      "counts": jnp.where(dead, 1 / self.size, state["counts"]),
      "sums": jnp.where(dead[:, None], drawn / self.size, state["sums"]),
    }

  def metrics(self, state: dict) -> dict[str, Array]:
    """The share of codes in use and the perplexity, by the running counts; the same on all devices."""
    return {"usage": 1 - self.dead(state).mean(), "perplexity": perplexity(state["counts"])}


@dataclasses.dataclass(frozen=True)
class FSQ:
  """Finite scalar quantisation: channel i is squashed and rounded to levels[i] even steps from -1 to 1.

  Raises:
    UserError: fewer than two levels.
  """

  levels: tuple[int, ...] = (8, 5, 5, 5)
  restart_every_steps: int = 0

  def __post_init__(self):
    if not self.levels or min(self.levels) < 2:
      raise UserError(f"levels={self.levels}; expected at least 2 for each channel, as in (8, 5, 5, 5)")

  @property
  def size(self) -> int:
    return math.prod(self.levels)

  def shapes(self, channels: int) -> dict[str, tuple[int, ...]]:
    """No state; UserError unless there is one number of levels a channel."""
    if channels != len(self.levels):
      raise UserError(
        f"latent_channels={channels} with FSQ levels={tuple(self.levels)}; expected as many levels as "
        f"channels"
      )
    return {}

  def quantize(self, state: dict, z: Array) -> tuple[Array, Array]:
    """z [..., D], unbounded -> (steps in [-1, 1], codes int [...]); gradients pass through the rounding."""
    del state
    bounded = self.bound(z)
    steps = bounded + jax.lax.stop_gradient(jnp.round(bounded) - bounded)
    half, basis = np.array(self.levels) // 2, np.cumprod((1, *self.levels[:-1]))
    codes = ((jnp.round(bounded).astype(jnp.int32) + half) * basis).sum(-1)
    return steps / half, codes

  def bound(self, z: Array) -> Array:
    """Appendix A.1 there: z to the levels' range, a half step lower where their number is even."""
    levels = np.array(self.levels)
    half = (levels - 1) * (1 - 1e-3) / 2
    offset = np.where(levels % 2, 0.0, 0.5)
    return jnp.tanh(z + np.tan(offset / half)) * half - offset

  def values(self, codes: Array) -> Array:
    """Codes int [...] -> their steps [..., D], the inverse."""
    basis, levels = np.cumprod((1, *self.levels[:-1])), np.array(self.levels)
    return (codes[..., None] // basis % levels - levels // 2) / (levels // 2)

  def update(self, state: dict, z: Array, codes: Array) -> dict:
    del z, codes
    return state

  def refresh(self, state: dict, z: Array, key: Array) -> dict:
    del z, key
    return state

  def metrics(self, state: dict) -> dict[str, Array]:
    del state
    return {}


def perplexity(counts: Array) -> Array:
  """exp of the entropy of codes that came `counts` [K] times or shares: K where all are as frequent, 1
  where one is all.
  """
  shares = counts / counts.sum()
  return jnp.exp(-jax.scipy.special.xlogy(shares, shares).sum())
