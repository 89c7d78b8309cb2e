import jax
import jax.numpy as jnp
import pytest


@pytest.fixture(scope="module")
def tiny():
  """The digits' model, shrunk, with random parameters."""
  from jldm.inference.model import build_model, codec_shapes, denoiser_shapes
  from tests.configs import config, shrunk
  from tests.inference.drawing import randomised

  model = build_model(shrunk(config("digits")))
  key_codec, key_denoiser = jax.random.split(jax.random.key(0))
  codec = randomised(key_codec, codec_shapes(model)) | {"mean": jnp.zeros(4), "std": jnp.ones(4)}
  return model, {"codec": codec} | randomised(key_denoiser, denoiser_shapes(model))
