"""Between two normal distributions the translation is the map of quantile to quantile; onto itself it
changes nothing.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jldm.core.keys import row_keys
from jldm.diffusion.process import Cosine, Flow
from jldm.diffusion.target import Denoised
from jldm.editing.edict import EDICT
from jldm.editing.image_to_image import shorten_pairs
from jldm.editing.translate import translate_latents
from jldm.samplers.grid import uniform
from jldm.samplers.heun import Heun
from jldm.samplers.pairs import adjacent_pairs
from tests.networks import quick

KEYS = row_keys(jax.random.key(1), jnp.arange(8))
X0 = 0.7 + 0.5 * jax.random.normal(jax.random.key(0), (8, 3))


def normal(process, mean, std):
  def denoise(z, t, estimate=None, to=None):
    alpha, sigma = process.alpha(t), process.sigma(t)
    off = (z - alpha * mean) / (alpha**2 * std**2 + sigma**2)
    return Denoised(mean + alpha * std**2 * off, sigma * off)

  return denoise


@pytest.mark.parametrize("sampler", [Heun(), EDICT()], ids=repr)
@pytest.mark.parametrize("process", [Cosine(), Flow()], ids=repr)
def test_quantile_to_quantile(process, sampler):
  a, b = normal(process, 0.7, 0.5), normal(process, -1.0, 0.8)
  run = quick(
    lambda strength: translate_latents(
      process, a, b, sampler, X0, shorten_pairs(adjacent_pairs(uniform(64)), strength), KEYS
    )
  )
  np.testing.assert_allclose(run(1.0), -1.0 + 0.8 / 0.5 * (X0 - 0.7), atol=0.1)
  np.testing.assert_array_equal(run(0.0), X0)
  assert 0.1 < np.abs(run(0.5) - X0).mean() < 0.7 * np.abs(run(1.0) - X0).mean()


def test_onto_itself_nothing_changes():
  a = normal(Flow(), 0.7, 0.5)
  out = quick(lambda: translate_latents(Flow(), a, a, EDICT(), X0, adjacent_pairs(uniform(16)), KEYS))()
  np.testing.assert_allclose(out, X0, atol=1e-5)
