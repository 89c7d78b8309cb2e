"""Diffusion transformer, Peebles & Xie 2023 (2212.09748)."""

from flax import linen as nn
import jax
import jax.numpy as jnp

from jldm.core.errors import UserError
from jldm.models.conditioners.concat import joined
from jldm.models.conditioners.estimate import beside
from jldm.models.conditioners.label import LabelEmbedding
from jldm.models.denoisers.log_variance import LogVariance
from jldm.nn.embedding import LevelEmbedding, grid_angles, grid_sinusoids
from jldm.nn.remat import remat
from jldm.nn.resample import depth_to_space, space_to_depth
from jldm.nn.transformer import Block, ModulatedBlock, Modulation, block_norm, modulated

Array = jax.Array

SIZES = {  # table 1 of the paper: depth, width, heads
  "S": (12, 384, 6),
  "B": (12, 768, 12),
  "L": (24, 1024, 16),
  "XL": (28, 1152, 16),
}


class DiT(nn.Module):
  """Patches of latents as tokens, `depth` scanned copies of `block` conditioned on time and class, patches back.

  `classes` = 0 is unconditional.  `in_context`: time and class stand as tokens before the patches too (section 3.2),
  the only way for a block that is not modulated.  `rotary` embeds places in attention beside the fixed sinusoids.
  `self_conditioning` reads an earlier estimate of the data.  `log_variance` learns one number a sample from the level;
  `out_channels` of twice those of z (0: as many) one for each value, the second half of the output.  `remat` names
  what each block keeps for the backward pass, of jldm.nn.remat.  `unroll` blocks stand in the scan's body: all of them is
  faster on a CPU, and compiles longer.
  """

  block: Block = ModulatedBlock(heads=6)  # a template: its dtype is replaced by this one's
  patch: int = 2
  width: int = 384
  depth: int = 12
  classes: int = 0
  in_context: bool = False
  rotary: bool = False
  self_conditioning: bool = False
  log_variance: bool = False
  out_channels: int = 0
  remat: str = "none"
  unroll: int = 1
  dtype: str = "float32"

  @nn.compact
  def __call__(
    self, z: Array, level: Array, labels: Array, estimate: Array | None = None, *, concat: Array | None = None
  ) -> Array | tuple[Array, Array]:
    """z [B, H, W, C] at level [B], about -4 to 1, labels int [B] (-1: unknown) -> [B, H, W, C] in float32.

    With `log_variance`, or twice the channels: (that, log variance [B, 1, 1, 1] or [B, H, W, C]).  `concat`
    [B, H, W, Cc] is what is known of the data, beside z; a model that is made with it is always called with it.

    Raises:
      UserError: H or W is not divisible by `patch`, or fields that contradict each other or C.
    """
    self.check(z)
    template = self.block.clone(parent=self, name="blocks", dtype=self.dtype)
    rows, columns = z.shape[1] // self.patch, z.shape[2] // self.patch
    x = self.tokens(joined(beside(z, estimate) if self.self_conditioning else z, concat))
    conditions = [LevelEmbedding(self.width, dtype=self.dtype, name="level")(level)]
    if self.classes:
      conditions.append(LabelEmbedding(self.classes, self.width, name="label")(labels).astype(self.dtype))
    leading = len(conditions) if self.in_context else 0
    if leading:
      x = jnp.concatenate([jnp.stack(conditions, 1), x], 1)  # [B, leading + L, width]
    angles = grid_angles(rows, columns, self.width // template.heads, leading) if self.rotary else None
    x = self.blocks(template, x, sum(conditions), angles)[:, leading:]
    x = block_norm(template, "norm")(x)
    if template.modulates:
      x = modulated(x, *Modulation(2, self.width, self.dtype, name="modulation")(sum(conditions)))
    out_channels = self.out_channels or z.shape[-1]
    x = self.dense(self.patch**2 * out_channels, nn.initializers.zeros_init(), "out")(x)
    x = depth_to_space(x.reshape(len(z), rows, columns, -1), self.patch).astype(jnp.float32)
    if self.log_variance:
      return x, LogVariance(name="log_variance")(level)
    return x if out_channels == z.shape[-1] else tuple(jnp.split(x, 2, -1))

  def check(self, z: Array) -> None:
    _, h, w, channels = z.shape
    if h % self.patch or w % self.patch:
      raise UserError(f"latents of {h}x{w}; expected sides divisible by patch={self.patch}")
    if self.out_channels not in (0, channels, 2 * channels):
      raise UserError(f"out_channels={self.out_channels}; expected 0, or {channels} or {2 * channels} for z of {channels}")
    if self.log_variance and self.out_channels == 2 * channels:
      raise UserError(f"log_variance=True and out_channels={self.out_channels} learn it twice; expected one of them")
    if not (self.block.modulates or self.in_context):
      raise UserError(f"{type(self.block).__name__} does not see the level; expected in_context=True")

  def dense(self, features: int, init: nn.initializers.Initializer, name: str) -> nn.Dense:
    return nn.Dense(features, kernel_init=init, dtype=self.dtype, name=name)

  def tokens(self, x: Array) -> Array:
    """[B, H, W, C] -> its patches with their places, [B, L, width], row by row."""
    x = space_to_depth(x, self.patch)  # [B, rows, columns, p p C]
    b, rows, columns, features = x.shape
    x = self.dense(self.width, nn.initializers.xavier_uniform(), "in")(x.reshape(b, rows * columns, features))
    return x + grid_sinusoids(rows, columns, self.width).astype(self.dtype)

  def blocks(self, block: Block, x: Array, condition: Array, angles: Array | None) -> Array:
    """All blocks as one scan: the program is as long as one block."""
    call = lambda block, x, condition, angles: (block(x, condition, angles), None)
    scanned = nn.scan(
      remat(call, self.remat, prevent_cse=self.unroll >= self.depth),  # then nothing is left of the loops
      variable_axes={"params": 0},
      split_rngs={"params": True},
      in_axes=(nn.broadcast, nn.broadcast),
      length=self.depth,
      unroll=self.unroll,
      metadata_params={nn.PARTITION_NAME: None},
    )
    return scanned(block, x, condition, angles)[0]


def dit(size: str, block: Block = DiT.block, **fields) -> DiT:
  """A DiT of a published size, "S" to "XL", with the size's heads in the block: `dit("XL", patch=2, classes=1000)`.

  Raises:
    UserError: no such size.
  """
  if size not in SIZES:
    raise UserError(f"size={size!r}; expected one of {list(SIZES)}")
  depth, width, heads = SIZES[size]
  return DiT(block=block.clone(heads=heads), width=width, depth=depth, **fields)
