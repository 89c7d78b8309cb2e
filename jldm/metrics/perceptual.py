"""LPIPS: the distance of two images for a pretrained network with heads fitted to human judgements.

  (1)  f_l = features of layer l of (image - shift) / scale,  g_l = f_l / (|f_l| + 1e-10) over channels
  (2)  d(a, b) = sum over l, mean over places, of w_l . (g_l(a) - g_l(b))^2

Zhang et al. 2018 (1801.03924), eq. 1, as version 0.1 of the authors' package `lpips` computes it.
jldm ships no weights: `jldm convert` makes them from published ones.  They are {"conv1":
{"kernel" [k, k, in, out], "bias" [out]}, ..., "head1": {"weight" [C]}, ...}, passed as an argument,
and the distance is differentiable.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jldm.core.errors import UserError

Array = jax.Array

# Of red, green, blue in [-1, 1].
SHIFT, SCALE = np.float32([-0.030, -0.088, -0.188]), np.float32([0.458, 0.448, 0.450])
EPSILON = 1e-10


class ConvLayer(NamedTuple):
  """Perhaps max-pooling over pool x pool places with stride 2, a convolution, ReLU; `tap`: its
  features are compared.
  """

  features: int
  kernel: int = 3
  stride: int = 1
  padding: int = 1
  pool: int = 0
  tap: bool = False


def vgg_stage(features: int, depth: int, pool: int = 2) -> tuple[ConvLayer, ...]:
  """`depth` convolutions of VGG, pooled before the first, compared after the last."""
  return tuple(ConvLayer(features, pool=pool if i == 0 else 0, tap=i == depth - 1) for i in range(depth))


NETWORKS = {  # up to the last layer that is compared
  # VGG16: 1409.1556, table 1, D
  "vgg": (
    *vgg_stage(64, 2, pool=0),
    *vgg_stage(128, 2),
    *vgg_stage(256, 3),
    *vgg_stage(512, 3),
    *vgg_stage(512, 3),
  ),
  "alex": (  # 1404.5997
    ConvLayer(64, kernel=11, stride=4, padding=2, tap=True),
    ConvLayer(192, kernel=5, padding=2, pool=3, tap=True),
    ConvLayer(384, pool=3, tap=True),
    ConvLayer(256, tap=True),
    ConvLayer(256, tap=True),
  ),
}


def lpips_shapes(network: str) -> dict[str, tuple[int, ...]]:
  """What a network of NETWORKS needs, by flat names such as "conv1/kernel"."""
  shapes, channels, taps = {}, 3, 0
  for i, layer in enumerate(NETWORKS[network], 1):
    shapes |= {
      f"conv{i}/kernel": (layer.kernel, layer.kernel, channels, layer.features),
      f"conv{i}/bias": (layer.features,),
    }
    channels = layer.features
    if layer.tap:
      taps += 1
      shapes[f"head{taps}/weight"] = (channels,)
  return shapes


def unpack_lpips(arrays: Mapping[str, Any]) -> dict:
  """Arrays by flat name -> the parameters of `lpips_distance`, in float32.

  Raises:
    UserError: not those of a network in NETWORKS.
  """
  network = next((name for name in NETWORKS if lpips_shapes(name).keys() == arrays.keys()), None)
  if network is None:
    nearest = min(NETWORKS, key=lambda name: len(lpips_shapes(name).keys() ^ arrays.keys()))
    different = sorted(lpips_shapes(nearest).keys() ^ arrays.keys())
    raise UserError(
      f"{len(arrays)} arrays are the LPIPS weights of none of {', '.join(NETWORKS)}; of {nearest}, "
      f"{different[0][:80]!r} is "
      f"{'missing' if different[0] in lpips_shapes(nearest) else 'not a part'}; make them by jldm "
      "convert --kind lpips of all parameters of the lpips package"
    )
  params: dict = {}
  for name, shape in lpips_shapes(network).items():
    if np.shape(arrays[name]) != shape:
      raise UserError(
        f"{name} of the LPIPS weights is {list(np.shape(arrays[name]))}; expected {list(shape)}, for "
        f"{network}"
      )
    layer, _, part = name.partition("/")
    params.setdefault(layer, {})[part] = np.asarray(arrays[name], np.float32)
  return params


def layers_of(params: dict) -> tuple[ConvLayer, ...]:
  """The layers of the network that params belong to."""
  count = sum(name.startswith("conv") for name in params)
  return next(layers for layers in NETWORKS.values() if len(layers) == count)


def layer_features(params: dict, images: Array) -> list[Array]:
  """Images [B, H, W, 3 or 1] in [-1, 1] -> the f_l of (1), [B, h, w, C] each.

  Raises:
    UserError: images too small for the network.
  """
  h, taps = (jnp.asarray(images, jnp.float32) - SHIFT) / SCALE, []
  for i, layer in enumerate(layers_of(params), 1):
    if layer.pool:
      window = (1, layer.pool, layer.pool, 1)
      h = jax.lax.reduce_window(h, -jnp.inf, jax.lax.max, window, (1, 2, 2, 1), "VALID")
    weights = params[f"conv{i}"]
    h = jax.lax.conv_general_dilated(
      h,
      weights["kernel"],
      (layer.stride,) * 2,
      ((layer.padding,) * 2,) * 2,
      dimension_numbers=("NHWC", "HWIO", "NHWC"),
      precision="highest",
    )
    if not h.size:
      raise UserError(
        f"images of {images.shape[1]}x{images.shape[2]} are too small for LPIPS; expected at least 32x32"
      )
    h = jax.nn.relu(h + weights["bias"])
    if layer.tap:
      taps.append(h)
  return taps


def unit_norm(f: Array) -> Array:
  """g of (1) over the last axis; its gradient at zero is zero, that of the square root would be infinite."""
  square = jnp.square(f).sum(-1, keepdims=True)
  norm = jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), 0)
  return f / (norm + EPSILON)


def lpips_distance(params: dict, a: Array, b: Array) -> Array:
  """(2): a, b [B, H, W, C] in [-1, 1], C 3 or 1 (grey) -> [B]; 0 for equal images.

  Raises:
    UserError: images too small for the network.
  """
  total = jnp.zeros(len(a))
  for i, (f, g) in enumerate(zip(layer_features(params, a), layer_features(params, b)), 1):
    total = total + (jnp.square(unit_norm(f) - unit_norm(g)) @ params[f"head{i}"]["weight"]).mean((1, 2))
  return total
