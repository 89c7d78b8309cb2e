"""Guidance: one prediction from the predictions of a denoiser under several conditions.

  (1)  a rule (process, z, t, each) -> Denoised combines the predictions `each` [B, K, ...] under K
       conditions: first the condition itself, last its opposite (no condition, a negative one, a
       weaker network)
  (2)  alpha x0 + sigma eps = z stays true: a change of x0 and of eps by (dx, de) has alpha dx + sigma de = 0

The difference of two predictions at the same z is such a pair (dx, de).  So is a linear function
applied to both its parts.  Rules are built from these, so that none divides by alpha or sigma.  Every
number is traced, and is [] or, per sample, [B].
"""

from collections.abc import Callable, Sequence
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jldm.core.errors import UserError
from jldm.core.shapes import expand
from jldm.core.trees import choice, like_parts, parts_of, pytree
from jldm.diffusion.process import Process, half_log_snr, rates
from jldm.diffusion.target import TARGETS, Denoised, combine, determinant
from jldm.samplers.sample import Denoise

Array = jax.Array
# (process, z [B, ...], t [] or [B], each [B, K, ...]) -> [B, ...]
Rule = Callable[[Process, Array, Array, Denoised], Denoised]


def guided(
  process: Process, denoise: Callable[..., Denoised], conditions: Sequence[Any], rule: Rule
) -> Denoise:
  """denoise(z, t, condition, estimate, to) under K conditions, trees of [B, ...], combined by a rule.

  All K run in one pass.  The K conditions of a sample are adjacent rows (b K + k), so a batch that is
  sharded over devices never moves.  The learned variance is that of the first condition.  z may be a
  dict by part: the rule combines each part by itself.
  """
  count = len(conditions)

  def interleave(*each: Array) -> Array:
    return jnp.stack(each, 1).reshape((-1,) + each[0].shape[1:])  # K of [B, ...] -> [B K, ...]

  def repeat(e: Any) -> Any:
    """[B, ...] -> [B K, ...]; numbers [] and None stay."""
    return jnp.repeat(e, count, 0) if jnp.ndim(e) else e

  interleaved = jax.tree.map(interleave, *conditions)

  def combined(z: Any, t: Array, estimate: Any = None, to: Array | None = None) -> Denoised:
    rows = denoise(*jax.tree.map(repeat, (z, t)), interleaved, *jax.tree.map(repeat, (estimate, to)))
    each = jax.tree.map(lambda e: e.reshape((-1, count) + e.shape[1:]), rows)  # [B, K, ...]
    x0, eps = parts_of(each.x0), parts_of(each.eps)
    ruled = {
      name: rule(process, part, t, Denoised(x0[name], eps[name])) for name, part in parts_of(z).items()
    }
    x0 = like_parts({name: denoised.x0 for name, denoised in ruled.items()})
    eps = like_parts({name: denoised.eps for name, denoised in ruled.items()})
    return Denoised(x0, eps, jax.tree.map(lambda e: e[:, 0], each.variance))

  return combined


def autoguided(process: Process, denoise: Denoise, weak: Denoise, rule: Rule) -> Denoise:
  """A weaker network, smaller or trained for less time, in place of no condition.

  Autoguidance, Karras et al. 2024 (2406.02507).
  """

  def combined(z: Array, t: Array, estimate: Array | None = None, to: Array | None = None) -> Denoised:
    strong = denoise(z, t, estimate, to)
    both = zip(strong[:2], weak(z, t, estimate, to)[:2])
    each = Denoised(*(jnp.stack(parts, 1) for parts in both))
    return rule(process, z, t, each)._replace(variance=strong.variance)

  return combined


def unstack(each: Denoised) -> list[Denoised]:
  """The K predictions, [B, ...] each."""
  return [jax.tree.map(lambda e, k=k: e[:, k], each) for k in range(each.x0.shape[1])]


def per_sample(number: Any, like: Array) -> Array:
  """A number [] or [B], shaped to broadcast against `like` [B, ...]."""
  return expand(jnp.asarray(number), like)


def inner(a: Array, b: Array) -> Array:
  """The inner product of each sample, [B, 1, ...]."""
  return jnp.sum(a * b, tuple(range(1, a.ndim)), keepdims=True)


def within(process: Process, t: Array, low: Any, high: Any, like: Array) -> Array:
  """Whether log SNR at t is in [low, high]: bool, shaped to broadcast against `like` [B, ...]."""
  log_snr = 2 * half_log_snr(process, t)
  return per_sample((low <= log_snr) & (log_snr <= high), like)


def move(denoised: Denoised, dx: Array, de: Array) -> Denoised:
  return denoised._replace(x0=denoised.x0 + dx, eps=denoised.eps + de)


@pytree
@dataclasses.dataclass(frozen=True)
class ClassifierFree:
  """null + guidance_scale (condition - null): Ho & Salimans 2022 (2207.12598), eq. 6.

  A scale of 1 is the condition alone, 0 is null alone.  A negative condition takes the place of null.
  With two conditions guidance_scale is [] or [B].  With K > 2 it is [K - 1, B] or [K - 1, 1], and the
  result is null + sum of scale_k (condition_k - null): Liu et al. 2022 (2206.01714).

  Raises:
    UserError: a scale of another shape.
  """

  guidance_scale: Any = 1.0

  def __call__(self, process: Process, z: Array, t: Array, each: Denoised) -> Denoised:
    scales = self.scales(*each.x0.shape[:2])
    weights = jnp.concatenate([scales, 1 - jnp.sum(scales, 0, keepdims=True)]).T  # [B or 1, K]
    mix = lambda e: jnp.sum(expand(jnp.broadcast_to(weights, (len(z), weights.shape[1])), e) * e, 1)
    return Denoised(mix(each.x0), mix(each.eps))

  def scales(self, batch: int, count: int) -> Array:
    """-> [K - 1, B or 1], for a batch of B and a count K of conditions."""
    shape = jnp.shape(self.guidance_scale)
    legal = [(count - 1, batch), (count - 1, 1)] + ([(), (batch,)] if count == 2 else [])
    if shape not in legal:
      raise UserError(
        f"scale of shape {shape} for {count} conditions of {batch} samples; expected one of {legal}"
      )
    return jnp.atleast_2d(self.guidance_scale)


@pytree
@dataclasses.dataclass(frozen=True)
class Interval:
  """A rule at log SNR in [log_snr_min, log_snr_max], and the condition alone outside.

  Kynkäänniemi et al. 2024 (2404.07724).  All conditions are evaluated at every step, so this changes
  samples, not cost.
  """

  rule: Any
  log_snr_min: Any = -jnp.inf
  log_snr_max: Any = jnp.inf

  def __call__(self, process: Process, z: Array, t: Array, each: Denoised) -> Denoised:
    inside = within(process, t, self.log_snr_min, self.log_snr_max, z)
    ruled, alone = self.rule(process, z, t, each), unstack(each)[0]
    return Denoised(jnp.where(inside, ruled.x0, alone.x0), jnp.where(inside, ruled.eps, alone.eps))


@pytree
@dataclasses.dataclass(frozen=True)
class FirstChannels:
  """A rule on the first `channels` channels, and the condition alone on the others.

  The published numbers of DiT (2212.09748) are of 3 channels in 4, those of LightningDiT (2501.01423) of 3
  in 32, hence their large scales: on all channels about 1.375 does what 1.5 does on DiT's three.
  """

  rule: Any
  channels: int = choice(3)

  def __call__(self, process: Process, z: Array, t: Array, each: Denoised) -> Denoised:
    ruled, alone = self.rule(process, z, t, each), unstack(each)[0]
    first = jnp.arange(z.shape[-1]) < self.channels  # [C]
    return Denoised(jnp.where(first, ruled.x0, alone.x0), jnp.where(first, ruled.eps, alone.eps))


@pytree
@dataclasses.dataclass(frozen=True)
class Rescale:
  """x0 rescaled per sample towards its standard deviation under the condition alone.

  guidance_rescale = phi in [0, 1] is the share of the way: Lin et al. 2024 (2305.08891), eq. 15 and
  16, in x0 in place of the network's output.  With g the rule's prediction, c the condition's and d =
  g - c, their factor std(c) / std(g) on x0 is 1 - cov(d, g + c) / (std(g) (std(c) + std(g))).  The
  change -phi cov(d, ...) / (...) g.x0, linear in both parts of d, is a pair (2).  A constant g stays.
  """

  rule: Any
  guidance_rescale: Any = 0.7

  def __call__(self, process: Process, z: Array, t: Array, each: Denoised) -> Denoised:
    out, alone = self.rule(process, z, t, each), unstack(each)[0]
    center = lambda e: e - jnp.mean(e, tuple(range(1, e.ndim)), keepdims=True)
    both, size = center(out.x0 + alone.x0), out.x0[0].size
    std_out, std_alone = (jnp.sqrt(inner(center(e), center(e)) / size) for e in (out.x0, alone.x0))
    area = std_out * (std_out + std_alone)
    rate = jnp.where(area > 0, per_sample(self.guidance_rescale, z) / jnp.where(area > 0, size * area, 1), 0)
    change = lambda d: -rate * inner(d, both) * out.x0
    return move(out, change(out.x0 - alone.x0), change(out.eps - alone.eps))


@pytree
@dataclasses.dataclass(frozen=True)
class CFGPlusPlus:
  """CFG++, Chung et al. 2024 (2406.08070): x0 of the rule, eps of no condition.

  Scales of ClassifierFree are in [0, 1].  This is the one rule that breaks (2).  With DDIM it is
  theirs.  All samplers here start from DDIM's alpha_s x0 + sigma_s eps.
  """

  rule: Any

  def __call__(self, process: Process, z: Array, t: Array, each: Denoised) -> Denoised:
    return Denoised(self.rule(process, z, t, each).x0, unstack(each)[-1].eps)


@pytree
@dataclasses.dataclass(frozen=True)
class APG:
  """Adaptive projected guidance, Sadat et al. 2024 (2410.02416), of two conditions.

  The difference in x0, at most of norm `norm_threshold` per sample, is split into a part parallel to
  the condition's x0, which saturates images and is multiplied by `eta`, and the rest.  eta = 1 without
  a threshold is ClassifierFree.  Their momentum, a running sum of differences over the steps, is left
  out: it needs a state, which a denoiser does not have.
  """

  guidance_scale: Any = 1.0
  eta: Any = 0.0
  norm_threshold: Any = jnp.inf

  def __call__(self, process: Process, z: Array, t: Array, each: Denoised) -> Denoised:
    condition, null = unstack(each)
    tiny = jnp.finfo(condition.x0.dtype).tiny
    along = (
      (per_sample(self.eta, z) - 1) * condition.x0 / jnp.maximum(inner(condition.x0, condition.x0), tiny)
    )
    dx, de = condition.x0 - null.x0, condition.eps - null.eps
    shorter = jnp.minimum(1, per_sample(self.norm_threshold, z) / jnp.maximum(jnp.sqrt(inner(dx, dx)), tiny))
    change = lambda d: (
      (per_sample(self.guidance_scale, z) - 1) * shorter * (d + inner(d, condition.x0) * along)
    )
    return move(condition, change(dx), change(de))


@pytree
@dataclasses.dataclass(frozen=True)
class CFGZero:
  """CFG-Zero*, Fan et al. 2025 (2503.18886), of two conditions: s v_null + scale (v - s v_null) in v = dz/dt.

  s = <v, v_null> / |v_null|^2 per sample.  v = 0 at times above `zero_init_above`; by default there
  are none.  A change dv is the pair (2) (-sigma, alpha) dv / det_flow.  If that determinant is 0 or
  infinite (at the clean end of some processes), this is ClassifierFree.
  """

  guidance_scale: Any = 1.0
  zero_init_above: Any = jnp.inf

  def __call__(self, process: Process, z: Array, t: Array, each: Denoised) -> Denoised:
    plain, r = ClassifierFree(self.guidance_scale)(process, z, t, each), rates(process, t, z)
    row = TARGETS["flow"](r)
    v, v_null, v_plain = (combine(row, denoised.x0, denoised.eps) for denoised in (*unstack(each), plain))
    best = inner(v, v_null) / jnp.maximum(inner(v_null, v_null), jnp.finfo(v.dtype).tiny)
    dv = (1 - per_sample(self.guidance_scale, z)) * (best - 1) * v_null
    dv = jnp.where(per_sample(t > self.zero_init_above, z), -v_plain, dv)
    det = determinant(row, r)
    regular = jnp.isfinite(det) & (det > 0)
    dv = jnp.where(regular, dv / jnp.where(regular, det, 1), 0)
    return move(plain, -r.sigma * dv, r.alpha * dv)


def thresholded(
  process: Process, denoise: Denoise, dynamic_thresholding_ratio: Any = 0.995, sample_max_value: Any = 1.0
) -> Denoise:
  """Dynamic thresholding, Saharia et al. 2022 (2205.11487), section 2.3, for data within +-sample_max_value.

  With s the quantile dynamic_thresholding_ratio of |x0| per sample, at least sample_max_value, x0 is
  clipped to [-s, s] and divided by s / sample_max_value.  eps follows by (2).  At sigma = 0, where x0
  is z itself, nothing changes.
  """

  def clipped(z: Array, t: Array, estimate: Array | None = None, to: Array | None = None) -> Denoised:
    denoised = denoise(z, t, estimate, to)
    limits = per_sample(sample_max_value, z)
    s = jnp.maximum(
      expand(
        jax.vmap(jnp.quantile)(jnp.abs(denoised.x0), jnp.broadcast_to(dynamic_thresholding_ratio, len(z))), z
      ),
      limits,
    )
    alpha, sigma = expand(process.alpha(t), z), expand(process.sigma(t), z)
    dx = jnp.where(sigma > 0, jnp.clip(denoised.x0, -s, s) * (limits / s) - denoised.x0, 0)
    return move(denoised, dx, -alpha * dx / jnp.where(sigma > 0, sigma, 1))

  return clipped


def energy_guided(
  process: Process,
  denoise: Denoise,
  energy: Callable[[Array], Array],
  guidance_scale: Any = 1.0,
  log_snr_min: Any = -jnp.inf,
  log_snr_max: Any = jnp.inf,
) -> Denoise:
  """Samples of p(x0) exp(-guidance_scale energy(x0)), for energy(x0 [B, ...]) -> [B].

  With g the gradient of energy(x0(z)) by z, through the denoiser, the prediction is eps +
  guidance_scale sigma g and x0 - guidance_scale sigma^2 / alpha g, at log SNR in [log_snr_min,
  log_snr_max].  This takes the energy of the mean of x0 given z in place of the mean energy, as Chung
  et al. 2023 (2209.14687) and Bansal et al. 2023 (2302.07121) do.  It is exact if the energy is linear
  and x0 given z is Gaussian with a variance that does not depend on z.  Otherwise it is of first order
  in the scale.  At sigma = 0 the change is 0.  At alpha = 0, where z holds no data and the change of
  x0 would be 0 / 0, it is left out.
  """

  def steered(z: Array, t: Array, estimate: Array | None = None, to: Array | None = None) -> Denoised:
    def total(z: Array) -> tuple[Array, Denoised]:
      denoised = denoise(z, t, estimate, to)
      return jnp.sum(energy(denoised.x0)), denoised

    g, denoised = jax.grad(total, has_aux=True)(z)
    alpha, sigma = expand(process.alpha(t), z), expand(process.sigma(t), z)
    active = within(process, t, log_snr_min, log_snr_max, z) & (alpha > 0)
    de = jnp.where(active, per_sample(guidance_scale, z) * sigma * g, 0)
    return move(denoised, -sigma * de / jnp.where(active, alpha, 1), de)

  return steered
