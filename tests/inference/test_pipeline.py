"""A tiny untrained model: what is drawn depends on seed, place and label alone, and changing numbers compiles nothing."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jldm.config import presets
from jldm.core.errors import UserError
from jldm.core.keys import normal, row_keys, split_each
from jldm.diffusion.process import Cosine, Discrete
from jldm.diffusion.target import Predict
from jldm.inference import pipeline
from jldm.models.codecs import codec as codecs
from jldm.models.conditioners import masks
from jldm.models.conditioners.concat import Masked, Paired
from jldm.samplers import guidance
from jldm.samplers.churn import Churn
from jldm.samplers.clock import Ratio
from jldm.samplers.ddim import DDIM
from jldm.samplers.dpm_solver import DPMSolverPP
from jldm.samplers.grid import restart, uniform
from jldm.samplers.heun import Heun
from jldm.samplers.resample import Resample
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


def test_guidance_by_name(tiny):
  assert presets.make_guidance("cfg_zero", 3) == guidance.CFGZero(3)
  assert presets.make_guidance("apg", 3, rescale=0.5) == guidance.Rescale(guidance.APG(3), 0.5)
  plus_plus = guidance.CFGPlusPlus(guidance.Rescale(guidance.ClassifierFree(0.7), 0.5))
  assert presets.make_guidance("cfg_pp", 0.7, (-5, 5), 0.5) == guidance.Interval(plus_plus, -5, 5)
  draw = lambda **options: pipeline.generate(*tiny, [1, 2], steps=4, sampler=DDIM(), devices=1, **options).astype(int)
  plain = draw(guidance_scale=3.0)
  assert (draw(guidance=presets.make_guidance("cfg", 3)) == plain).all()
  assert (draw(guidance=presets.make_guidance("cfg", 3, interval=(50, 60))) == draw(guidance_scale=1.0)).all()
  assert (draw(guidance_scale=3.0, negative_label=5) != plain).any()


def test_numbers_of_guidance_compile_nothing(tiny):
  before = pipeline.draw._cache_size()
  for numbers in ((2.0, (-1, 2), 0.5), (3, (-2.0, np.float32(4)), 1), (0, (0, 0), 0)):
    for negative in (-1, np.int64(4)):
      rule = presets.make_guidance("apg", *numbers)
      pipeline.generate(*tiny, [1], steps=3, sampler=DDIM(), devices=1, guidance=rule, negative_label=negative)
  assert pipeline.draw._cache_size() == before + 1


def test_bits_per_dim_of_a_network_that_knows_a_standard_normal(tiny):
  """A network that says v = 0 on a variance-preserving process says that data is N(0, I), exactly."""
  model, params = tiny
  model = dataclasses.replace(model, process=Cosine(), parametrization=Predict("v"))
  images = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 1), np.uint8)
  silent = params | {"denoiser": jax.tree.map(jnp.zeros_like, params["denoiser"])}
  found = pipeline.bits_per_dim(model, silent, images, steps=4, batch_size=3)
  key_latent, key_noise, _ = split_each(row_keys(jax.random.key(0), jnp.arange(5)), 3)
  posterior = codecs.encode(model.autoencoder, params["codec"], images)
  latents = codecs.draw(codecs.Statistics(jnp.zeros(4), jnp.ones(4)), posterior, key_latent)
  t = model.process.time(jnp.float32(10))
  z = model.process.alpha(t) * latents + model.process.sigma(t) * normal(key_noise, latents)
  expected = 0.5 * np.log2(2 * np.pi) + 0.5 * np.mean(z**2, (1, 2, 3)) / np.log(2)
  np.testing.assert_allclose(found, expected, rtol=1e-4)
  other = pipeline.bits_per_dim(model, params, images, [1, 2, 3, -1, 9], steps=4, batch_size=3)
  assert np.isfinite(other).all() and np.abs(other - found).min() > 1e-3


@pytest.mark.parametrize("sampler", [DDIM(), DDIM(1.0), Heun(), DPMSolverPP()])
def test_one_step_is_finite(tiny, sampler):
  assert pipeline.generate(*tiny, [3], steps=1, sampler=sampler, devices=1).shape == (1, 32, 32, 1)


@pytest.mark.parametrize("call, told", [
  (lambda tiny: pipeline.generate(*tiny, [10]), "label=10; expected -1 (unconditional) or 0 to 9"),
  (lambda tiny: pipeline.generate(*tiny, [-2]), "label=-2"),
  (lambda tiny: pipeline.generate(*tiny, []), "at least 1"),
  (lambda tiny: pipeline.generate(*tiny, [1], steps=0), "steps=0; expected at least 1"),
  (lambda tiny: pipeline.generate(*tiny, [1], devices=9), "devices=9; expected 1 to 8"),
  (lambda tiny: pipeline.generate(*tiny, [1], negative_label=10), "label=10"),
  (lambda tiny: pipeline.generate(*tiny, [1], guidance=presets.make_guidance(), guidance_scale=2.0), "a rule has its own scale"),
  (lambda tiny: pipeline.bits_per_dim(*tiny, np.zeros((2, 32, 32, 1)), [1]), "1 labels of 2 images"),
  (lambda tiny: pipeline.bits_per_dim(*tiny, np.zeros((1, 32, 32, 1)), probes=0), "probes=0"),
  (lambda tiny: presets.make_sampler("dimm"), "sampler='dimm'; expected one of ['ddim', 'ddpm', 'deis',"),
  (lambda tiny: presets.make_sampler("heun", eta=1.0), "sampler 'heun' has no eta"),
  (lambda tiny: presets.make_sampler("Heun()", eta=1.0), "sampler 'Heun()' has no eta"),
  (lambda tiny: presets.make_sampler("Heum()"), "sampler: no class 'Heum'; did you mean 'Heun'?"),
  (lambda tiny: presets.make_sampler("Ratio()"), "sampler='Ratio()' is no sampler, or is around none"),
  (lambda tiny: presets.make_sampler("Churn(Ratio())"), "is no sampler, or is around none"),
  (lambda tiny: presets.make_sampler("exit(1)"), "sampler: no class 'exit'"),
  (lambda tiny: presets.make_sampler("DPMSolverPP(7)"), "order=7; expected 1 to 3"),
  (lambda tiny: presets.make_sampler("DPMSolverPP(order=2.5)"), "order=2.5"),
  (lambda tiny: presets.make_sampler("(DDIM()"), "expected an object written as in Python"),
  (lambda tiny: pipeline.generate(*tiny, [1], grid="even"), "grid='even'; expected one of ['align_your_steps', 'beta',"),
  (lambda tiny: pipeline.generate(*tiny, [1], grid="leading"), "expected a Discrete process"),
])
def test_mistakes(tiny, call, told):
  with pytest.raises(UserError) as error:
    call(tiny)
  assert told in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("process", [None, Discrete(zero_terminal_snr=True)], ids=["its own", "zero terminal SNR"])
def test_a_target_that_is_singular_at_pure_noise_is_refused(tiny, process):
  model, params = tiny
  model = dataclasses.replace(model, process=process or model.process, parametrization=Predict("eps"))
  with pytest.raises(UserError, match=r"Predict\(kind='eps'\) says nothing about the data at t = 1 of .*; use Predict\('v'\)"):
    pipeline.generate(model, params, [1])


def test_an_untrained_workdir_is_told(tmp_path):
  from jldm.storage import workdir
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


def test_samplers_by_name_and_written_out():
  assert all(hasattr(presets.make_sampler(name), "step") for name in presets.SAMPLERS)
  assert presets.make_sampler("dpmpp_2m_sde") == DPMSolverPP(2, eta=1.0)
  assert presets.make_sampler("DPMSolverPP(3, exact_d2=True)", eta=0.5) == DPMSolverPP(3, 0.5, exact_d2=True)
  assert presets.make_sampler("Churn(Heun(Ratio()), gamma=0.1)") == Churn(Heun(Ratio()), 0.1)


def test_times_by_grid_or_as_pairs(tiny):
  model, _ = tiny
  assert pipeline.times(model, 5).shape == (5, 2)
  assert pipeline.times(model, 5, "beta").dtype == jnp.float32
  pairs = restart(uniform(4), 0.25, 0.5)
  np.testing.assert_array_equal(pipeline.times(model, pairs), pairs)
  images = pipeline.generate(*tiny, [3], steps=pairs, sampler=Resample(Heun()), devices=1)
  assert images.shape == (1, 32, 32, 1)


def test_estimates_of_a_path_come_with_the_pictures(tiny):
  labels = [1, 2, 3]
  images, estimates = pipeline.trajectory(*tiny, labels, steps=4, previews=3, sampler=DDIM(), batch_size=2, devices=1)
  assert estimates.shape == (3, 3, 32, 32, 1)
  same = pipeline.generate(*tiny, labels, steps=4, sampler=DDIM(), batch_size=2, devices=1)
  assert np.abs(images.astype(int) - same).max() <= 1
  assert np.abs(estimates[:, -1].astype(int) - images).max() <= 1, "the last step goes to its estimate"
  assert np.abs(estimates[:, 0].astype(int) - images).max() > 1


def test_pictures_of_another_size(tiny):
  images = pipeline.generate(*tiny, [1, 2], steps=2, size=(16, 48), devices=1)
  assert images.shape == (2, 16, 48, 1)


def conditioned(tiny, condition):
  model, params = tiny
  model = dataclasses.replace(model, condition=condition)
  return model, params | {"denoiser": randomised(jax.random.key(5), pipeline.denoiser_shapes(model))}


@pytest.fixture(scope="module")
def masked(tiny):
  return conditioned(tiny, Masked(dropout=0.1))


@pytest.fixture(scope="module")
def paired(tiny):
  return conditioned(tiny, Paired())


PICTURES = np.uint8(np.random.default_rng(0).integers(0, 256, (5, 32, 32, 1)))
KNOWN = np.asarray(masks.fine(masks.draw(("half_plane",), row_keys(jax.random.key(1), jnp.arange(5)), (4, 4)), 8))
LABELS = [0, 1, -1, 3, 4]


def test_what_a_masked_model_is_told_is_the_latents_of_what_is_known_and_where(masked):
  model, params = masked
  told = pipeline.condition(model, params, PICTURES, KNOWN, batch_size=3)
  shown = np.asarray(masks.filled(codecs.pixels(PICTURES), KNOWN))
  raw = np.asarray(codecs.encode(model.autoencoder, params["codec"], shown).mean)
  known = KNOWN[:, ::8, ::8]
  assert told.shape == (5, 4, 4, 5) and 0 < known.mean() < 1
  np.testing.assert_allclose(told[..., :-1], raw, rtol=1e-4, atol=1e-4)
  np.testing.assert_array_equal(told[..., -1:], known)
  secret = np.where(KNOWN == 1, PICTURES, 255 - PICTURES)
  np.testing.assert_array_equal(pipeline.condition(model, params, secret, KNOWN, batch_size=3), told)


def test_a_conditioned_sample_depends_on_its_own_condition_alone(paired):
  model, params = paired
  told = pipeline.condition(model, params, PICTURES)
  np.testing.assert_allclose(told, codecs.encode(model.autoencoder, params["codec"], PICTURES).mean, rtol=1e-4, atol=1e-4)
  draw = lambda concat, **options: pipeline.generate(model, params, LABELS, steps=2, concat=concat, **options).astype(int)
  whole = draw(told, devices=1)
  assert np.abs(draw(told, devices=1, batch_size=2) - whole).max() <= 1, "batch size and padding"
  assert np.abs(draw(told, devices=8) - whole).max() <= 1, "devices"
  other = told.copy()
  other[2] *= -1
  changed = np.abs(draw(other, devices=1) - whole).max((1, 2, 3))
  assert changed[2] > 1 and (np.delete(changed, 2) == 0).all()


def test_guidance_by_the_condition(masked):
  """At 1 it is none, at 0 the condition does nothing, and its scale is traced."""
  model, params = masked
  told = pipeline.condition(model, params, PICTURES, KNOWN)
  draw = lambda concat, scale, guidance_scale=0.0: pipeline.generate(
    model, params, LABELS, steps=2, guidance_scale=guidance_scale, devices=1, concat=concat, condition_scale=scale
  ).astype(int)
  plain = draw(told, None, 2.0)
  before = pipeline.draw._cache_size()
  assert np.abs(draw(told, 1, 2.0) - plain).max() <= 1 and np.abs(draw(told, 3.0, 2.0) - plain).max() > 1
  np.testing.assert_array_equal(draw(told, 0.0), draw(-told, 0.0))
  assert pipeline.draw._cache_size() == before + 1


@pytest.mark.parametrize(("call", "told"), [
  (lambda tiny, masked, paired: pipeline.generate(*paired, [1]), "trained beside a condition, Paired, and cannot draw without"),
  (lambda tiny, masked, paired: pipeline.generate(*tiny, [1], concat=np.zeros((1, 4, 4, 4))), "leave concat out"),
  (lambda tiny, masked, paired: pipeline.generate(*paired, [1], concat=np.zeros((1, 4, 4, 5))),
   "concat of shape (1, 4, 4, 5); expected (1, 4, 4, 4)"),
  (lambda tiny, masked, paired: pipeline.generate(*paired, [1], concat=np.zeros((1, 4, 4, 4)), condition_scale=2),
   "condition_scale=2, but this model was not trained both with a condition and without"),
  (lambda tiny, masked, paired: pipeline.generate(*tiny, [1], condition_scale=2), "condition_scale=2"),
  (lambda tiny, masked, paired: pipeline.generate(
    *masked, [1], concat=np.zeros((1, 4, 4, 5)), condition_scale=2, guidance=guidance.APG(2.0)),
   "and condition_scale=2; expected one of them"),
  (lambda tiny, masked, paired: pipeline.bits_per_dim(*paired, PICTURES), "cannot draw without one"),
  (lambda tiny, masked, paired: pipeline.condition(*tiny, PICTURES), "trained without a condition"),
  (lambda tiny, masked, paired: pipeline.condition(*masked, PICTURES), "by Masked: expected known [N, H, W, 1]"),
  (lambda tiny, masked, paired: pipeline.condition(*paired, PICTURES, KNOWN), "by Paired: it has no use for a mask"),
  (lambda tiny, masked, paired: pipeline.condition(*masked, PICTURES, KNOWN[:, :16]),
   "known of shape (5, 16, 32, 1) and images of (5, 32, 32, 1); expected (5, 32, 32, 1)"),
])
def test_mistakes_with_conditions(tiny, masked, paired, call, told):
  with pytest.raises(UserError) as error:
    call(tiny, masked, paired)
  assert told in str(error.value) and "\n" not in str(error.value)
