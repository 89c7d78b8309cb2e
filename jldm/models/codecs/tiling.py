"""Autoencoders in tiles, for less memory, by one of two rules.  A tile as large as the image is the image.

`Exact` gives the output of the whole decoder of a KL or VQ autoencoder.  The middle block, and levels with
attention, run on the whole image, with some of the queries at a time.  All further blocks run tile by tile,
one block after the other, and only the output of a block is kept whole.  A tile of the output is computed
from a window that is wider by the block's receptive field.  A group norm needs the moments of the whole
image, so a block runs over all tiles once for each of its norms, and once more for its output,

  (1)  x -> moments(x);  x -> y = conv1(silu(norm1(x))) -> moments(y);  x -> x + conv2(silu(norm2(y)))

where moments of tiles are merged as in Chan et al. 1979.  The first convolution of a block is computed
twice.  `thrifty` keeps only the outputs of levels: a level of n norms runs over all tiles n + 1 times.

`Blended` treats each tile as an image, with its own moments and attention, and blends overlapping tiles
linearly.  It encodes and decodes with any autoencoder in one pass, and differs from the whole network.
"""

from collections.abc import Callable, Iterator
import dataclasses
import math
from typing import Any, NamedTuple

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jldm.core.errors import UserError
from jldm.models.autoencoders.kl import Decoder, KLAutoencoder, check_images, shared_fields
from jldm.models.autoencoders.vq import VQAutoencoder
from jldm.nn.attention import attend
from jldm.nn.norm import GroupNorm
from jldm.nn.resample import Upsample, depth_to_space

Array = jax.Array

QUERIES = 1024  # of the middle's attention at a time


@dataclasses.dataclass(frozen=True)
class Exact:
  """Tiles of as many pixels a side as `tile` latents are, smaller where there are more channels;
  coarse levels take few.

  Raises:
    UserError: a tile below 1; in `decode`, an autoencoder other than KL and VQ.
  """

  tile: int = 32
  thrifty: bool = False

  def __post_init__(self):
    check_tile(self.tile)

  def decode(self, network: Any, variables: Any, z: Array) -> Array:
    """Raw z [B, h, w, c] -> images [B, H, W, C] as `network.decode` does, one after the other."""
    if max(z.shape[1:3]) <= self.tile:
      return network.apply(variables, z, method="decode")
    if not isinstance(network, (KLAutoencoder, VQAutoencoder)):
      raise UserError(
        f"exact tiles of {type(network).__name__}; expected a KL or VQ autoencoder, or blended tiles"
      )
    h = network.apply(variables, z, method="decoder_input")
    return jax.lax.map(lambda each: self.decoded(network, variables["params"]["decoder"], each[None])[0], h)

  def decoded(self, network: Any, params: dict, h: Array) -> Array:
    """What the decoder is fed, [1, h, w, C] -> image [1, H, W, C]."""
    levels = len(network.widths)
    finer = min(network.attention, default=levels)  # levels that attend to nothing
    decoder = Decoder(network.channels, *shared_fields(network), attend_in_pieces).clone(dtype="float32")
    h = decoder.apply({"params": params}, h, levels - finer)
    segments = [*split_decoder(levels, finer, network.resnets + 1, self.thrifty)]
    h = jnp.pad(h, ((0, 0), *[(segments[0].halo,) * 2] * 2, (0, 0)))
    for segment, halo in zip(segments, [*(one.halo for one in segments[1:]), 0]):
      tile = tile_side(self.tile * 2 ** (levels - 1), network.widths[0], h.shape[-1])
      h = run_segment(segment, params, network.groups, h, halo, tile)
    return depth_to_space(h, network.patch)


def tile_side(pixels: int, finest: int, channels: int) -> int:
  """Of a tile, even: of so many channels, as many values as `pixels` a side of the `finest` level's have.

  A 3x3 convolution on a CPU gathers up to 18 values for each that goes in: of wide levels, more
  than all that is kept.
  """
  return 2 * math.ceil(pixels / 2 * min(1, math.sqrt(finest / channels)))


class Segment(NamedTuple):
  """The layers of one pass: an upsampling or "", then blocks, then optionally the end of the decoder."""

  up: str
  blocks: tuple[str, ...]
  last: bool

  @property
  def norms(self) -> int:
    """How many; a 3x3 convolution follows each, so that it sees as many places around a tile, after
    the doubling.
    """
    return 2 * len(self.blocks) + self.last

  @property
  def halo(self) -> int:
    """How many places around a tile it reads."""
    return math.ceil(self.norms / 2) + 1 if self.up else self.norms


def split_decoder(levels: int, finer: int, blocks: int, thrifty: bool) -> Iterator[Segment]:
  """The decoder of `kl` from the level below `finer` on, cut after every block, or after every level."""
  for level in reversed(range(finer)):
    up, names = (
      f"up{level + 1}" if level + 1 < levels else "",
      [f"level{level}_resnet{i}" for i in range(blocks)],
    )
    if thrifty:
      yield Segment(up, tuple(names), level == 0)
    else:
      yield from [Segment("" if i else up, (name,), False) for i, name in enumerate(names)]
  if not thrifty or not finer:
    yield Segment("", (), True)


def run_segment(segment: Segment, params: dict, groups: int, source: Array, halo: int, tile: int) -> Array:
  """source [1, h + 2 segment.halo, ...] -> what the segment gives with `halo` zeros around it, tile by
  tile.
  """
  scale, inner = 2 if segment.up else 1, [side - 2 * segment.halo for side in source.shape[1:3]]
  sides = tuple(scale * side for side in inner)
  tiles = tuple(min(tile, side) for side in sides)

  def piece(corner: Array, moments: list) -> Array:
    """A tile [1, *tiles, C] of what is fed to the norm after those whose moments are known, or of what is
    given.
    """
    reach = [side // scale + 2 * segment.halo for side in tiles]
    window = jax.lax.dynamic_slice(source, (0, *(corner // scale), 0), (1, *reach, source.shape[-1]))
    inside = lambda h: inside_image(corner, sides, tiles, h.shape[1:3])
    h = run_window(segment, params, groups, window, moments, inside)
    return crop_border(h, (h.shape[1] - tiles[0]) // 2)

  def measured(moments: list) -> GroupMoments:
    """Of what is fed to the next norm."""
    channels = jax.eval_shape(piece, jnp.zeros(2, jnp.int32), moments).shape[-1]
    add = lambda known, corner, fresh: merge_moments(known, moments_of(piece(corner, moments)[0], fresh))
    return over_tiles(
      sides, tiles, add, GroupMoments(*(jnp.zeros(shape, jnp.float32) for shape in ((), channels, channels)))
    )

  moments = []
  for _ in range(segment.norms):
    moments = [*moments, measured(moments)]
  like = jax.eval_shape(piece, jnp.zeros(2, jnp.int32), moments)
  put = lambda whole, corner, _: jax.lax.dynamic_update_slice(
    whole, piece(corner, moments), (0, *(corner + halo), 0)
  )
  # Not a constant: XLA would allocate the zeros of all segments at once, before everything else.
  zero = 0 * moments[-1].count
  return over_tiles(
    sides, tiles, put, jnp.full((1, *(side + 2 * halo for side in sides), like.shape[-1]), zero)
  )


def run_window(
  segment: Segment, params: dict, groups: int, h: Array, moments: list, inside: Callable
) -> Array:
  """A window [1, a, b, C] through a segment as far as moments are known; every convolution takes a border
  away.

  `inside` of an array is 1 where it lies in the image, else 0.
  """
  known = iter(moments)

  def convolved(conv: dict, norm: dict, h: Array) -> Array | None:
    """(1), where what lies outside of the image is zero, as padding is; None where the moments of h
    are not known yet.
    """
    statistics = next(known, None)
    if statistics is None:
      return None
    return valid_convolution(conv, nn.silu(group_norm(norm, groups, statistics, h)) * inside(h))

  if segment.up:
    doubled = Upsample(params[segment.up]["conv"]["bias"].size).apply({"params": params[segment.up]}, h)
    h = crop_border(doubled, 2 * segment.halo - segment.norms)
  for name in segment.blocks:
    block, x = params[name], h
    for i in (1, 2):
      if (y := convolved(block[f"conv{i}"], block[f"norm{i}"], h)) is None:
        return h
      h = y
    x = crop_border(x, 2)
    h = h + (valid_convolution(block["shortcut"], x) if "shortcut" in block else x)
  if segment.last and (y := convolved(params["out"], params["norm"], h)) is not None:
    return y
  return h


def valid_convolution(layer: dict, h: Array) -> Array:
  """The convolution of a layer [k, k, C, F] where it lies wholly inside."""
  out = jax.lax.conv_general_dilated(
    h, layer["kernel"], (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
  )
  return out + layer["bias"]


def crop_border(h: Array, border: int) -> Array:
  """[1, a, b, C] without so many places on each side."""
  return h[:, border : h.shape[1] - border, border : h.shape[2] - border]


def inside_image(
  corner: Array, sides: tuple[int, int], tiles: tuple[int, int], shape: tuple[int, int]
) -> Array:
  """[a, b, 1]: 1 where a window around the tile at `corner` lies in the image, else 0."""
  rows, columns = (
    (lambda place: (place >= 0) & (place < side))(at - (length - tile) // 2 + jnp.arange(length))
    for at, side, tile, length in zip(corner, sides, tiles, shape)
  )
  return (rows[:, None] & columns)[..., None].astype(jnp.float32)


class GroupMoments(NamedTuple):
  """Of the places seen so far: how many, their mean [C], and the sum of squares around it [C]."""

  count: Array
  mean: Array
  squares: Array


def moments_of(x: Array, weights: Array) -> GroupMoments:
  """Of x [a, b, C] where weights [a, b, 1] are 1 and not 0."""
  count = weights.sum()
  mean = (weights * x).sum((0, 1)) / count
  return GroupMoments(count, mean, (weights * jnp.square(x - mean)).sum((0, 1)))


def merge_moments(a: GroupMoments, b: GroupMoments) -> GroupMoments:
  count, offset = a.count + b.count, b.mean - a.mean
  return GroupMoments(
    count,
    a.mean + offset * b.count / count,
    a.squares + b.squares + jnp.square(offset) * a.count * b.count / count,
  )


def group_norm(layer: dict, groups: int, moments: GroupMoments, h: Array) -> Array:
  """`nn.norm.GroupNorm` with the moments of the whole image."""
  channels = h.shape[-1]
  pooled = lambda each: jnp.repeat(each.reshape(groups, -1).mean(-1), channels // groups)
  mean = pooled(moments.mean)
  variance = pooled(moments.squares / moments.count + jnp.square(moments.mean - mean))
  return (h - mean) * (layer["scale"] * jax.lax.rsqrt(variance + GroupNorm.epsilon)) + layer["bias"]


def over_tiles(sides: tuple[int, int], tiles: tuple[int, int], step: Callable, carry: Any) -> Any:
  """step(carry, corner [2], fresh [a, b, 1]) over tiles that cover an image, the last of a side
  shifted to end with it.

  `fresh` is 1 where no tile before was, else 0.
  """
  axes = [tile_starts(side, tile, tile) for side, tile in zip(sides, tiles)]
  corners = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 2).astype(np.int32)

  def one(carry: Any, corner: Array) -> tuple[Any, None]:
    seen = [-at % tile for at, tile in zip(corner, tiles)]  # a shifted tile begins in the one before
    rows, columns = (jnp.arange(tile) >= first for first, tile in zip(seen, tiles))
    return step(carry, corner, (rows[:, None] & columns)[..., None].astype(jnp.float32)), None

  return jax.lax.scan(one, carry, corners)[0]


def tile_starts(side: int, tile: int, stride: int) -> np.ndarray:
  """Where tiles of a side begin, `stride` apart, the last so that it ends with the side; tile <= side."""
  return np.unique(np.minimum(np.arange(0, side - tile + stride, stride), side - tile))


def attend_in_pieces(q: Array, k: Array, v: Array, mask: Array | None = None) -> Array:
  """`nn.attention.attend` for QUERIES queries at a time; mask bool [B, M]."""
  length = q.shape[1]
  pieces = jnp.pad(q, ((0, 0), (0, -length % QUERIES), (0, 0), (0, 0)))
  pieces = pieces.reshape(len(q), -1, QUERIES, *q.shape[2:]).swapaxes(0, 1)  # [pieces, B, QUERIES, N, D]
  out = jax.lax.map(lambda some: attend(some, k, v, mask), pieces).swapaxes(0, 1)
  return out.reshape(len(q), -1, *q.shape[2:])[:, :length]


@dataclasses.dataclass(frozen=True)
class Blended:
  """Tiles of `tile` latents a side, `overlap` of them blended with the next.

  Raises:
    UserError: a tile below 1, or an overlap that is not below it.
  """

  tile: int = 64
  overlap: int = 16

  def __post_init__(self):
    check_tile(self.tile)
    if not 0 <= self.overlap < self.tile:
      raise UserError(
        f"overlap={self.overlap} of tiles of {self.tile} latents; expected 0 to {self.tile - 1}"
      )

  def decode(self, network: Any, variables: Any, z: Array) -> Array:
    """Raw z [B, h, w, c] -> images [B, H, W, C]."""
    decode = lambda z: network.apply(variables, z, method="decode")
    return self.blended(decode, z, 1, network.factor)

  def encode(self, network: Any, variables: Any, images: Array) -> Any:
    """Images [B, H, W, C] in [-1, 1] -> the posterior over [B, h, w, c]."""
    if max(images.shape[1:3]) > self.tile * network.factor:
      check_images(network, images)
    encode = lambda images: network.apply(variables, images, method="encode")
    return self.blended(encode, images, network.factor, 1)

  def blended(self, f: Callable, x: Array, before: int, after: int) -> Any:
    """f of tiles of x [B, a, b, C], where a latent is `before` places of x and `after` of f(x)."""
    sides = [side // before for side in x.shape[1:3]]
    if max(sides) <= self.tile:
      return f(x)
    axes = [blending_weights(side, min(self.tile, side), self.overlap, after) for side in sides]
    reach = tuple(before * min(self.tile, side) for side in sides)
    piece = lambda corner: f(
      jax.lax.dynamic_slice(x, (0, *(before * corner), 0), (len(x), *reach, x.shape[-1]))
    )
    like = jax.eval_shape(piece, jnp.zeros(2, jnp.int32))
    zero = jax.tree.map(
      lambda out: jnp.zeros((len(x), *(after * side for side in sides), out.shape[-1])), like
    )

    def step(whole: Any, at: tuple) -> tuple[Any, None]:
      (y, rows), (x, columns) = at
      corner, weights = jnp.stack([y, x]), (rows[:, None] * columns)[..., None]

      def added(whole: Array, tile: Array) -> Array:
        place = (0, *(after * corner), 0)
        return jax.lax.dynamic_update_slice(
          whole, jax.lax.dynamic_slice(whole, place, tile.shape) + weights * tile, place
        )

      return jax.tree.map(added, whole, piece(corner)), None

    grid = np.meshgrid(*(np.arange(len(begins)) for begins, _ in axes), indexing="ij")
    places = [(begins[i.ravel()], weights[i.ravel()]) for i, (begins, weights) in zip(grid, axes)]
    return jax.lax.scan(step, zero, tuple(places))[0]


def blending_weights(side: int, tile: int, overlap: int, scale: int) -> tuple[np.ndarray, np.ndarray]:
  """-> where tiles of a side begin, int [n], and the weights of their places [n, scale tile], which
  add up to 1 everywhere.
  """
  begins = tile_starts(side, tile, max(tile - overlap, 1))
  ramp = (np.arange(scale * tile) + 0.5) / (scale * overlap + 1e-9)
  weights = np.minimum(1, np.minimum(ramp, ramp[::-1]))
  total = np.zeros(scale * side)
  for begin in begins:
    total[scale * begin : scale * (begin + tile)] += weights
  each = [weights / total[scale * begin : scale * (begin + tile)] for begin in begins]
  return begins.astype(np.int32), np.stack(each).astype(np.float32)


def check_tile(tile: int) -> None:
  if tile < 1:
    raise UserError(f"tile={tile}; expected at least 1 latent")
