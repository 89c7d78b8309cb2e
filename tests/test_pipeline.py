"""A tiny untrained model: what is drawn depends on seed, place and label alone, and changing numbers compiles nothing."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jldm import pipeline
from jldm.core.errors import UserError
from jldm.diffusion.target import Predict
from jldm.samplers.ddim import DDIM
from jldm.samplers.dpm_solver import DPMSolverPP
from jldm.samplers.heun import Heun
from tests.configs import config, shrunk


def randomised(key, shapes):
  """Every parameter re-drawn: zero-initialised gates would make all labels alike."""
  leaves, tree = jax.tree.flatten(shapes)
  keys = jax.random.split(key, len(leaves))
  return jax.tree.unflatten(tree, [0.3 * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves)])


@pytest.fixture(scope="module")
def tiny():
  model = pipeline.of(shrunk(config("digits")))
  key_codec, key_denoiser = jax.random.split(jax.random.key(0))
  codec = randomised(key_codec, pipeline.codec_shapes(model)) | {"mean": jnp.zeros(4), "std": jnp.ones(4)}
  return model, {"codec": codec, "denoiser": randomised(key_denoiser, pipeline.denoiser_shapes(model))}


def test_a_sample_depends_on_seed_place_and_label_alone(tiny):
  labels = [0, 1, 2, 3, -1, 4, 5, 6, 7, 8]
  draw = lambda **options: pipeline.generate(*tiny, labels, steps=3, **options).astype(int)
  whole = draw(batch_size=10, devices=1)
  assert whole.shape == (10, 32, 32, 1) and len(np.unique(whole)) > 20
  assert np.abs(draw(batch_size=4, devices=1) - whole).max() <= 1, "batch size and padding"
  assert np.abs(draw(batch_size=10, devices=8) - whole).max() <= 1, "devices"
  assert np.abs(draw(batch_size=10, devices=1, seed=1) - whole).max() > 10, "the seed matters"
  other = pipeline.generate(*tiny, [9, *labels[1:]], steps=3, batch_size=10, devices=1).astype(int)
  assert np.abs(other[0] - whole[0]).max() > 1 and (other[1:] == whole[1:]).all(), "a label changes its sample only"


def test_changing_numbers_compiles_nothing(tiny):
  before = pipeline.draw._cache_size()
  for options in (
    {"guidance_scale": 1.0}, {"guidance_scale": 3}, {"guidance_scale": np.float64(2)}, {"seed": 7}, {"sampler": DDIM(0.5)},
    {"sampler": DDIM(1)}, {"sampler": DDIM(np.float32(0.2))},
  ):
    pipeline.generate(*tiny, [1, 2], steps=4, devices=1, **({"sampler": DDIM()} | options))
  pipeline.generate(*tiny, [-1, 5], steps=4, sampler=DDIM(), devices=1)
  assert pipeline.draw._cache_size() == before + 1
  pipeline.generate(*tiny, [1, 2], steps=5, sampler=DDIM(), devices=1)
  assert pipeline.draw._cache_size() == before + 2, "the number of steps is a shape"


@pytest.mark.parametrize("sampler", [DDIM(), DDIM(1.0), Heun(), DPMSolverPP()])
def test_one_step_is_finite(tiny, sampler):
  assert pipeline.generate(*tiny, [3], steps=1, sampler=sampler, devices=1).shape == (1, 32, 32, 1)


@pytest.mark.parametrize("call, told", [
  (lambda tiny: pipeline.generate(*tiny, [10]), "label=10; expected -1 (unconditional) or 0 to 9"),
  (lambda tiny: pipeline.generate(*tiny, [-2]), "label=-2"),
  (lambda tiny: pipeline.generate(*tiny, []), "at least 1"),
  (lambda tiny: pipeline.generate(*tiny, [1], steps=0), "steps=0; expected at least 1"),
  (lambda tiny: pipeline.generate(*tiny, [1], devices=9), "devices=9; expected 1 to 8"),
  (lambda tiny: pipeline.make_sampler("dimm"), "sampler='dimm'; expected one of ['ddim', 'dpmpp_2m', 'heun']"),
  (lambda tiny: pipeline.make_sampler("heun", eta=1.0), "sampler 'heun' has no eta"),
])
def test_mistakes(tiny, call, told):
  with pytest.raises(UserError) as error:
    call(tiny)
  assert told in str(error.value) and "\n" not in str(error.value)


def test_a_target_that_is_singular_at_pure_noise_is_refused(tiny):
  model, params = tiny
  with pytest.raises(UserError, match="t = 1"):
    pipeline.generate(dataclasses.replace(model, parametrization=Predict("eps")), params, [1])


def test_an_untrained_workdir_is_told(tmp_path):
  from jldm import workdir
  workdir.claim(tmp_path / "w", config("digits"))
  with pytest.raises(UserError, match="no trained"):
    pipeline.load(tmp_path / "w")


@pytest.mark.parametrize(("size", "told"), [
  ((30, 32), "size 30x32; expected sides divisible by the autoencoder's factor 8"),
  ((0, 32), "size 0x32; expected sides divisible"),
  ((24, 32), "latents of 3x4; expected sides divisible by patch=2"),
])
def test_an_illegal_size_is_refused(tiny, size, told):
  with pytest.raises(UserError) as error:
    pipeline.generate(*tiny, [1], steps=2, size=size)
  assert told in str(error.value)


def test_pictures_of_another_size(tiny):
  images = pipeline.generate(*tiny, [1, 2], steps=2, size=(16, 48), devices=1)
  assert images.shape == (2, 16, 48, 1)
