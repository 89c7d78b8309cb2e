"""Downsampling and upsampling of images by 2, and patches."""

from flax import linen as nn
import jax
import jax.numpy as jnp

Array = jax.Array


def space_to_depth(x: Array, patch: int) -> Array:
  """[B, H p, W p, C] -> [B, H, W, p p C]."""
  b, h, w, c = x.shape
  x = x.reshape(b, h // patch, patch, w // patch, patch, c)  # [B, H, p, W, p, C]
  x = x.transpose(0, 1, 3, 2, 4, 5)  # [B, H, W, p, p, C]
  return x.reshape(b, h // patch, w // patch, patch * patch * c)


def depth_to_space(x: Array, patch: int) -> Array:
  """[B, H, W, p p C] -> [B, H p, W p, C], the inverse of `space_to_depth`."""
  b, h, w, c = x.shape
  x = x.reshape(b, h, w, patch, patch, c // patch**2)  # [B, H, W, p, p, C]
  x = x.transpose(0, 1, 3, 2, 4, 5)  # [B, H, p, W, p, C]
  return x.reshape(b, h * patch, w * patch, c // patch**2)


def unshuffle(x: Array, patch: int) -> Array:
  """[B, H p, W p, C] -> [B, H, W, C p p]: `space_to_depth` with places within channels, as in
  PyTorch's pixel_unshuffle.
  """
  b, h, w, c = x.shape
  x = x.reshape(b, h // patch, patch, w // patch, patch, c)  # [B, H, p, W, p, C]
  x = x.transpose(0, 1, 3, 5, 2, 4)  # [B, H, W, C, p, p]
  return x.reshape(b, h // patch, w // patch, c * patch * patch)


def shuffle(x: Array, patch: int) -> Array:
  """[B, H, W, C p p] -> [B, H p, W p, C], the inverse of `unshuffle`."""
  b, h, w, c = x.shape
  x = x.reshape(b, h, w, c // patch**2, patch, patch)  # [B, H, W, C, p, p]
  x = x.transpose(0, 1, 4, 2, 5, 3)  # [B, H, p, W, p, C]
  return x.reshape(b, h * patch, w * patch, c // patch**2)


def halve(x: Array) -> Array:
  """[B, H, W, C] -> [B, H / 2, W / 2, C], means of 2x2."""
  b, h, w, c = x.shape
  return x.reshape(b, h // 2, 2, w // 2, 2, c).mean((2, 4))


def double(x: Array) -> Array:
  """[B, H, W, C] -> [B, 2 H, 2 W, C], the nearest neighbour."""
  return jnp.repeat(jnp.repeat(x, 2, 1), 2, 2)


class Downsample(nn.Module):
  """A 3x3 convolution of stride 2 with padding (before, after) on each axis.

  Published codecs pad only after, U-Nets on both sides.
  """

  features: int
  dtype: str = "float32"
  padding: tuple[int, int] = (0, 1)
  use_bias: bool = True

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """x [B, H, W, C] -> [B, H / 2, W / 2, features]."""
    pad = [tuple(self.padding)] * 2
    conv = nn.Conv(self.features, (3, 3), 2, pad, use_bias=self.use_bias, dtype=self.dtype, name="conv")
    return conv(x)


def phase_taps(kernel: Array, axis: int) -> list[Array]:
  """A 3-tap axis as two 2-tap axes, for the even and the odd places after nearest-neighbour doubling.

  An even place sees the sources (i - 1, i, i) and an odd one (i, i, i + 1).  Taps of the same source
  are added.
  """
  a, b, c = jnp.split(kernel, 3, axis)
  return [jnp.concatenate([a, b + c], axis), jnp.concatenate([a + b, c], axis)]


class Upsample(nn.Module):
  """Nearest-neighbour doubling, then a 3x3 convolution, computed as four 2x2 convolutions.

  There is one convolution per phase of the output.  This is exact, with 2.25 times fewer
  multiplications, and has the parameters of the 3x3 convolution.  (One convolution to four times the
  features is as fast forward, but thirty times slower backward on a CPU.)
  """

  features: int
  dtype: str = "float32"
  use_bias: bool = True

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """x [B, H, W, C] -> [B, 2 H, 2 W, features]."""
    b, h, w, channels = x.shape
    kernel, bias = ThreeByThree(self.features, self.use_bias, name="conv")(channels)
    x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
    phase = lambda taps, i, j: jax.lax.conv_general_dilated(
      x, taps, (1, 1), ((1 - i, i), (1 - j, j)), dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    rows = [
      jnp.stack([phase(taps, i, j) for j, taps in enumerate(phase_taps(half, 1))], 3)  # [B, H, W, 2, F]
      for i, half in enumerate(phase_taps(kernel, 0))
    ]
    doubled = jnp.stack(rows, 2)  # [B, H, 2, W, 2, F]
    doubled = doubled.reshape(b, 2 * h, 2 * w, self.features)
    return doubled + bias.astype(self.dtype) if self.use_bias else doubled


class ThreeByThree(nn.Module):
  """The parameters of a 3x3 convolution, for a layer that applies them in its own way."""

  features: int
  use_bias: bool = True

  @nn.compact
  def __call__(self, channels: int) -> tuple[Array, Array | None]:
    """-> kernel [3, 3, channels, features], bias [features] or None."""
    kernel = self.param(
      "kernel", nn.initializers.lecun_normal(), (3, 3, channels, self.features), jnp.float32
    )
    if not self.use_bias:
      return kernel, None
    return kernel, self.param("bias", nn.initializers.zeros_init(), (self.features,), jnp.float32)
