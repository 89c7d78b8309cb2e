"""python tests/interop/true_size.py DTYPE: a step of Stable Diffusion 1.5's U-Net for 512x512 pixels.

Parameters are random.  Prints their number, seconds of compiling and of the step, and the greatest memory
of this process in bytes.
"""

import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

from jldm.core.trees import count
from jldm.interop import denoisers
from jldm.models.denoisers.unet import UNet
from tests.interop.memory import resident

SIDE, TOKENS = 64, 77


def main(dtype: str) -> None:
  network = UNet(token_width=768, dtype=dtype)
  inputs = {"tokens": jax.ShapeDtypeStruct((1, TOKENS, network.token_width), jnp.float32)}
  like = denoisers.shapes(network, (SIDE, SIDE, 4), inputs)
  rng = np.random.default_rng(0)
  uniform = lambda one: rng.random(one.shape, np.float32) - np.float32(0.5)
  params = jax.tree.map(lambda one: jax.device_put(uniform(one) * 0.05).astype(dtype), like)
  given = jnp.ones((1, SIDE, SIDE, 4)), jnp.full((1,), 0.5), {"tokens": jnp.ones((1, TOKENS, 768))}
  start = time.perf_counter()
  step = jax.jit(network.apply).lower({"params": params}, *given).compile()
  compiled = time.perf_counter()
  value = step({"params": params}, *given).value.block_until_ready()
  done = time.perf_counter()
  assert value.shape == (1, SIDE, SIDE, 4) and bool(jnp.isfinite(value).all()) and float(value.std()) > 0
  most = resident("VmHWM")
  print(count(params), f"{compiled - start:.1f} {done - compiled:.1f}", most)


if __name__ == "__main__":
  main(sys.argv[1])
