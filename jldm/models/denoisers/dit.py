"""Diffusion transformer, Peebles & Xie 2023 (2212.09748)."""

from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from jldm.core.errors import UserError
from jldm.core.specs import Output
from jldm.models.denoisers.inputs import Inputs, condition_vectors, read_tokens, with_concat, with_estimate
from jldm.models.denoisers.log_variance import LogVariance
from jldm.nn.dense import Dense
from jldm.nn.embedding import grid_angles, grid_sinusoids
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
  """Patches of latents as tokens, `depth` scanned copies of `block`, and patches back to latents.

  block: the template of the blocks.
  classes: 0 is unconditional.
  token_width: if above 0, the blocks attend to further tokens of that width, such as a text's.  With
    JointBlock these go through the blocks too.
  in_context: the condition vectors are also tokens before the patches (section 3.2), the only way
    for a block that is not modulated.
  rotary: rotary position embeddings in attention, besides the fixed sinusoids.
  target_time: reads the noise level of a second time, the end of a flow map's step.
  guidance_scale: reads the scale that a distilled network imitates.
  self_conditioning: reads an earlier estimate of the data.
  log_variance: learns one number per sample from the noise level.
  frequency_shift: 1 has the frequencies of diffusers' DiT, which are not those of the original.
  out_channels: 0 is as many as z; twice as many add a variance of every value.
  remat: what each block keeps for the backward pass, by its name in jldm.nn.remat.
  unroll: the number of blocks in the scan's body; all of them is faster on a CPU, but compiles longer.
  """

  block: Block = ModulatedBlock(heads=6)  # its dtype is replaced by this network's
  patch: int = 2
  width: int = 384
  depth: int = 12
  classes: int = 0
  token_width: int = 0
  in_context: bool = False
  rotary: bool = False
  target_time: bool = False
  guidance_scale: bool = False
  self_conditioning: bool = False
  log_variance: bool = False
  frequency_shift: int = 0
  out_channels: int = 0
  remat: str = "none"
  unroll: int = 1
  dtype: str = "float32"

  @nn.compact
  def __call__(self, z: Array, noise_level: Array, inputs: Inputs, estimate: Array | None = None) -> Output:
    """z [B, H, W, C] at noise_level [B], about -4 to 1 -> values [B, H, W, C] in float32.

    `inputs` are those of jldm.models.denoisers.inputs, estimate [B, H, W, C].  A network that was
    initialised with `concat` or `vector` is always called with it.

    Raises:
      UserError: H or W is not divisible by `patch`, fields contradict each other or C, or inputs do
        not fit the fields.
    """
    self.check_latents(z)
    tokens, mask = read_tokens(inputs, self.token_width) if self.token_width else (None, None)
    template = self.block.clone(parent=self, name="blocks", dtype=self.dtype)
    rows, columns = z.shape[1] // self.patch, z.shape[2] // self.patch
    h = with_estimate(z, estimate) if self.self_conditioning else z  # [B, H, W, C or 2 C]
    x = self.patches(with_concat(h, inputs))  # [B, L, width]
    vectors = condition_vectors(  # [B, width] each
      self, noise_level, inputs, self.width, self.classes, frequency_shift=self.frequency_shift
    )
    leading = len(vectors) if self.in_context else 0
    if leading:
      x = jnp.concatenate([jnp.stack(vectors, 1), x], 1)  # [B, leading + L, width]
    angles = grid_angles(rows, columns, self.width // template.heads, leading) if self.rotary else None
    if template.joint:
      tokens = self.dense(self.width, nn.initializers.xavier_uniform(), "tokens")(tokens)  # [B, M, width]
      x, _ = self.blocks(template, (x, tokens), sum(vectors), angles, None, mask)
    else:
      x = self.blocks(template, x, sum(vectors), angles, tokens, mask)
    x = x[:, leading:]  # [B, L, width]
    x = block_norm(template, "norm")(x)  # [B, L, width]
    if template.modulates:
      x = modulated(x, *Modulation(2, self.width, self.dtype, name="modulation")(sum(vectors)))
    out_channels = self.out_channels or z.shape[-1]
    zeros = nn.initializers.zeros_init()
    x = self.dense(self.patch**2 * out_channels, zeros, "out")(x)  # [B, L, p p out_channels]
    x = x.reshape(len(z), rows, columns, -1)  # [B, rows, columns, p p out_channels]
    x = depth_to_space(x, self.patch).astype(jnp.float32)  # [B, H, W, out_channels]
    if out_channels == 2 * z.shape[-1]:
      value, variance = jnp.split(x, 2, -1)  # [B, H, W, C] each
      return Output(value, variance=variance)
    return Output(x, LogVariance(name="log_variance")(noise_level) if self.log_variance else None)

  def check_latents(self, z: Array) -> None:
    _, h, w, channels = z.shape
    if h % self.patch or w % self.patch:
      raise UserError(f"latents of {h}x{w}; expected sides divisible by patch={self.patch}")
    if self.out_channels not in (0, channels, 2 * channels):
      raise UserError(
        f"out_channels={self.out_channels}; expected 0, or {channels} or {2 * channels} for z of {channels}"
      )
    if self.log_variance and self.out_channels == 2 * channels:
      raise UserError(
        f"log_variance=True and out_channels={self.out_channels} learn it twice; expected one of them"
      )
    if not (self.block.modulates or self.in_context):
      raise UserError(f"{type(self.block).__name__} does not see the noise level; expected in_context=True")
    if self.block.joint and not self.token_width:
      raise UserError(f"token_width=0 with {type(self.block).__name__}; expected the width of its tokens")

  def dense(self, features: int, init: nn.initializers.Initializer, name: str) -> Dense:
    return Dense(features, kernel_init=init, dtype=self.dtype, name=name)

  def patches(self, x: Array) -> Array:
    """[B, H, W, C] -> its embedded patches with position embeddings, [B, L, width], row by row."""
    x = space_to_depth(x, self.patch)  # [B, rows, columns, p p C]
    b, rows, columns, features = x.shape
    x = x.reshape(b, rows * columns, features)  # [B, L, p p C]
    x = self.dense(self.width, nn.initializers.xavier_uniform(), "in")(x)  # [B, L, width]
    return x + grid_sinusoids(rows, columns, self.width).astype(self.dtype)

  def blocks(
    self,
    block: Block,
    x: Any,
    condition: Array,
    angles: Array | None,
    tokens: Array | None,
    mask: Array | None,
  ) -> Any:
    """All blocks as one scan, x [B, L, width] -> [B, L, width]: the program is as long as one block.

    Joint blocks take and give x with its tokens.  Values that blocks sow are stacked, [depth, ...].
    """
    call = lambda block, x, *condition: (block(x, *condition), None)
    scanned = nn.scan(
      remat(call, self.remat, prevent_cse=self.unroll >= self.depth),  # if unrolled, no loop prevents it
      variable_axes={"params": 0, "intermediates": 0},
      split_rngs={"params": True},
      in_axes=(nn.broadcast,) * 4,
      length=self.depth,
      unroll=self.unroll,
      metadata_params={nn.PARTITION_NAME: None},
    )
    return scanned(block, x, condition, angles, tokens, mask)[0]


def dit(size: str, block: Block = DiT.block, **fields) -> DiT:
  """A DiT of a published size, "S" to "XL": `dit("XL", patch=2, classes=1000)`.

  Raises:
    UserError: no such size.
  """
  if size not in SIZES:
    raise UserError(f"size={size!r}; expected one of {list(SIZES)}")
  depth, width, heads = SIZES[size]
  return DiT(block=block.clone(heads=heads), width=width, depth=depth, **fields)
