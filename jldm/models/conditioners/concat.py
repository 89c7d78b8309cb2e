"""What is known of a picture, as channels beside its noisy latent.

  Masked   the latent of what is known of it, and where that is
  Paired   the latent of another picture, which is made of it: grey of colour, blurred of sharp

Concatenation is how latent diffusion inpaints and enlarges: Rombach et al. 2022 (2112.10752), sections 3.3, 4.4 and
4.5.  Zeros say that nothing is known: they are all that the network is told of a share `dropout` of the examples, which
guidance by the condition needs (Brooks et al. 2022, 2211.09800, eq. 3).
"""

from collections.abc import Callable
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jldm.core.errors import UserError
from jldm.core.keys import split_each
from jldm.core.shapes import expand
from jldm.models.codecs.codec import Encoder, Statistics, pixels, standardised
from jldm.models.conditioners import masks
from jldm.models.conditioners.degradation import Downsampled

Array = jax.Array


def check_dropout(dropout: float) -> None:
  if not 0 <= dropout <= 1:
    raise UserError(f"dropout={dropout} of the condition; expected a share from 0 to 1")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Masked:
  """Random `shapes` of `masks` hide parts of a picture, which is encoded without them.

  Both are drawn anew each time, so that training runs the encoder too.  `dropout` is how often everything is hidden.
  """

  shapes: tuple[str, ...] = tuple(masks.SHAPES)
  dropout: float = 0.1

  def __post_init__(self):
    masks.check(self.shapes)
    check_dropout(self.dropout)

  def channels(self, latent_channels: int) -> int:
    return latent_channels + 1

  def beside(self, encode: Callable[[Array], Array], images: Array, known: Array) -> Array:
    """Pictures [B, H, W, C] in [-1, 1], known [B, H, W, 1], as the network is told them: [B, h, w, C + 1].

    `encode` makes standardised latents of pictures; what is hidden is filled before they are encoded.
    """
    z = encode(masks.filled(images, known))
    return jnp.concatenate([z, masks.share(known, images.shape[1] // z.shape[1])], -1)

  def drawn(self, codec: Encoder, batch: dict, keys: Array) -> Array:
    """Of examples in training, `image` uint8 [B, H, W, C]: [B, h, w, C + 1], row b from keys[b] alone."""
    key_mask, key_drop = split_each(keys)
    images = pixels(batch["image"])
    known = masks.draw(self.shapes, key_mask, images.shape[1:3])
    return dropped(self.beside(codec, images, known), self.dropout, key_drop)

  def example(self, images: Array, keys: Array) -> tuple[Array, Array | None]:
    """Pictures [B, H, W, C] with parts hidden, at random, in grey, and what is known of them [B, H, W, 1]."""
    known = masks.draw(self.shapes, keys, images.shape[1:3])
    return known * images, known


@dataclasses.dataclass(frozen=True, kw_only=True)
class Paired:
  """The latent of `degradation` of the picture, encoded once beside it: noise and masks of a picture are always the same."""

  degradation: Any = Downsampled()
  dropout: float = 0.0

  def __post_init__(self):
    check_dropout(self.dropout)

  def channels(self, latent_channels: int) -> int:
    return latent_channels

  def drawn(self, codec: Statistics, batch: dict, keys: Array) -> Array:
    """Of examples in training, `source` [B, h, w, C] raw: the same standardised, as the network is shown it."""
    return dropped(standardised(codec, batch["source"]), self.dropout, keys)

  def example(self, images: Array, keys: Array) -> tuple[Array, Array | None]:
    """The source pictures of images [B, H, W, C], and no mask."""
    return self.degradation(images, keys), None


def dropped(told: Array, share: float, keys: Array) -> Array:
  """told [B, ...], zeros for a share of the examples."""
  return jnp.where(expand(jax.vmap(jax.random.uniform)(keys) < share, told), 0, told)
