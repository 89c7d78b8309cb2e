"""Networks in tests: parameters that make no comparison vacuous, and programs that compile fast."""

import functools
from typing import Any

import jax
import numpy as np

from tests.compiling import UNOPTIMIZED

quick = functools.partial(jax.jit, compiler_options=UNOPTIMIZED)


def randomised(params: Any, seed: int = 0, scale: float = 0.3) -> Any:
  """Every leaf (of arrays or of shapes) as normal numbers of that scale, in float32: no gate or bias
  stays at zero.
  """
  rng = np.random.default_rng(seed)
  return jax.tree.map(lambda leaf: np.float32(scale * rng.normal(size=leaf.shape)), params)


def random_params(module: Any, *inputs: Any, seed: int = 0, scale: float = 0.3) -> Any:
  """Random parameters of an unbound module that is called with `inputs`; nothing is compiled."""
  return randomised(jax.eval_shape(module.init, jax.random.key(0), *inputs)["params"], seed, scale)
