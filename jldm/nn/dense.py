"""Dense layers."""

from typing import Any

from flax import linen as nn
import jax

Array = jax.Array


def rows_dot(x: Array, kernel: Array, dimension_numbers: Any, **options: Any) -> Array:
  """x [..., C] times kernel [C, D] -> [..., D], with all axes but the last as one axis of rows.

  With more than two axes XLA's CPU compiler transposes a copy of the output's gradient, for the gradient of
  the kernel.
  """
  del dimension_numbers
  rows = x.reshape(-1, x.shape[-1])  # [rows, C]
  out = jax.lax.dot_general(rows, kernel, (((1,), (0,)), ((), ())), **options)
  return out.reshape(*x.shape[:-1], kernel.shape[-1])  # [..., D]


class Dense(nn.Dense):
  """linen's layer, by `rows_dot`."""

  dot_general: Any = rows_dot
