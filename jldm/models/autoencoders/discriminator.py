"""The patch discriminator: one logit a patch, "real" above zero.

Isola et al. 2017 (1611.07004), section 3.3, in the form of VQGAN, Esser et al. 2021 (2012.09841),
with group norm in place of batch norm, so that an image's logits depend on it alone.
"""

from flax import linen as nn
import jax
import jax.numpy as jnp

from jldm.core.errors import UserError
from jldm.nn.norm import GroupNorm

Array = jax.Array


class PatchDiscriminator(nn.Module):
  """4x4 convolutions with leaky ReLU: every width but the last halves the sides, the last and the
  logits take one more off.

  Four widths see 70x70 pixels a logit, three 34x34, two 16x16.  All widths but the first are
  divisible by `groups`.
  """

  widths: tuple[int, ...] = (64, 128, 256, 512)
  groups: int = 32
  dtype: str = "float32"

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """x [B, H, W, C] in [-1, 1] -> logits [B, h, w] in float32, h = H / 2^(len(widths) - 1) - 2, rounded
    down.

    Raises:
      UserError: sides so small that no patch is left.
    """
    smallest = 3 * 2 ** (len(self.widths) - 1)
    if min(x.shape[1:3]) < smallest:
      raise UserError(
        f"images of {x.shape[1]}x{x.shape[2]} are too small for a discriminator of {len(self.widths)} "
        f"widths, "
        f"which needs {smallest}; use fewer widths"
      )

    def convolution(features: int, stride: int, bias: bool, name: str) -> nn.Conv:
      init = nn.initializers.normal(0.02)
      return nn.Conv(
        features, (4, 4), stride, padding=1, use_bias=bias, kernel_init=init, dtype=self.dtype, name=name
      )

    h = x
    for i, width in enumerate(self.widths):
      last = i == len(self.widths) - 1
      h = convolution(width, 1 if last else 2, i == 0, f"conv{i}")(h)
      h = GroupNorm(self.groups, dtype=self.dtype, name=f"norm{i}")(h) if i else h
      h = nn.leaky_relu(h, 0.2)
    return convolution(1, 1, True, "out")(h)[..., 0].astype(jnp.float32)
