"""Diffusion transformer, Peebles & Xie 2023 (2212.09748)."""

from flax import linen as nn
import jax
import jax.numpy as jnp

from jldm.models.conditioners.label import LabelEmbedding
from jldm.nn.embedding import LevelEmbedding, grid_sinusoids
from jldm.nn.resample import depth_to_space, space_to_depth
from jldm.nn.transformer import ModulatedBlock, Modulation, modulated

Array = jax.Array


class DiT(nn.Module):
  """Patches of latents as tokens, `depth` scanned blocks modulated by time and class, patches back.

  `classes` = 0 is unconditional.  `remat` recomputes each block in the backward pass: memory of one block, a third
  more time.  `unroll` blocks stand in the scan's body: all of them is faster on a CPU, and compiles longer.
  """

  patch: int = 2
  width: int = 384
  depth: int = 12
  heads: int = 6
  classes: int = 0
  mlp_ratio: float = 4.0
  remat: bool = False
  unroll: int = 1
  dtype: str = "float32"

  @nn.compact
  def __call__(self, z: Array, level: Array, labels: Array) -> Array:
    """z [B, H, W, C] at level [B] in [0, 1], labels int [B] (-1: unknown) -> [B, H, W, C] in float32.

    Raises:
      ValueError: H or W is not divisible by `patch`.
    """
    b, h, w, channels = z.shape
    if h % self.patch or w % self.patch:
      raise ValueError(f"latents of {h}x{w}; expected sides divisible by patch={self.patch}")
    dense = lambda features, init, name: nn.Dense(features, kernel_init=init, dtype=self.dtype, name=name)
    rows, columns = h // self.patch, w // self.patch
    x = space_to_depth(z, self.patch).reshape(b, rows * columns, -1)  # [B, L, p p C]
    x = dense(self.width, nn.initializers.xavier_uniform(), "in")(x)
    x = x + grid_sinusoids(rows, columns, self.width).astype(self.dtype)
    condition = LevelEmbedding(self.width, dtype=self.dtype, name="level")(level)
    if self.classes:
      condition = condition + LabelEmbedding(self.classes, self.width, name="label")(labels).astype(self.dtype)
    x = self.blocks(x, condition)
    shift, scale = Modulation(2, self.width, self.dtype, name="modulation")(condition)
    x = dense(self.patch**2 * channels, nn.initializers.zeros_init(), "out")(modulated(x, shift, scale))
    x = depth_to_space(x.reshape(b, rows, columns, -1), self.patch)
    return x.astype(jnp.float32)

  def blocks(self, x: Array, condition: Array) -> Array:
    """All blocks as one scan: the program is as long as one block."""
    block = nn.remat(ModulatedBlock, prevent_cse=False) if self.remat else ModulatedBlock
    scanned = nn.scan(
      lambda block, x, condition: (block(x, condition), None),
      variable_axes={"params": 0},
      split_rngs={"params": True},
      in_axes=nn.broadcast,
      length=self.depth,
      unroll=self.unroll,
      metadata_params={nn.PARTITION_NAME: None},
    )
    module = block(self.heads, self.mlp_ratio, self.dtype, name="blocks")
    return scanned(module, x, condition)[0]
