"""Types that all parts share: the arrays of an example, a network's output, a network with its parameters.

Shapes are written with B batch, H W space, L or M tokens, C or D channels; channels come last.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import numpy as np

from jldm.core.trees import pytree

Array = jax.Array
# The arrays of one example by name, hashable: (("image", u8[H, W, C]), ("label", i32[])).
Spec = tuple[tuple[str, jax.ShapeDtypeStruct], ...]


class Output(NamedTuple):
  """What a denoising network returns.

  value: [B, ...] in the shape of z.
  log_variance: [B], the learned log-variance of the loss, Karras et al. 2024 (2312.02696), eq. 21.
  variance: [B, ...], v in [-1, 1] of ancestral steps, Nichol & Dhariwal 2021 (2102.09672), eq. 15.
  """

  value: Array
  log_variance: Array | None = None
  variance: Array | None = None


@pytree
@dataclasses.dataclass(frozen=True)
class Loaded:
  """A network (static) and its parameters (traced): a finished codec, tower or teacher."""

  model: Any = dataclasses.field(metadata={"static": True})
  params: Any = None


def spec(**arrays: tuple[Any, tuple[int, ...]]) -> Spec:
  """spec(image=(np.uint8, (32, 32, 1)), label=(np.int32, ()))."""
  return tuple(
    (name, jax.ShapeDtypeStruct(shape, np.dtype(dtype))) for name, (dtype, shape) in arrays.items()
  )


def batch_shapes(example: Spec, size: int) -> dict[str, jax.ShapeDtypeStruct]:
  """The shapes of a batch of `size` examples."""
  return {name: jax.ShapeDtypeStruct((size, *one.shape), one.dtype) for name, one in example}


def key_shapes(size: int) -> jax.ShapeDtypeStruct:
  """The shape of `size` keys."""
  return jax.eval_shape(lambda: jax.random.split(jax.random.key(0), size))
