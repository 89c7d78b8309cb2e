"""Stage 2: a denoiser of standardised latents.

  (1)  e = network(c_in z_t, c_noise(t), conditions) - (p x0 + q eps)
  (2)  loss = factor(t) |e|^2 / D
  (3)  loss = factor(t) |e|^2 / D exp(-u) + u    where the network learns its log-variance u

These are means over the D values of a latent.  (1) and (2) are eq. 14 of DDPM, Ho et al. 2020
(2006.11239), for the row (p, q) of any target.  (3) is eq. 21 of EDM2, Karras et al. 2024 (2312.02696).
"""

from collections.abc import Sequence
import dataclasses
import functools
from typing import Any, ClassVar, NamedTuple

from flax import linen as nn
import jax
import jax.numpy as jnp

from jldm.core.errors import UserError
from jldm.core.keys import normal_like, row_keys
from jldm.core.shapes import expand
from jldm.core.specs import Loaded, Output
from jldm.core.trees import like_parts, parts_of
from jldm.diffusion.process import Process, Rates, rates
from jldm.diffusion.target import Predict, combine, decode
from jldm.diffusion.times import At, Uniform, sample_times
from jldm.diffusion.weighting import Unweighted, Weighting
from jldm.models.autoencoders.posterior import is_posterior, posterior_of
from jldm.models.codecs.codec import encode_mean, sample_latents
from jldm.models.conditioners.conditioner import (
  Conditioner,
  cached_conditions,
  check_names,
  draw_conditions,
  join_conditions,
  tower_params,
)
from jldm.objectives.objective import Aux, Objective

Array = jax.Array
LABEL_TABLE = "label"  # of a network's parameters, one row per class


@dataclasses.dataclass(frozen=True, kw_only=True)
class Diffusion(Objective):
  """Equations (1) to (3) on latents drawn from cached posteriors.

  A batch has the raw moments `mean` and `log_variance` [B, h, w, C], and the arrays that `cache` keeps
  of each example for the conditioners.  Latents may be a dict by part, with moments `image__mean`, …:
  each part then has its own time.  `frozen["codec"]` is the codec, a Loaded.  The parameters are
  {"denoiser": …, a conditioner's name: …}.

  conditioners: the network's inputs besides z, each with its own dropout, such as
    (ClassLabel(classes=10), Masked()).
  offset_noise: std of noise that all places of a channel share, added to eps (Guttenberg 2023).
  self_conditioning: the share of examples for which the network sees its own estimate of x0, not
    zeros: Chen et al. 2022 (2208.04202) have 0.5.
  direction_weight: weight of 1 - cos(output, target), the angle at each place: LightningDiT, Yao et al.
    2025 (2501.01423).
  part_weights: for latents in parts, the weight of each part's mean, (("text", 0.5),); 1 by default.

  Raises:
    UserError: a share outside [0, 1], or two conditioners of one name; in `loss`, weights of unknown
      parts.
  """

  makes: ClassVar[str] = "denoiser"
  network: nn.Module
  process: Process
  parametrization: Any = Predict("v")
  times: Any = Uniform()
  weighting: Weighting = Unweighted()
  conditioners: tuple[Conditioner, ...] = ()
  offset_noise: float = 0.0
  self_conditioning: float = 0.0
  direction_weight: float = 0.0
  part_weights: tuple[tuple[str, float], ...] = ()

  def __post_init__(self):
    if not 0 <= self.self_conditioning <= 1:
      raise UserError(f"self_conditioning={self.self_conditioning}; expected a share from 0 to 1")
    check_names(self.conditioners)

  def check_fields(self) -> None:
    """Raises a UserError if the network reads estimates and gets none, or the other way round."""
    reads = getattr(self.network, "self_conditioning", False)
    if reads != bool(self.self_conditioning):
      raise UserError(
        f"self_conditioning={self.self_conditioning} and network.self_conditioning={reads}; "
        "expected a share such as 0.5 and True, or 0 and False"
      )

  def init(self, key: Array, batch: dict, frozen: dict) -> tuple[Any, Any]:
    key_network, key_conditioners = jax.random.split(key)
    params = self.init_conditioners(key_conditioners, batch)
    inputs = self.inputs(params, frozen, batch, key_conditioners)
    means = jax.tree.map(lambda each: each.mean, posterior_of(batch), is_leaf=is_posterior)
    z = jax.tree.map(lambda mean: jnp.zeros(mean.shape, jnp.float32), means)
    noise_level = jax.tree.map(lambda part: jnp.zeros(len(part), jnp.float32), z)
    return {"denoiser": self.network.init(key_network, z, noise_level, inputs).get("params", {})} | params, {}

  def init_conditioners(self, key: Array, batch: dict) -> dict:
    """Parameters of the conditioners that are trained, by name."""
    params, keys = {}, jax.random.split(key, max(len(self.conditioners), 1))
    for conditioner, key_own in zip(self.conditioners, keys):
      own = (
        {}
        if conditioner.cached
        else conditioner.init(key_own, conditioner.draw_inputs(batch, row_keys(key_own, batch["row"])))
      )
      params |= {conditioner.name: own} if own else {}
    return params

  def inputs(self, params: Any, frozen: dict, batch: dict, key: Array) -> dict:
    """The network's inputs besides z in training."""
    params = params | tower_params(self.conditioners, frozen)
    keys = jax.random.split(key, max(len(self.conditioners), 1))[: len(self.conditioners)]
    each = [row_keys(key_own, batch["row"]) for key_own in keys]
    return join_conditions(
      draw_conditions(self.conditioners, params, batch, functools.partial(encode_mean, frozen["codec"]), each)
    )

  def cache(self, frozen: dict, batch: dict, keys: Array) -> dict:
    """The arrays kept of each example besides its moments; keys [B] draw what stays the same in training."""
    towers = tower_params(self.conditioners, frozen)
    return cached_conditions(
      self.conditioners, towers, batch, functools.partial(encode_mean, frozen["codec"]), keys
    )

  def settle(self, frozen: dict) -> dict:
    """Of towers whose outputs are cached, the null conditions alone."""
    settled = {
      each.name: Loaded(each.tower, jax.jit(each.settle)(frozen[each.name].params))
      for each in self.conditioners
      if each.tower is not None and each.cached
    }
    return frozen | settled

  def loss(
    self, params: Any, extra: Any, ema: Any, frozen: dict, batch: dict, key: Array
  ) -> tuple[Array, Aux]:
    del ema
    key_x0, key_t, key_eps, key_offset, key_self, key_conditions = jax.random.split(key, 6)
    rows = batch["row"]
    x0 = sample_latents(frozen["codec"], posterior_of(batch), row_keys(key_x0, rows))
    noised = {
      name: self.noised(part, batch, *keys, permuted=isinstance(x0, dict))
      for (name, part), keys in zip(parts_of(x0).items(), part_keys((key_t, key_eps, key_offset), x0))
    }
    z, noise_level = (like_parts({name: part[i] for name, part in noised.items()}) for i in (0, 1))
    inputs = self.inputs(params, frozen, batch, key_conditions)

    def network(estimate: Any) -> Output:
      return self.network.apply({"params": params["denoiser"]}, z, noise_level, inputs, estimate)

    estimate = None
    if self.self_conditioning:
      values = parts_of(network(jax.tree.map(jnp.zeros_like, z)).value)
      shown = jax.vmap(jax.random.uniform)(row_keys(key_self, rows)) < self.self_conditioning
      first = {name: jax.lax.stop_gradient(part.estimate(values[name])) for name, part in noised.items()}
      estimate = like_parts({name: jnp.where(expand(shown, part), part, 0) for name, part in first.items()})
    output = network(estimate)
    values, log_variances = parts_of(output.value), parts_of(output.log_variance)
    losses, metrics, weights = jnp.zeros(len(rows), jnp.float32), {}, dict(self.part_weights)
    unknown = weights.keys() - noised.keys()
    if unknown:
      raise UserError(
        f"part_weights has {', '.join(unknown)}, and the latents {', '.join(noised)}; expected some of those"
      )
    for name, part in noised.items():
      loss, mse = self.part_loss(part, values[name], log_variances.get(name))
      losses = losses + weights.get(name, 1.0) * loss
      metrics[f"mse_{name}" if name else "mse"] = mse
    return losses, Aux(metrics, extra)

  def noised(
    self, x0: Array, batch: dict, key_t: Array, key_eps: Array, key_offset: Array, permuted: bool
  ) -> "Noised":
    """One part x0 [B, ...] at its own times; `permuted` strata do not align with those of other parts."""
    rows = batch["row"]
    eps = normal_like(row_keys(key_eps, rows), x0)
    if self.offset_noise:
      one_place = x0[(slice(None), *[slice(1)] * (x0.ndim - 2))]  # [B, 1, ..., C]
      eps = eps + self.offset_noise * normal_like(row_keys(key_offset, rows), one_place)
    t, dt_du = sample_times(self.times, self.process, key_t, batch["stratum"], rows if permuted else None)
    r = rates(self.process, t, x0)
    z, row = r.alpha * x0 + r.sigma * eps, self.parametrization.row(r)
    noise_level = self.parametrization.c_noise(self.process, t)
    return Noised(self.parametrization.c_in(r) * z, noise_level, z, x0, eps, row, r, dt_du)

  def part_loss(self, part: "Noised", value: Array, log_variance: Array | None) -> tuple[Array, Array]:
    """Equation (2) or (3) of one part, [B], and the mean of its squared error, []."""
    target = combine(part.row, part.x0, part.eps)
    error = jnp.square(value - target)
    loss = mean_per_sample(self.factor(part.row, part.rates, part.dt_du) * error)
    if log_variance is not None:
      loss = loss * jnp.exp(-log_variance) + log_variance
    if self.direction_weight:
      loss = loss + self.direction_weight * mean_per_sample(1 - cosine(value, target))
    return loss, error.mean()

  def factor(self, row: Any, r: Rates, dt_du: Array) -> Array:
    """The factor on the squared error in `row`, [] or [B, 1, ...]."""
    factor = self.weighting.factor(row, r)
    return factor * expand(dt_du, r.alpha) if self.weighting.measure == "log_snr" else factor

  def at_time(self, t: Array) -> "Diffusion":
    """The loss at time t [], as one of uniform times, of conditions that are never dropped."""
    kept = tuple(dataclasses.replace(each, dropout=0.0) for each in self.conditioners)
    return dataclasses.replace(self, times=At(t), conditioners=kept)

  def result(self, params: Any, extra: Any, frozen: dict) -> Loaded:
    """The denoiser for later stages and for sampling."""
    del extra, frozen
    return Loaded(self, params)

  def start(self, params: Any, extra: Any, started: Any) -> tuple[Any, Any]:
    """The state of `init` with the parameters of a trained denoiser and of its conditioners.

    A label table of another number of classes stays as it was drawn.
    """
    ours, theirs = params["denoiser"], started["denoiser"]
    size = lambda network: jax.tree.map(jnp.shape, network.get(LABEL_TABLE))
    if size(ours) != size(theirs):
      own = {LABEL_TABLE: ours[LABEL_TABLE]} if LABEL_TABLE in ours else {}
      theirs = {name: value for name, value in theirs.items() if name != LABEL_TABLE} | own
    return params | started | {"denoiser": theirs}, extra


class Noised(NamedTuple):
  """A part of the latents at its own time, with what its error needs."""

  scaled: Array  # c_in z [B, ...]
  noise_level: Array  # [B]
  z: Array
  x0: Array
  eps: Array
  row: Any
  rates: Rates
  dt_du: Array  # [B]

  def estimate(self, value: Array) -> Array:
    """x0 [B, ...] by a network's output."""
    return decode(self.row, self.rates, self.z, value).x0


def part_keys(keys: Sequence[Array], like: Any) -> list[Sequence[Array]]:
  """The keys of every part of `like`, folded with the part's number; unchanged if `like` is one array."""
  if not isinstance(like, dict):
    return [keys]
  return [[jax.random.fold_in(key, i) for key in keys] for i in range(len(like))]


def mean_per_sample(values: Array) -> Array:
  """[B, ...] -> [B], means over the values of each sample."""
  return values.mean(tuple(range(1, values.ndim)))


def cosine(a: Array, b: Array) -> Array:
  """Of the angle between vectors of channels, [..., C] -> [..., 1]."""
  dot = lambda x, y: (x * y).sum(-1, keepdims=True)
  return dot(a, b) * jax.lax.rsqrt(jnp.maximum(dot(a, a) * dot(b, b), 1e-12))
