"""Random masks of the known part of an image, or of its latents.

A mask is [B, h, w, 1], 1 where known and 0 where hidden; row b depends only on keys[b].  Shapes have
coordinates from 0 to 1 on any grid.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jldm.core.errors import UserError
from jldm.core.keys import split_each

Array = jax.Array

POINTS = 4  # of the path of a brush


def box(key: Array, y: Array, x: Array) -> Array:
  """A rectangle with sides of 0.25 to 0.75 around any place; the image's border may cut it."""
  key_size, key_place = jax.random.split(key)
  sides = jax.random.uniform(key_size, (2,), jnp.float32, minval=0.25, maxval=0.75)
  place = jax.random.uniform(key_place, (2,), jnp.float32)
  return (jnp.abs(y - place[0]) < sides[0] / 2) & (jnp.abs(x - place[1]) < sides[1] / 2)


def frame(key: Array, y: Array, x: Array) -> Array:
  """All but a rectangle."""
  return ~box(key, y, x)


def half_plane(key: Array, y: Array, x: Array) -> Array:
  """One side of a line of any direction that passes within 0.25 of the centre."""
  key_angle, key_offset = jax.random.split(key)
  angle = jax.random.uniform(key_angle, (), jnp.float32, maxval=2 * jnp.pi)
  offset = jax.random.uniform(key_offset, (), jnp.float32, minval=-0.25, maxval=0.25)
  return jnp.cos(angle) * (y - 0.5) + jnp.sin(angle) * (x - 0.5) > offset


def strokes(key: Array, y: Array, x: Array) -> Array:
  """A brush stroke, 0.1 to 0.25 wide, from point to point."""
  key_points, key_width = jax.random.split(key)
  points = jax.random.uniform(key_points, (POINTS, 2), jnp.float32)
  place = jnp.stack([y, x], -1)[..., None, :]  # [h, w, 1, 2]
  start, way = points[:-1], points[1:] - points[:-1]
  along = jnp.clip(((place - start) * way).sum(-1) / jnp.maximum((way**2).sum(-1), 1e-6), 0, 1)
  distance = jnp.linalg.norm(place - start - along[..., None] * way, axis=-1).min(-1)
  return distance < 0.5 * jax.random.uniform(key_width, (), jnp.float32, minval=0.1, maxval=0.25)


# (key, y, x [h, w] in 0 ... 1) -> what is hidden, bool [h, w]
SHAPES: dict[str, Callable[[Array, Array, Array], Array]] = {
  "box": box,
  "frame": frame,
  "half_plane": half_plane,
  "strokes": strokes,
}


def draw_masks(shapes: tuple[str, ...], keys: Array, size: tuple[int, int]) -> Array:
  """A mask [B, h, w, 1] of (h, w) = `size` for each key [B], of one of the shapes."""
  y, x = jnp.meshgrid(*((jnp.arange(side) + 0.5) / side for side in size), indexing="ij")

  def hidden(key: Array, choice: Array) -> Array:
    return jnp.stack([SHAPES[shape](key, y, x) for shape in shapes])[choice]

  key_choice, key_shape = split_each(keys)
  choice = jax.vmap(lambda key: jax.random.randint(key, (), 0, len(shapes)))(key_choice)
  return 1 - jax.vmap(hidden)(key_shape, choice)[..., None].astype(jnp.float32)


def check_shapes(shapes: tuple[str, ...]) -> None:
  if not shapes or not set(shapes) <= set(SHAPES):
    raise UserError(f"shapes={shapes}; expected some of {sorted(SHAPES)}")


def coarsen(known: Array, factor: int) -> Array:
  """Places of a `factor` times coarser grid of which every pixel is known: [B, H, W, 1] -> [B, h, w, 1]."""
  return blocks(known, factor).min((2, 4))


def known_share(known: Array, factor: int) -> Array:
  """The known share of each place of a `factor` times coarser grid: [B, H, W, 1] -> [B, h, w, 1]."""
  return blocks(known, factor).mean((2, 4))


def blocks(known: Array, factor: int) -> Array:
  b, h, w, _ = known.shape
  return known.reshape(b, h // factor, factor, w // factor, factor, 1)  # [B, h, factor, w, factor, 1]


def refine(known: Array, factor: int) -> Array:
  """The pixels of the known places: [B, h, w, 1] -> [B, H, W, 1]."""
  return jnp.repeat(jnp.repeat(known, factor, 1), factor, 2)


def fill_hidden(images: Array, known: Array) -> Array:
  """Images [B, H, W, C] whose hidden pixels are the mean of the known ones, known [B, H, W, 1].

  So no encoder sees what is hidden.
  """
  count = jnp.sum(known, (1, 2), keepdims=True)
  mean = jnp.sum(images * known, (1, 2), keepdims=True) / jnp.maximum(count, 1)
  return jnp.where(known > 0, images, mean)
