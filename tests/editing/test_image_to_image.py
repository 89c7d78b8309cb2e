"""SDEdit: nothing at strength 0, a fresh sample at strength 1, and one compilation for all between."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jldm.core.keys import row_keys
from jldm.core.trees import traced
from jldm.diffusion.process import Flow
from jldm.editing.image_to_image import shorten_pairs, vary_latents
from jldm.samplers.ddim import DDIM
from jldm.samplers.grid import uniform
from jldm.samplers.pairs import adjacent_pairs
from jldm.samplers.sample import draw_samples
from tests.editing.samplers import A_FEW
from tests.networks import quick
from tests.samplers.gaussian import MEAN, STD, gaussian, network

KEYS = row_keys(jax.random.key(1), jnp.arange(8))
X0 = MEAN + STD * jax.random.normal(jax.random.key(0), (8, 3))
PAIRS = adjacent_pairs(uniform(4))


@pytest.mark.parametrize("sampler", A_FEW, ids=repr)
def test_strength_0_returns_the_data_and_1_a_fresh_sample(sampler):
  process = Flow()
  edit = quick(
    lambda strength: vary_latents(
      process, network(process), sampler, X0, shorten_pairs(PAIRS, strength), KEYS
    )
  )
  np.testing.assert_array_equal(edit(0.0), X0)
  fresh = quick(lambda: draw_samples(process, network(process), sampler, X0, PAIRS, KEYS))()
  np.testing.assert_allclose(edit(1.0), fresh, rtol=1e-4, atol=1e-4)


def test_less_is_left_of_the_data_at_more_strength_and_strength_compiles_nothing():
  process, traces = Flow(), []
  x0 = MEAN + STD * jax.random.normal(jax.random.key(0), (4096, 1))
  keys = row_keys(jax.random.key(1), jnp.arange(4096))

  @jax.jit
  def edit(sampler, strength):
    traces.append(1)
    return vary_latents(
      process, gaussian(process), sampler, x0, shorten_pairs(adjacent_pairs(uniform(32)), strength), keys
    )

  for strength in (0.1, 0.4, 0.7, 1.0):
    edited = np.asarray(edit(traced(DDIM(1.0)), jnp.float32(strength)))
    signal = ((1 - strength) * STD) ** 2  # of the variance of z: as much of x0 is left
    assert abs(np.corrcoef(edited[:, 0], x0[:, 0])[0, 1] - signal / (signal + strength**2)) < 0.05
    assert abs(edited.mean() - MEAN) < 0.03 and abs(edited.std() - STD) < 0.05, "edits stay in the data"
  assert len(traces) == 1
