"""Bits per dimension of latents, against a density that is known."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jldm.core.errors import UserError
from jldm.core.keys import normal_like, row_keys, split_each
from jldm.core.specs import Loaded
from jldm.diffusion.process import Cosine
from jldm.diffusion.target import Predict
from jldm.inference.likelihood import bits_per_dim
from jldm.models.codecs import codec as codecs


@pytest.mark.slow  # tests/diffusion/test_likelihood.py has its parts
def test_bits_per_dim_of_a_network_that_knows_a_standard_normal(tiny):
  """A network that says v = 0 on a variance-preserving process says that data is N(0, I), exactly."""
  model, params = tiny
  objective = dataclasses.replace(model.objective, process=Cosine(), parametrization=Predict("v"))
  model = dataclasses.replace(model, objective=objective)
  images = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 1), np.uint8)
  silent = params | {"denoiser": jax.tree.map(jnp.zeros_like, params["denoiser"])}
  actual = bits_per_dim(model, silent, images, steps=4, batch_size=3)
  key_latent, key_noise, _ = split_each(row_keys(jax.random.key(0), jnp.arange(5)), 3)
  posterior = model.codec.encode(params["codec"], {"image": images})
  latents = codecs.sample_latents(Loaded(model.codec, params["codec"]), posterior, key_latent)
  t = model.process.time(jnp.float32(10))
  z = model.process.alpha(t) * latents + model.process.sigma(t) * normal_like(key_noise, latents)
  expected = 0.5 * np.log2(2 * np.pi) + 0.5 * np.mean(z**2, (1, 2, 3)) / np.log(2)
  np.testing.assert_allclose(actual, expected, rtol=1e-4)
  other = bits_per_dim(model, params, images, {"label": [1, 2, 3, -1, 9]}, steps=4, batch_size=3)
  assert np.isfinite(other).all() and np.abs(other - actual).min() > 1e-3


@pytest.mark.parametrize(
  "call, message",
  [
    (
      lambda tiny: bits_per_dim(*tiny, np.zeros((2, 32, 32, 1)), {"label": [1, 2, 3]}),
      "3 values of 'label' for 2 samples",
    ),
    (lambda tiny: bits_per_dim(*tiny, np.zeros((2, 32, 16, 1))), "images of shape [2, 32, 16, 1]"),
    (lambda tiny: bits_per_dim(*tiny, np.zeros((1, 32, 32, 1)), probes=0), "probes=0"),
  ],
)
def test_mistakes(tiny, call, message):
  with pytest.raises(UserError) as error:
    call(tiny)
  assert message in str(error.value) and "\n" not in str(error.value)
