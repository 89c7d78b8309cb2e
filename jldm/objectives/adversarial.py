"""Stage 1 with a discriminator D of images x and reconstructions x', trained together by one loss.

  (1)  loss = inner(x, x') + a w mean -sg(D)(x')  +  a mean (max(0, 1 - D(x)) + max(0, 1 + D(sg(x')))) / 2
  (2)  w = weight min(|g| / (|h| + 1e-6), 1e4)
  (3)  g, h = gradients of inner and of mean -D(x') with respect to the decoder's last kernel
  (4)  |.|^2 is averaged over the steps before:  v_n = decay v_(n-1) + (1 - decay) |.|_(n-1)^2

mean is over patches, and sg stops gradients.  (1) is the hinge loss of Lim & Ye 2017 (1705.02894): its
second term trains only the autoencoder, its third only the discriminator.  (2) and (3) are eq. 7 of
VQGAN, Esser et al. 2021 (2012.09841), which measures g and h within the step.  Here g and h are kept in
`extra`, as means over the batch, and w comes from the steps before.  So all devices and microbatches
share one w and agree with the whole batch.  a is 0 for the first `start_step` updates, in which the
discriminator is neither used nor trained, and 1 after them.  (It is computed all the same:
convolutions within `lax.cond` are many times slower on a CPU.)
"""

from collections.abc import Mapping
import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from jldm.core.errors import UserError
from jldm.core.specs import Loaded
from jldm.models.autoencoders.discriminator import PatchDiscriminator
from jldm.models.codecs.codec import pixels
from jldm.objectives.autoencoder import Reconstruction
from jldm.objectives.objective import Aux, Objective

Array = jax.Array

EPSILON, MOST = 1e-6, 1e4  # of (2)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Adversarial(Objective):
  """Equations (1) to (4); params are {"autoencoder", "discriminator"}.

  `extra` is {"autoencoder": of inner, "steps": [], how many were made, up to start_step,
  "gradients": {"inner", "adversarial"}, g and h of the step before, "squares": {the same}, v}.

  weight: of the adversarial term, relative to the gradient of what it is added to; 0 trains the
    discriminator alone.
  last_kernel: path of the decoder's last kernel in the autoencoder's parameters.

  Raises:
    UserError: a number is not legal; in `init`, there is no parameter `last_kernel`.
  """

  makes: ClassVar[str] = "codec"
  inner: Reconstruction
  discriminator: PatchDiscriminator = PatchDiscriminator()
  start_step: int = 10_000
  weight: float = 0.5
  decay: float = 0.9
  last_kernel: str = "decoder/out/kernel"

  def __post_init__(self):
    if self.start_step < 0 or self.weight < 0:
      raise UserError(f"start_step={self.start_step}, weight={self.weight}; expected at least 0")
    if not 0 <= self.decay < 1:
      raise UserError(f"decay={self.decay}; expected at least 0 and less than 1")

  @property
  def network(self) -> Any:
    """The autoencoder."""
    return self.inner.network

  @property
  def weight_files(self) -> Mapping[str, str]:
    return self.inner.weight_files

  @property
  def refresh_every_steps(self) -> int:
    return self.inner.refresh_every_steps

  def check_fields(self) -> None:
    self.inner.check_fields()

  def refresh(self, params: Any, extra: Any, batch: dict, key: Array) -> Any:
    """`extra` after the inner objective's refresh, outside the step."""
    return extra | {
      "autoencoder": self.inner.refresh(params["autoencoder"], extra["autoencoder"], batch, key)
    }

  def result(self, params: Any, extra: Any, frozen: dict) -> Loaded:
    """The codec, as that of the inner objective."""
    return self.inner.result(params["autoencoder"], extra["autoencoder"], frozen)

  def start(self, params: Any, extra: Any, codec: dict) -> tuple[Any, Any]:
    """The state of `init` with the parameters of a trained autoencoder, and a new discriminator."""
    started, inner = self.inner.start(params["autoencoder"], extra["autoencoder"], codec)
    return params | {"autoencoder": started}, extra | {"autoencoder": inner}

  def init(self, key: Array, batch: dict, frozen: dict) -> tuple[Any, Any]:
    key_inner, key_discriminator = jax.random.split(key)
    autoencoder, inner = self.inner.init(key_inner, batch, frozen)
    discriminator = self.discriminator.init(key_discriminator, pixels(batch["image"]))["params"]
    both = lambda like: {name: jnp.zeros_like(like, jnp.float32) for name in ("inner", "adversarial")}
    zero = jnp.zeros((), jnp.float32)
    extra = {
      "autoencoder": inner,
      "steps": zero,
      "gradients": both(leaf_at(autoencoder, self.last_kernel)),
      "squares": both(zero),
    }
    return {"autoencoder": autoencoder, "discriminator": discriminator}, extra

  def loss(
    self, params: Any, extra: Any, ema: Any, frozen: dict, batch: dict, key: Array
  ) -> tuple[Array, Aux]:
    del ema

    def terms(last):
      autoencoder = replace_leaf(params["autoencoder"], self.last_kernel, last)
      x, reconstruction, loss, aux = self.inner.terms(autoencoder, extra["autoencoder"], batch, key, frozen)
      return (reconstruction, loss), (x, aux)

    (reconstruction, loss), pull, (x, inner) = jax.vjp(
      terms, leaf_at(params["autoencoder"], self.last_kernel), has_aux=True
    )
    squares, weight = self.adaptive(extra)
    started = (extra["steps"] >= self.start_step).astype(jnp.float32)
    generator_loss, slope = self.generator_loss(params["discriminator"], reconstruction)
    discriminator_loss, metrics = self.discriminator_loss(params["discriminator"], x, reconstruction)
    mean, none = jnp.full_like(loss, 1 / len(loss)), jnp.zeros_like
    measured = {
      "inner": pull((none(reconstruction), mean))[0],
      "adversarial": pull((slope / len(loss), none(loss)))[0],
    }
    state = {
      "autoencoder": inner.extra,
      "steps": jnp.minimum(extra["steps"] + 1, self.start_step),
      "gradients": jax.tree.map(lambda g: started * jax.lax.stop_gradient(g), measured),
      "squares": squares,
    }
    generator_loss = with_gradient(generator_loss, slope, reconstruction)
    loss = loss + started * (weight * generator_loss + discriminator_loss)
    return loss, Aux(inner.metrics | metrics | {"adversarial_weight": weight}, state)

  def adaptive(self, extra: Any) -> tuple[dict, Array]:
    """-> ((4), (2)); the weight is 0 until something was measured."""
    average = lambda v, g: self.decay * v + (1 - self.decay) * jnp.square(g).sum()
    squares = jax.lax.stop_gradient(jax.tree.map(average, extra["squares"], extra["gradients"]))
    ratio = jnp.sqrt(squares["inner"]) / (jnp.sqrt(squares["adversarial"]) + EPSILON)
    return squares, self.weight * jnp.clip(ratio, 0, MOST)

  def logits(self, params: Any, images: Array) -> Array:
    return self.discriminator.apply({"params": params}, images)

  def generator_loss(self, params: Any, reconstruction: Array) -> tuple[Array, Array]:
    """-D(x') [B] and its slope [B, H, W, C], without gradients of their own."""
    fixed, reconstruction = jax.lax.stop_gradient((params, reconstruction))
    values, pull = jax.vjp(
      lambda reconstruction: -self.logits(fixed, reconstruction).mean((1, 2)), reconstruction
    )
    return values, pull(jnp.ones_like(values))[0]

  def discriminator_loss(
    self, params: Any, x: Array, reconstruction: Array
  ) -> tuple[Array, dict[str, Array]]:
    """The third term of (1) [B], and metrics."""
    real, fake = self.logits(params, x), self.logits(params, jax.lax.stop_gradient(reconstruction))
    loss = (jax.nn.relu(1 - real) + jax.nn.relu(1 + fake)).mean((1, 2)) / 2
    return loss, {"d_real": real.mean(), "d_fake": fake.mean(), "d_loss": loss.mean()}


def with_gradient(values: Array, slope: Array, at: Array) -> Array:
  """`values` [B] as a function of `at` [B, ...] that has the gradient `slope` there."""
  values, slope = jax.lax.stop_gradient((values, slope))
  return values + (slope * (at - jax.lax.stop_gradient(at))).sum(tuple(range(1, at.ndim)))


def leaf_at(tree: Any, path: str) -> Any:
  """The leaf of nested dicts at a path such as "decoder/out/kernel"; UserError if there is none."""
  for name in path.split("/"):
    if not isinstance(tree, dict) or name not in tree:
      there = ", ".join(sorted(tree)[:8]) if isinstance(tree, dict) else "an array"
      raise UserError(
        f"last_kernel={path!r}: there is no {name!r}, but {there}; "
        "expected the path of the decoder's last kernel"
      )
    tree = tree[name]
  return tree


def replace_leaf(tree: Any, path: str, value: Any) -> Any:
  """The same nested dicts with another leaf at a path."""
  head, _, rest = path.partition("/")
  return tree | {head: replace_leaf(tree[head], rest, value) if rest else value}
