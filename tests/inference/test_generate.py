"""A tiny untrained model: what is drawn depends on seed, place and label alone, and changing numbers
compiles nothing.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jldm.config import presets
from jldm.core.errors import UserError
from jldm.core.keys import normal_like, row_keys, split_each
from jldm.diffusion.process import Discrete
from jldm.diffusion.target import Predict
from jldm.inference import generate as generating
from jldm.inference.generate import Request, generate, sampling_pairs
from jldm.inference.load import load
from jldm.samplers import guidance
from jldm.samplers.churn import Churn
from jldm.samplers.clock import Ratio
from jldm.samplers.ddim import DDIM
from jldm.samplers.dpm_solver import DPMSolverPP
from jldm.samplers.grid import Grid, uniform
from jldm.samplers.heun import Heun
from jldm.samplers.pairs import Pairs, restart
from jldm.samplers.resample import Resample
from jldm.samplers.transforms import Threshold
from tests.configs import config
from tests.inference.drawing import draw


def test_a_sample_depends_on_seed_place_and_label_alone(tiny):
  labels = [0, 1, 2, 3, -1, 4, 5, 6, 7, 8]
  run = lambda **options: draw(*tiny, labels, steps=3, **options).data.astype(int)
  whole = run(batch_size=10, devices=1)
  assert whole.shape == (10, 32, 32, 1) and len(np.unique(whole)) > 20
  assert np.abs(run(batch_size=4, devices=1) - whole).max() <= 1, "batch size and padding"
  assert np.abs(run(batch_size=10, devices=8) - whole).max() <= 1, "devices"
  assert np.abs(run(batch_size=10, devices=1, seed=1) - whole).max() > 10, "the seed matters"
  other = draw(*tiny, [9, *labels[1:]], steps=3, batch_size=10, devices=1).data.astype(int)
  assert np.abs(other[0] - whole[0]).max() > 1 and (other[1:] == whole[1:]).all(), (
    "a label changes its sample only"
  )


def test_changing_numbers_compiles_nothing(tiny):
  before = generating.sample_batch._cache_size()
  for options in (
    {"scale": 1.0},
    {"scale": 3},
    {"scale": np.float64(2)},
    {"seed": 7},
    {"sampler": DDIM(0.5)},
    {"sampler": DDIM(1)},
    {"sampler": DDIM(np.float32(0.2))},
  ):
    draw(*tiny, [1, 2], steps=4, devices=1, **({"sampler": DDIM()} | options))
  draw(*tiny, [-1, 5], steps=4, sampler=DDIM(), devices=1)
  assert generating.sample_batch._cache_size() == before + 1
  draw(*tiny, [1, 2], steps=5, sampler=DDIM(), devices=1)
  assert generating.sample_batch._cache_size() == before + 2, "the number of steps is a shape"


def test_guidance_by_name(tiny):
  assert presets.make_guidance("cfg_zero", 3) == guidance.CFGZero(3)
  assert presets.make_guidance("apg", 3, rescale=0.5) == guidance.Rescale(guidance.APG(3), 0.5)
  plus_plus = guidance.CFGPlusPlus(guidance.Rescale(guidance.ClassifierFree(0.7), 0.5))
  assert presets.make_guidance("cfg_pp", 0.7, (-5, 5), 0.5) == guidance.Interval(plus_plus, -5, 5)
  run = lambda **options: draw(*tiny, [1, 2], steps=4, sampler=DDIM(), devices=1, **options).data.astype(int)
  plain = run(scale=3.0)
  assert (run(guidance=presets.make_guidance("cfg", 3)) == plain).all()
  assert (run(guidance=presets.make_guidance("cfg", 3, interval=(50, 60))) == run(scale=1.0)).all()
  assert (run(scale=3.0, negative=5) != plain).any()
  each = run(scale=3.0, negative=[5, 6])
  assert (each[0] == run(scale=3.0, negative=5)[0]).all() and (each[1] == run(scale=3.0, negative=6)[1]).all()


def test_numbers_of_guidance_compile_nothing(tiny):
  before = generating.sample_batch._cache_size()
  for numbers in ((2.0, (-1, 2), 0.5), (3, (-2.0, np.float32(4)), 1), (0, (0, 0), 0)):
    for negative in (-1, np.int64(4)):
      rule = presets.make_guidance("apg", *numbers)
      draw(*tiny, [1], steps=3, sampler=DDIM(), devices=1, guidance=rule, negative=negative)
  assert generating.sample_batch._cache_size() == before + 1


@pytest.mark.parametrize("sampler", [DDIM(), DDIM(1.0), Heun(), DPMSolverPP()])
def test_one_step_is_finite(tiny, sampler):
  assert draw(*tiny, [3], steps=1, sampler=sampler, devices=1).data.shape == (1, 32, 32, 1)


@pytest.mark.parametrize(
  "call, message",
  [
    (lambda tiny: draw(*tiny, [10]), "label=10; expected -1 (unconditional) or 0 to 9"),
    (lambda tiny: draw(*tiny, [-2]), "label=-2"),
    (lambda tiny: draw(*tiny, [1.5]), "label=[1.5]; expected a whole number"),
    (lambda tiny: draw(*tiny, []), "at least 1"),
    (
      lambda tiny: generate(*tiny, Request(n=3, given={"label": [1, 2]})),
      "2 values of 'label' for 3 samples",
    ),
    (lambda tiny: draw(*tiny, [1], steps=0), "steps=0; expected whole numbers in [1, "),
    (lambda tiny: draw(*tiny, [1], devices=9), "devices=9; expected 1 to 8"),
    (lambda tiny: draw(*tiny, [1], batch_size=0), "batch_size=0; expected at least 1"),
    (lambda tiny: draw(*tiny, [1], batch_size=2.5), "batch_size=2.5; expected at least 1, a whole number"),
    (lambda tiny: draw(*tiny, [3.7, 2.2]), "label=[3.7, 2.2]; expected a whole number, or one per sample"),
    (lambda tiny: draw(*tiny, [[1], [2]]), "label=[[1], [2]]; expected a whole number, or one per sample"),
    (lambda tiny: draw(*tiny, [2**40]), f"label={2**40}; expected -1 (unconditional) or 0 to 9"),
    (lambda tiny: generate(*tiny, Request(n=2.5)), "n=2.5; expected at least 1, a whole number"),
    (lambda tiny: generate(*tiny, Request(n=True)), "n=True; expected at least 1, a whole number"),
    (lambda tiny: draw(*tiny, [1], size=32), "size=32; expected (height, width), two whole numbers"),
    (lambda tiny: draw(*tiny, [1], size=(32.5, 32)), "size=(32.5, 32); expected (height, width)"),
    (lambda tiny: draw(*tiny, [1], size=(32,)), "size=(32,); expected (height, width)"),
    (lambda tiny: draw(*tiny, [1], estimates=-1), "estimates=-1; expected at least 0, a whole number"),
    (lambda tiny: draw(*tiny, [1], steps=2.5), "steps=2.5; expected whole numbers in [1, "),
    (lambda tiny: draw(*tiny, [1], scale=np.nan), "guidance_scale=nan; expected a number"),
    (
      lambda tiny: draw(*tiny, [1], grid=Pairs(((1.5, 0.0),))),
      "pairs=((1.5, 0.0),); expected numbers in [0, 1]",
    ),
    (
      lambda tiny: draw(*tiny, [1], grid=lambda *_: [[1.5, 0.0]]),
      "a grid with time 1.5; expected times from 0 (data) to 1 (noise)",
    ),
    (lambda tiny: draw(*tiny, [1], grid=lambda *_: [1.0, 0.0]), "grid of shape [2]; expected pairs of times"),
    (
      lambda tiny: draw(*tiny, [1], noise=np.full((1, 4, 4, 4), np.inf)),
      "noise with values that are not finite; expected standard normal",
    ),
    (lambda tiny: draw(*tiny, [1], negative=10), "label=10"),
    (lambda tiny: draw(*tiny, [1], seed=-1), "seed=-1; expected a whole number from 0"),
    (
      lambda tiny: draw(*tiny, [1], noise=np.zeros((1, 2, 2, 4))),
      "noise of shape [1, 2, 2, 4]; expected [1, 4, 4, 4]",
    ),
    (lambda tiny: draw(*tiny, [1], given={"class": 3}), "'class' is given, and the model knows label"),
    (
      lambda tiny: generate(*tiny, Request(), labels=[3]),
      "labels=…): expected Request(n=…, given={'label': …})",
    ),
    (lambda tiny: generate(*tiny, Request(), guidance=2.0), "expected Sampling(guidance=ClassifierFree(…))"),
    (lambda tiny: generate(*tiny, Request(), colour=2.0), "a field of Request or of Sampling"),
    (lambda tiny: generate(*tiny, {"label": 3}), "in the place of the request; expected Request("),
    (lambda tiny: generate(*tiny, Request(), DDIM()), "in the place of the sampling; expected Sampling("),
    (lambda tiny: presets.make_sampler("dimm"), "sampler='dimm'; expected one of ['ddim', 'ddpm', 'deis',"),
    (lambda tiny: presets.make_sampler("heun", eta=1.0), "sampler 'heun' has no eta"),
    (lambda tiny: presets.make_sampler("Heun()", eta=1.0), "sampler 'Heun()' has no eta"),
    (lambda tiny: presets.make_sampler("Heum()"), "sampler: no class 'Heum'; did you mean 'Heun'?"),
    (lambda tiny: presets.make_sampler("Ratio()"), "sampler='Ratio()' is not a sampler, or wraps none"),
    (lambda tiny: presets.make_sampler("Churn(Ratio())"), "sampler=Ratio() of Churn; expected one like"),
    (lambda tiny: presets.make_sampler("exit(1)"), "sampler: no class 'exit'"),
    (lambda tiny: presets.make_sampler("DPMSolverPP(7)"), "order=7; expected 1 to 3"),
    (lambda tiny: presets.make_sampler("DPMSolverPP(order=2.5)"), "order=2.5"),
    (lambda tiny: presets.make_sampler("(DDIM()"), "expected an object written as in Python"),
    (
      lambda tiny: draw(*tiny, [1], grid=Grid("even")),
      "grid='even'; expected one of ['align_your_steps', 'beta',",
    ),
    (lambda tiny: draw(*tiny, [1], grid=Grid("leading")), "expected a Discrete process"),
  ],
)
def test_mistakes(tiny, call, message):
  with pytest.raises(UserError) as error:
    call(tiny)
  assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
  "process", [None, Discrete(rescale_betas_zero_snr=True)], ids=["its own", "zero terminal SNR"]
)
def test_a_target_that_is_singular_at_pure_noise_is_refused(tiny, process):
  model, params = tiny
  objective = dataclasses.replace(
    model.objective, process=process or model.process, parametrization=Predict("eps")
  )
  model = dataclasses.replace(model, objective=objective)
  with pytest.raises(
    UserError,
    match=r"Predict\(prediction_type='eps'.*\) says nothing about the data at t = 1 of .*"
    r"; use Predict\('v'\)",
  ):
    draw(model, params, [1])


def test_an_untrained_workdir_is_reported(tmp_path):
  from jldm.storage import workdir

  workdir.claim_workdir(tmp_path / "w", config("digits"))
  with pytest.raises(UserError, match="no trained"):
    load(tmp_path / "w")


@pytest.mark.parametrize(
  ("size", "message"),
  [
    ((30, 32), "size 30x32; expected sides divisible by the autoencoder's factor 8"),
    ((0, 32), "size 0x32; expected sides divisible"),
    ((24, 32), "latents of 3x4; expected sides divisible by patch=2"),
  ],
)
def test_an_illegal_size_is_refused(tiny, size, message):
  with pytest.raises(UserError) as error:
    draw(*tiny, [1], steps=2, size=size)
  assert message in str(error.value)


def test_samplers_by_name_and_written_out():
  assert all(hasattr(presets.make_sampler(name), "step") for name in presets.SAMPLERS)
  assert presets.make_sampler("dpmpp_2m_sde") == DPMSolverPP(2, eta=1.0)
  assert presets.make_sampler("DPMSolverPP(3, exact_d2=True)", eta=0.5) == DPMSolverPP(3, 0.5, exact_d2=True)
  assert presets.make_sampler("Churn(Heun(Ratio()), gamma=0.1)") == Churn(Heun(Ratio()), 0.1)


def test_times_by_grid_or_as_pairs(tiny):
  model, _ = tiny
  assert sampling_pairs(model, dataclasses.replace(model.sampling, steps=5)).shape == (5, 2)
  assert (
    sampling_pairs(model, dataclasses.replace(model.sampling, steps=5, grid=Grid("beta"))).dtype
    == jnp.float32
  )
  pairs = restart(uniform(4), 0.25, 0.5)
  grid = Pairs(tuple(map(tuple, np.asarray(pairs).tolist())))
  np.testing.assert_array_equal(sampling_pairs(model, dataclasses.replace(model.sampling, grid=grid)), pairs)
  images = draw(*tiny, [3], grid=grid, sampler=Resample(Heun()), devices=1).data
  assert images.shape == (1, 32, 32, 1)


def test_estimates_of_a_path_come_with_the_pictures(tiny):
  labels = [1, 2, 3]
  images, estimates, _ = draw(*tiny, labels, steps=4, estimates=3, sampler=DDIM(), batch_size=2, devices=1)
  assert estimates.shape == (3, 3, 32, 32, 1)
  same = draw(*tiny, labels, steps=4, sampler=DDIM(), batch_size=2, devices=1).data
  assert np.abs(images.astype(int) - same).max() <= 1
  assert np.abs(estimates[:, -1].astype(int) - images).max() <= 1, "the last step goes to its estimate"
  assert np.abs(estimates[:, 0].astype(int) - images).max() > 1


def test_pictures_of_another_size(tiny):
  images = draw(*tiny, [1, 2], steps=2, size=(16, 48), devices=1).data
  assert images.shape == (2, 16, 48, 1)


def test_a_sample_starts_from_the_noise_of_the_request(tiny):
  model, _ = tiny
  key_start, _ = split_each(row_keys(jax.random.key(5), jnp.arange(2, dtype=jnp.uint32)))
  noise = normal_like(key_start, jnp.zeros((2, *model.latent_shape)))
  run = lambda **options: draw(
    *tiny, [1, 2], steps=2, sampler=DDIM(), devices=1, seed=5, **options
  ).data.astype(int)
  assert np.abs(run(noise=noise) - run()).max() <= 1 and np.abs(run(noise=-noise) - run()).max() > 1


def test_rows_are_numbers_of_samples(tiny):
  run = lambda labels, **options: draw(
    *tiny, labels, steps=2, sampler=DDIM(), devices=1, **options
  ).data.astype(int)
  assert np.abs(run([1, 2, 3])[[0, 2]] - run([1, 3], rows=[0, 2])).max() <= 1


def test_transforms_are_applied(tiny):
  model, params = tiny
  request, ways = Request(n=2, given={"label": 1}), dataclasses.replace(model.sampling, steps=2)
  run = lambda *transforms: generate(
    model, params, request, dataclasses.replace(ways, transforms=transforms), devices=1
  ).data.astype(int)
  assert (
    np.abs(run(Threshold(0.5, 0.1)) - run()).max() > 1 and np.abs(run(Threshold(1.0, 1e6)) - run()).max() <= 1
  )
