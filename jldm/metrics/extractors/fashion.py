"""A small frozen classifier of 28x28 grey clothes (Fashion-MNIST, Xiao et al. 2017, 1708.07747), and
its features.

Trained by benchmarks/fashion_classifier.py on 55,000 training pictures, which also writes
`fashion.npz`: it knows 91.9 % of the test split and 93.1 % of the 5,000 training pictures that it
has not seen.  Features are what its last layer sees, means over places.  They are no Inception
features: figures made with them compare with each other and with nothing else.
"""

from collections.abc import Mapping
import functools
import hashlib
from pathlib import Path
from typing import Any

from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict
import jax
import jax.numpy as jnp
import numpy as np

from jldm.core.errors import UserError
from jldm.core.shapes import batch_rows
from jldm.metrics.extractors.extractor import Extracted, Extractor, refuse_weights, register_extractor
from jldm.nn.dense import Dense
from jldm.nn.norm import GroupNorm

Array = jax.Array

CLASSES, SIDE, FEATURES = 10, 28, 128
WEIGHTS = Path(__file__).with_name("fashion.npz")  # float16, flat names such as "conv1/kernel"
BLAKE2B = "b84128a8b6075ff34d5d036c254e389b"
BATCH = 500


class Classifier(nn.Module):
  """A convolution that halves, levels of residual blocks with group norms, halving between them, a
  mean over places.
  """

  levels: tuple[tuple[int, int], ...] = ((32, 0), (64, 2))  # width, blocks
  classes: int = CLASSES

  @nn.compact
  def __call__(self, images: Array) -> tuple[Array, Array]:
    """uint8 [B, 28, 28, 1] -> features [B, FEATURES], logits [B, classes]; float32."""
    h = images.astype(jnp.float32) / 127.5 - 1
    h = nn.Conv(self.levels[0][0], (5, 5), strides=2, padding=2, name="in")(h)
    for level, (width, blocks) in enumerate(self.levels):
      if level:
        h = norm_silu_conv(h, width, f"down{level}", stride=2)
      for block in range(blocks):
        name = f"level{level}_block{block}"
        h = h + norm_silu_conv(norm_silu_conv(h, width, f"{name}_1"), width, f"{name}_2")
    h = norm_silu_conv(h, FEATURES, "wide")
    features = nn.silu(GroupNorm(8, name="norm")(h)).mean((1, 2))
    return features, Dense(self.classes, name="out")(features)


def norm_silu_conv(h: Array, width: int, name: str, stride: int = 1) -> Array:
  """A 3x3 convolution of h [B, H, W, C], normed and through SiLU before."""
  h = nn.silu(GroupNorm(8, name=f"{name}_norm")(h))
  return nn.Conv(width, (3, 3), strides=stride, padding=1, name=name)(h)


def pack(params: Any) -> dict[str, np.ndarray]:
  """A tree of parameters as flat float16 arrays, as the file holds them."""
  return {name: np.asarray(value, np.float16) for name, value in flatten_dict(params, sep="/").items()}


def load_classifier(path: str | Path = WEIGHTS, blake2b: str = BLAKE2B) -> Any:
  """Parameters of `Classifier` in float32, of a file of `pack`.

  Raises:
    UserError: the file is missing, or its hash is not the one expected.
  """
  if not Path(path).is_file():
    raise UserError(f"the classifier's weights {str(path)!r} are missing; install jldm anew")
  digest = hashlib.blake2b(Path(path).read_bytes(), digest_size=16).hexdigest()
  if digest != blake2b:
    raise UserError(
      f"the classifier's weights {str(path)!r} have hash {digest}; expected {blake2b}; install jldm anew"
    )
  with np.load(path, allow_pickle=False) as stored:
    return unflatten_dict({name: stored[name].astype(np.float32) for name in stored.files}, sep="/")


@functools.cache
def shipped_params() -> Any:
  """The parameters that ship with jldm."""
  return load_classifier()


apply_classifier = jax.jit(lambda params, images: Classifier().apply({"params": params}, images))


def crop_middle(images: np.ndarray) -> np.ndarray:
  """Images uint8 [N, H, W, 1], their middle 28x28.

  Raises:
    UserError: not uint8, not grey, or smaller than that.
  """
  images = np.asarray(images)
  if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 1 or min(images.shape[1:3]) < SIDE:
    raise UserError(
      f"images {images.dtype} {images.shape}; expected uint8 [N, H, W, 1] of at least {SIDE}x{SIDE}"
    )
  top, left = ((side - SIDE) // 2 for side in images.shape[1:3])
  return images[:, top : top + SIDE, left : left + SIDE]


def features_and_logits(images: np.ndarray, params: Any = None) -> tuple[np.ndarray, np.ndarray]:
  """Images uint8 [N, H, W, 1] -> features float32 [N, FEATURES], logits float32 [N, CLASSES], of the
  shipped network.
  """
  images, params = crop_middle(images), shipped_params() if params is None else params
  size = min(BATCH, max(len(images), 1))
  parts = [(np.zeros((0, FEATURES), np.float32), np.zeros((0, CLASSES), np.float32))]
  for start in range(0, len(images), size):
    batch = images[batch_rows(start, size, len(images))]
    parts.append(tuple(np.asarray(part)[: len(images) - start] for part in apply_classifier(params, batch)))
  return tuple(np.concatenate(each) for each in zip(*parts))


def fashion_features(images: np.ndarray, params: Any = None) -> np.ndarray:
  """Images uint8 [N, H, W, 1], cut to their middle 28x28 -> float32 [N, FEATURES]."""
  return features_and_logits(images, params)[0]


def classify(images: np.ndarray, params: Any = None) -> np.ndarray:
  """Images uint8 [N, H, W, 1], cut to their middle 28x28 -> the likeliest class, int32 [N]."""
  return features_and_logits(images, params)[1].argmax(-1).astype(np.int32)


def extract_fashion(params: Any, images: Array) -> Extracted:
  """uint8 [B, 28, 28, 1] -> features [B, FEATURES], logits [B, CLASSES]."""
  return Extracted(*Classifier().apply({"params": params}, images))


def load_shipped(arrays: Mapping[str, np.ndarray] | None) -> Any:
  refuse_weights(arrays)
  return shipped_params()


FASHION = register_extractor(
  Extractor(
    name="fashion",
    version="1",
    preprocessing=f"the middle {SIDE}x{SIDE} of grey pictures, in [-1, 1]",
    apply=extract_fashion,
    prepare=crop_middle,
    load=load_shipped,
    blake2b=BLAKE2B,
    batch_size=BATCH,
  )
)
