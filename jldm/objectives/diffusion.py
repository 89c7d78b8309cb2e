"""Stage 2: a denoiser of standardised latents.

  (1)  e = network(c_in z_t, c_noise(t), inputs) - (p x0 + q eps)
  (2)  loss = factor(t) |e|^2 / D
  (3)  loss = factor(t) |e|^2 / D exp(-u) + u    where the network learns its log-variance u

means over the D values of a latent; DDPM (Ho et al. 2020, 2006.11239, eq. 14) for the row (p, q) of any target, EDM2
(Karras et al. 2024, 2312.02696, eq. 21) for (3).
"""

import dataclasses
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from jldm.core.errors import UserError
from jldm.core.keys import normal, row_keys
from jldm.core.shapes import expand
from jldm.core.specs import Output
from jldm.diffusion.process import Process, Rates, rates
from jldm.diffusion.target import Predict, combine, decode
from jldm.diffusion.times import Uniform, draw as draw_times
from jldm.diffusion.weighting import Own, Weighting
from jldm.models.autoencoders.posterior import Gaussian
from jldm.models.codecs.codec import Encoder, Statistics, draw
from jldm.objectives.objective import Aux

Array = jax.Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class Diffusion:
  """Equations (1) to (3) on latents drawn from cached posteriors.

  A batch has the raw moments `mean` and `log_variance` [B, h, w, C] and `label` int [B], and what a condition is drawn
  from: of Paired the raw `source` [B, h, w, C], of Masked the picture `image` uint8 [B, H, W, C].  `frozen` is the latents'
  Statistics, or of Masked their Encoder.

  label_dropout: how often a label becomes -1, the unknown class, for classifier-free guidance.
  offset_noise: std of noise that all places of a channel share, added to eps (Guttenberg 2023).
  self_conditioning: how often the network sees its own estimate of x0, else zeros: Chen et al. 2022 (2208.04202), 0.5.
  condition: what the network is told of the data beside z: Masked(...), Paired(...), or None.
  direction: weight of 1 - cos(output, target), the angle at each place: LightningDiT, Yao et al. 2025 (2501.01423).

  Raises:
    UserError: a share outside [0, 1].
  """

  network: nn.Module
  process: Process
  parametrization: Any = Predict("v")
  times: Any = Uniform()
  weighting: Weighting = Own()
  condition: Any = None
  label_dropout: float = 0.1
  offset_noise: float = 0.0
  self_conditioning: float = 0.0
  direction: float = 0.0

  def __post_init__(self):
    for share in ("label_dropout", "self_conditioning"):
      if not 0 <= getattr(self, share) <= 1:
        raise UserError(f"{share}={getattr(self, share)}; expected a share from 0 to 1")

  def check(self) -> None:
    """Raises a UserError where the network reads estimates and is shown none, or the other way round."""
    reads = getattr(self.network, "self_conditioning", False)
    if reads != bool(self.self_conditioning):
      raise UserError(
        f"self_conditioning={self.self_conditioning} and network.self_conditioning={reads}; expected a share such as 0.5 and "
        "True, or 0 and False"
      )

  def init(self, key: Array, batch: dict) -> tuple[Any, Any]:
    z = jnp.zeros(batch["mean"].shape, jnp.float32)
    concat = {"concat": jnp.zeros((*z.shape[:-1], self.condition.channels(z.shape[-1])))} if self.condition else {}
    return self.network.init(key, z, jnp.zeros(len(z)), {"label": batch["label"]} | concat)["params"], {}

  def loss(self, params: Any, extra: Any, ema: Any, frozen: Statistics | Encoder, batch: dict, key: Array) -> tuple[Array, Aux]:
    del ema
    key_x0, key_t, key_eps, key_drop, key_offset, key_self, key_condition = jax.random.split(key, 7)
    rows, drawn = batch["row"], jax.vmap(jax.random.uniform)
    x0 = draw(frozen, Gaussian(batch["mean"], batch["log_variance"]), row_keys(key_x0, rows))
    eps = normal(row_keys(key_eps, rows), x0)
    if self.offset_noise:
      eps = eps + self.offset_noise * normal(row_keys(key_offset, rows), x0[:, :1, :1])
    t, dt_du = draw_times(self.times, self.process, key_t, batch["stratum"])
    labels = jnp.where(drawn(row_keys(key_drop, rows)) < self.label_dropout, -1, batch["label"])
    concat = {"concat": self.condition.drawn(frozen, batch, row_keys(key_condition, rows))} if self.condition else {}
    inputs = {"label": labels} | concat
    r = rates(self.process, t, x0)
    z, row = r.alpha * x0 + r.sigma * eps, self.parametrization.row(r)
    level = self.parametrization.c_noise(self.process, t)

    def network(*estimate) -> Output:
      return self.network.apply({"params": params}, self.parametrization.c_in(r) * z, level, inputs, *estimate)

    estimate = ()
    if self.self_conditioning:
      first = jax.lax.stop_gradient(decode(row, r, z, network(jnp.zeros_like(z)).value).x0)
      shown = drawn(row_keys(key_self, rows)) < self.self_conditioning
      estimate = (jnp.where(expand(shown, z), first, 0),)
    output, log_variance, variance = network(*estimate)
    target = combine(row, x0, eps)
    error = jnp.square(output - target)
    mean = lambda values: values.mean(tuple(range(1, x0.ndim)))
    loss = self.factor(row, r, dt_du) * error
    log_variance = variance if log_variance is None else expand(log_variance, x0)
    if log_variance is not None:
      loss = loss * jnp.exp(-log_variance) + log_variance
    loss = mean(loss)
    if self.direction:
      loss = loss + self.direction * mean(1 - cosine(output, target))
    return loss, Aux({"mse": mean(error).mean()}, extra)

  def factor(self, row: Any, r: Rates, dt_du: Array) -> Array:
    """What squared error in `row` is multiplied by, [] or [B, 1, ...]."""
    factor = self.weighting.factor(row, r)
    return factor * expand(dt_du, r.alpha) if self.weighting.measure == "log_snr" else factor


def cosine(a: Array, b: Array) -> Array:
  """Of the angle between vectors of channels, [..., C] -> [..., 1]."""
  dot = lambda x, y: (x * y).sum(-1, keepdims=True)
  return dot(a, b) * jax.lax.rsqrt(jnp.maximum(dot(a, a) * dot(b, b), 1e-12))
