"""Numbers, places and classes as vectors."""

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jldm.core.errors import UserError
from jldm.nn.dense import Dense

Array = jax.Array


def sinusoids(x: Array, width: int, longest: float = 10_000.0, shift: int = 0) -> Array:
  """x [...] -> [..., width] in float32: cosines, then sines, at frequencies from 1 down to 1 / longest.

  The last frequency is 1 / longest with a shift of 1, as in diffusers' DiT, and one step above with 0.
  """
  frequencies = jnp.exp(-jnp.log(longest) * jnp.arange(width // 2) / (width // 2 - shift))
  angles = x[..., None].astype(jnp.float32) * frequencies
  return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], -1)


def grid_sinusoids(height: int, width: int, features: int) -> np.ndarray:
  """Positions of a height x width grid as [height * width, features].

  The first half is from the column, the second from the row, as in DiT's published weights
  (2212.09748).  features must be divisible by 4.
  """
  frequencies = 1 / 10_000 ** (np.arange(features // 4) / (features // 4))

  def wave(count: int) -> np.ndarray:  # [count, features / 2]
    angles = np.outer(np.arange(count), frequencies)
    return np.concatenate([np.sin(angles), np.cos(angles)], -1)

  rows, columns = wave(height), wave(width)
  both = [np.tile(columns, (height, 1)), np.repeat(rows, width, 0)]
  return np.concatenate(both, -1).astype(np.float32)


def grid_angles(rows: int, columns: int, features: int, leading: int = 0) -> np.ndarray:
  """Rotary angles [leading + rows * columns, features / 2]: half from the row, then half from the column.

  RoPE (Su et al. 2021, 2104.09864, eq. 15) on two axes, as in LightningDiT (2501.01423).  The
  `leading` tokens before the grid have no position and are not rotated.

  Raises:
    UserError: features are not divisible by 4.
  """
  if features % 4:
    raise UserError(f"heads {features} wide; rotary embeddings of a grid need a width divisible by 4")
  frequencies = 1 / 10_000 ** (np.arange(features // 4) / (features // 4))
  row, column = np.divmod(np.arange(rows * columns), columns)
  angles = np.concatenate([np.outer(row, frequencies), np.outer(column, frequencies)], -1)
  return np.pad(angles, ((leading, 0), (0, 0))).astype(np.float32)


def rotate(x: Array, angles: Array) -> Array:
  """Rotates each pair of features (2 i, 2 i + 1) of x [B, L, N, D] by angles [L, D / 2], in float32."""
  even, odd = (x[..., i::2].astype(jnp.float32) for i in (0, 1))
  cos, sin = (f(angles)[:, None] for f in (jnp.cos, jnp.sin))  # [L, 1, D / 2]
  pairs = jnp.stack([even * cos - odd * sin, odd * cos + even * sin], -1)  # [B, L, N, D / 2, 2]
  return pairs.reshape(x.shape).astype(x.dtype)  # [B, L, N, D]


class LevelEmbedding(nn.Module):
  """A scalar per sample, about -4 to 1, as a vector: sinusoids of 1000 x, then two dense layers.

  DDPM (2006.11239), appendix B.
  """

  width: int
  frequencies: int = 256
  dtype: str = "float32"
  frequency_shift: int = 0  # of `sinusoids`

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """x [B] -> [B, width]."""
    init = nn.initializers.normal(0.02)
    waves = sinusoids(1000 * x, self.frequencies, shift=self.frequency_shift)  # [B, frequencies]
    h = Dense(self.width, kernel_init=init, dtype=self.dtype, name="in")(waves)
    return Dense(self.width, kernel_init=init, dtype=self.dtype, name="out")(nn.silu(h))


class LabelEmbedding(nn.Module):
  """One vector per class and one for the unknown class, -1."""

  classes: int
  width: int

  @nn.compact
  def __call__(self, labels: Array) -> Array:
    """labels int [B] in -1 .. classes - 1 -> [B, width]."""
    table = self.param("table", nn.initializers.normal(0.02), (self.classes + 1, self.width), jnp.float32)
    return jnp.take(table, jnp.where(labels < 0, self.classes, labels), axis=0)


class VectorEmbedding(nn.Module):
  """Two dense layers on a vector: of Stable Diffusion XL's text and sizes (2307.01952, section 2.2)."""

  width: int
  dtype: str = "float32"

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """x [B, D] -> [B, width]."""
    h = nn.silu(Dense(self.width, dtype=self.dtype, name="in")(x))
    return Dense(self.width, dtype=self.dtype, name="out")(h)
