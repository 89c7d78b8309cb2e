"""A toy joint of pictures and captions: a picture of one grey, and that grey in letters."""

import dataclasses
from typing import ClassVar

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jldm.core.specs import Output, spec
from jldm.models.autoencoders.posterior import Point
from jldm.models.codecs.images import Identity
from jldm.models.codecs.joint import Joint

LETTERS = 3
DATA = spec(image=(np.uint8, (2, 4, 1)), caption=(np.uint8, (5,)))


@dataclasses.dataclass(frozen=True)
class Letters:
  """Ids uint8 [B, L] below LETTERS as one-hot rows [B, L, LETTERS]."""

  trained: ClassVar[bool] = False
  fields: ClassVar[tuple[str, ...]] = ("caption",)

  def init(self, key):
    vector = jnp.ones(LETTERS)
    return {"params": {}, "extra": {}, "mean": vector / LETTERS, "std": vector / 2}

  def latent_spec(self, data):
    return jax.ShapeDtypeStruct((*dict(data)["caption"].shape, LETTERS), jnp.float32)

  def latent_mask(self, known):
    return known[..., None]

  def encode(self, params, batch):
    return Point(jax.nn.one_hot(batch["caption"], LETTERS))

  def decode(self, params, z):
    return z

  def finish(self, decoded):
    return jnp.argmax(decoded, -1).astype(jnp.uint8)


class Both(nn.Module):
  """Every part sees every other one."""

  width: int = 64

  @nn.compact
  def __call__(self, z, noise_level, inputs, estimate=None):
    parts = [part.reshape(len(part), -1) for _, part in sorted(z.items())]
    levels = jnp.stack([level for _, level in sorted(noise_level.items())], 1)
    flat = jnp.concatenate([*parts, levels], 1)
    h = nn.silu(nn.Dense(self.width, name="in")(flat))
    h = nn.silu(nn.Dense(self.width, name="middle")(jnp.concatenate([h, flat], 1)))
    out = nn.Dense(flat.shape[1] - levels.shape[1], name="out")(jnp.concatenate([h, flat], 1))
    ends = np.cumsum([part.shape[1] for part in parts])[:-1]
    split = jnp.split(out, ends, 1)
    return Output({name: value.reshape(z[name].shape) for (name, _), value in zip(sorted(z.items()), split)})


CODEC = Joint((("image", Identity(std=0.8)), ("text", Letters())))


def examples(rows: np.ndarray) -> dict:
  """Example i is of grey i mod LETTERS: of -0.8, 0 or 0.8, and all letters say which."""
  grey = rows % LETTERS
  image = np.uint8(np.rint(127.5 * (1 + 0.8 * (grey - 1))))
  ones = np.ones((len(rows), 2, 4, 1), np.uint8)
  return {"image": ones * image[:, None, None, None], "caption": np.uint8(grey[:, None] * np.ones((1, 5)))}
