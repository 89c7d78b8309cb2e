"""The vision transformer whose class token DINOv2 and CLIP take for a picture: Dosovitskiy et al. 2021
(2010.11929), eq. 1-4.
"""

from collections.abc import Callable, Mapping

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jldm.metrics.extractors import weights
from jldm.metrics.extractors.extractor import Extracted
from jldm.nn.attention import SelfAttention
from jldm.nn.dense import Dense
from jldm.nn.norm import LayerNorm

Array = jax.Array
Activation = Callable[[Array], Array]


class ViTBlock(nn.Module):
  """Attention and MLP after their norms, each scaled by a learned vector where `layer_scale`
  (2103.17239, eq. 4).
  """

  heads: int
  activation: Activation
  layer_scale: bool
  epsilon: float

  @nn.compact
  def __call__(self, x: Array) -> tuple[Array, None]:
    """x [B, L, C] -> the same, and nothing that a scan would stack."""
    width = x.shape[-1]
    norm = lambda i: LayerNorm(epsilon=self.epsilon, name=f"norm{i}")
    scaled = lambda i, h: (
      h * self.param(f"scale{i}", nn.initializers.ones_init(), (width,), jnp.float32)
      if self.layer_scale
      else h
    )
    x = x + scaled(1, SelfAttention(self.heads, name="attention")(norm(1)(x)))
    h = self.activation(Dense(4 * width, name="in")(norm(2)(x)))
    return x + scaled(2, Dense(width, name="out")(h)), None


class ViT(nn.Module):
  """Patches of pixels, a class token, places, `depth` blocks, and the class token normed, projected
  where `projection`.

  The table of places has `table` x `table` rows; for another number of patches it is interpolated
  as torch does.
  """

  width: int
  depth: int
  heads: int
  patch: int
  table: int
  activation: Activation
  epsilon: float
  layer_scale: bool = False
  patch_bias: bool = True
  first_norm: bool = False
  projection: int = 0

  @nn.compact
  def __call__(self, pixels: Array) -> Array:
    """Pixels float [B, H, W, 3] -> [B, projection or width]."""
    zeros, patch = nn.initializers.zeros_init(), (self.patch, self.patch)
    h = nn.Conv(self.width, patch, patch, "VALID", use_bias=self.patch_bias, name="patches")(pixels)
    down, across = (jnp.asarray(bicubic_weights(self.table, size)) for size in h.shape[1:3])
    token = self.param("token", zeros, (self.width,), jnp.float32)
    places = self.param("places", zeros, (1 + self.table**2, self.width), jnp.float32)
    table = places[1:].reshape(self.table, self.table, self.width)
    h = (h + jnp.einsum("yi,xj,ijc->yxc", down, across, table)).reshape(len(h), -1, self.width)
    h = jnp.concatenate([jnp.broadcast_to(token + places[0], (len(h), 1, self.width)), h], 1)
    if self.first_norm:
      h = LayerNorm(epsilon=self.epsilon, name="norm_first")(h)
    scan = nn.scan(ViTBlock, variable_axes={"params": 0}, split_rngs={"params": True}, length=self.depth)
    h, _ = scan(self.heads, self.activation, self.layer_scale, self.epsilon, name="blocks")(h)
    h = LayerNorm(epsilon=self.epsilon, name="norm_last")(h[:, 0])
    return Dense(self.projection, use_bias=False, name="projection")(h) if self.projection else h


def bicubic_weights(size: int, wanted: int) -> np.ndarray:
  """Shares float32 [wanted, size] of knots in what lies between: Keys 1981, a = -0.75, ends repeated,
  as torch's bicubic.
  """
  places = (np.arange(wanted) + 0.5) * size / wanted - 0.5
  first = np.floor(places).astype(int)
  weights_of_knots = np.zeros((wanted, size))
  for offset in range(-1, 3):
    x = np.abs(places - first - offset)
    near, far = (1.25 * x - 2.25) * x * x + 1, ((-0.75 * x + 3.75) * x - 6) * x + 3
    np.add.at(
      weights_of_knots, (np.arange(wanted), np.clip(first + offset, 0, size - 1)), np.where(x <= 1, near, far)
    )
  return weights_of_knots.astype(np.float32)


def preprocess_vit(images: Array, side: int, mean: tuple[float, ...], std: tuple[float, ...]) -> Array:
  """Images uint8 [B, H, W, 3 or 1 (grey)] -> what the network sees, float32 [B, side, side, 3].

  Bicubic with a filter where it shrinks, Keys's a = -0.5, as Pillow does to floating-point
  pictures; never rounded between.
  """
  whole = jnp.broadcast_to(images, (*images.shape[:3], 3)).astype(jnp.float32) / 255
  small = jax.image.resize(
    whole, (len(images), side, side, 3), "bicubic", precision=jax.lax.Precision.HIGHEST
  )
  return (small - np.float32(mean)) / np.float32(std)


def extract_vit(network: ViT, params: dict, pixels: Array) -> Extracted:
  """Of what `preprocess_vit` made; float32 throughout."""
  with jax.default_matmul_precision("highest"):
    return Extracted(network.apply({"params": params}, pixels))


def load_vit(network: ViT, kind: str, arrays: Mapping[str, np.ndarray] | None) -> dict:
  """Arrays by flat name -> parameters; UserError where there are none or they do not fit."""
  return weights.unpack_weights(arrays, network, jnp.zeros((1, network.patch, network.patch, 3)), kind)
