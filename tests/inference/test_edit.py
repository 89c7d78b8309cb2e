"""Edits of a tiny model: what must not change does not, and changing numbers compiles nothing."""

import dataclasses

import numpy as np
import pytest

from jldm.config import presets
from jldm.config.experiment import Sampling
from jldm.core.errors import UserError
from jldm.core.specs import Loaded
from jldm.editing.edict import EDICT
from jldm.inference import edit, latent_edit
from jldm.inference.generate import Request
from jldm.inference.model import resize_model
from jldm.media.images import to_uint8
from jldm.models.codecs import codec as codecs
from jldm.models.conditioners.degradation import Blurred
from jldm.models.conditioners.pictures import Masked, Paired
from jldm.samplers.ddim import DDIM
from jldm.samplers.guidance import ClassifierFree
from tests.configs import config, shrunk
from tests.edits import model_of, quick_edits

IMAGES = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 1), np.uint8)
KNOWN = np.ones((16, 16), np.float32)
KNOWN[4:12, 8:] = 0
THREE = Request(given={"label": 3})


def ways(sampler=None, steps=2, scale=1.5):
  return Sampling(sampler=sampler, steps=steps, guidance=ClassifierFree(scale))


TWO_STEPS = ways(DDIM())


@pytest.fixture(scope="module")
def tiny():
  with quick_edits():
    yield model_of(shrunk(config("fashion_mnist")))


def conditioned(conditioner):
  experiment = shrunk(config("fashion_mnist"))
  replace, denoiser = dataclasses.replace, experiment.stage("denoiser")
  objective = replace(denoiser.objective, conditioners=(*denoiser.objective.conditioners, conditioner))
  denoiser = replace(denoiser, objective=objective)
  return model_of(experiment.with_stage(denoiser))


def reconstruction(model, params):
  sized = resize_model(model, (16, 16))
  z = edit.encode_images(sized, params["codec"], IMAGES)
  return to_uint8(codecs.decode_latents(Loaded(sized.codec, params["codec"]), z))


def same(a, b):
  return np.abs(a.astype(int) - b.astype(int)).max() <= 1


def test_strength_0_is_the_reconstruction_and_numbers_compile_nothing(tiny):
  before = edit.run_image_to_image._cache_size()
  run = lambda strength, label=3, seed=0, **fields: edit.image_to_image(
    *tiny,
    IMAGES,
    strength,
    Request(seed=seed, given={"label": label}),
    dataclasses.replace(TWO_STEPS, **fields),
  )
  assert same(run(0), reconstruction(*tiny))
  whole = run(1.0)
  assert (
    not same(whole, run(0.5)) and not same(whole, run(1, seed=1)) and not same(whole, run(1, label=[2, 3]))
  )
  assert not same(whole, run(1, guidance=ClassifierFree(3))) and not same(whole, run(1, sampler=DDIM(1)))
  assert edit.run_image_to_image._cache_size() == before + 1


def test_what_is_known_is_kept_and_masks_compile_nothing(tiny):
  before = edit.run_inpaint._cache_size()
  run = lambda known, strength=1.0, seed=0: edit.inpaint(
    *tiny, IMAGES, known, strength, request=dataclasses.replace(THREE, seed=seed), sampling=TWO_STEPS
  )
  for known in (KNOWN, KNOWN[::-1], np.stack([KNOWN, KNOWN.T])[..., None]):
    filled, kept = (
      run(known),
      np.broadcast_to(known[..., None] if known.ndim == 2 else known, IMAGES.shape) == 1,
    )
    np.testing.assert_array_equal(filled[kept], IMAGES[kept])
    assert (filled[~kept] != IMAGES[~kept]).mean() > 0.5
  assert not same(run(KNOWN), run(KNOWN, seed=1)) and not same(run(KNOWN), run(KNOWN, 0.5))
  assert edit.run_inpaint._cache_size() == before + 1
  hidden = np.where(KNOWN[..., None] == 1, IMAGES, 0).astype(np.uint8)
  unseen = edit.inpaint(*tiny, hidden, KNOWN, request=THREE, sampling=TWO_STEPS)
  np.testing.assert_array_equal(unseen, run(KNOWN), "what is hidden is not seen")


@pytest.mark.slow
def test_edict_comes_back(tiny):
  actual = latent_edit.invert(*tiny, IMAGES, THREE, ways(EDICT(), 4, 1.0))
  assert actual.noise.shape == (2, 4, 4, 8) and (actual.psnr > 60).all()
  assert same(actual.codec, reconstruction(*tiny)) and same(actual.reconstruction, actual.codec)
  again = latent_edit.revert(*tiny, actual.noise, THREE, ways(EDICT(), 4, 1.0))
  assert same(again, actual.codec)


@pytest.mark.slow
def test_a_translation_onto_the_same_class_changes_nothing(tiny):
  six = Request(given={"label": 6})
  run = lambda onto: latent_edit.translate(
    *tiny, IMAGES, {"label": onto}, request=six, sampling=ways(None, 4, 2.0)
  )
  assert same(run(6), reconstruction(*tiny))
  assert not same(run(8), reconstruction(*tiny))


@pytest.mark.slow
def test_an_interpolation_ends_at_the_reconstructions(tiny):
  for space in ("noise", "latents"):
    images = latent_edit.interpolate(*tiny, IMAGES, 3, space, sampling=ways(None, 2, 1.0))
    assert images.shape == (3, 16, 16, 1) and same(images[[0, 2]], reconstruction(*tiny)), space


@pytest.mark.slow
def test_a_direction_of_no_length_changes_nothing_and_controls_are_as_long(tiny):
  examples = np.concatenate([IMAGES, IMAGES[:, ::-1], IMAGES[:, :, ::-1]])
  actual = latent_edit.attribute(*tiny, examples, [1, 0, 1, 0, 1, 0], controls=2)
  assert actual.shape == (3, 4, 4, 4)
  norms = np.linalg.norm(actual.reshape(3, -1), axis=1)
  np.testing.assert_allclose(norms, norms[0], rtol=1e-5)
  moved = latent_edit.traverse(*tiny, IMAGES[:1], actual, [0.0, 1.0], sampling=TWO_STEPS)
  assert moved.shape == (3, 2, 16, 16, 1)
  assert all(same(row[0], reconstruction(*tiny)[0]) and not same(row[1], row[0]) for row in moved)


@pytest.mark.slow
def test_restoration_keeps_the_pixels_that_are_there_and_compiles_once(tiny):
  before = edit.run_restore._cache_size()
  for known, noise in ((KNOWN, 0.0), (KNOWN[::-1], 0.0), (KNOWN, 0.2)):
    out = edit.restore(*tiny, IMAGES, known=known, noise=noise, sampling=TWO_STEPS)
    assert np.array_equal(out[:, known == 1], IMAGES[:, known == 1]) == (noise == 0)
  assert edit.run_restore._cache_size() == before + 1


@pytest.mark.slow
def test_a_mean_of_restorations_and_other_degradations(tiny):
  each = edit.restore(*tiny, IMAGES, Blurred(1.0), request=Request(n=3), sampling=TWO_STEPS)
  assert np.abs(edit.average_edits(each, 3) - each.reshape(2, 3, 16, 16, 1).mean(1)).max() <= 0.5


ONE_OF_A_CLASS = {
  type(presets.make_sampler(name)): name for name in presets.SAMPLERS
}  # others are its numbers


@pytest.mark.slow
@pytest.mark.parametrize("name", ONE_OF_A_CLASS.values())
def test_every_sampler_edits(tiny, name):
  sampling = ways(presets.make_sampler(name))
  assert same(edit.image_to_image(*tiny, IMAGES, 0, sampling=sampling), reconstruction(*tiny))
  filled = edit.inpaint(*tiny, IMAGES, KNOWN, sampling=sampling)
  np.testing.assert_array_equal(filled[:, KNOWN == 1], IMAGES[:, KNOWN == 1])
  assert edit.restore(*tiny, IMAGES, sampling=sampling).shape == IMAGES.shape
  try:
    actual = latent_edit.invert(*tiny, IMAGES, sampling=sampling)
  except UserError as error:
    assert "draws noise at each step" in str(error)
  else:
    assert np.isfinite(actual.noise).all()


@pytest.mark.slow
def test_a_model_of_masks_is_reported_the_mask():
  masked = conditioned(Masked())
  filled = edit.inpaint(*masked, IMAGES, KNOWN, request=THREE, sampling=TWO_STEPS)
  np.testing.assert_array_equal(filled[:, KNOWN == 1], IMAGES[:, KNOWN == 1])
  other = KNOWN.copy()
  other[:4] = 0
  assert not same(
    edit.inpaint(*masked, IMAGES, other, request=THREE, sampling=TWO_STEPS)[:, KNOWN == 0],
    filled[:, KNOWN == 0],
  )


@pytest.mark.slow
def test_a_model_of_pairs_makes_one_of_the_other_and_nothing_else():
  pairs = conditioned(Paired(degradation=Blurred()))
  made = edit.paired(*pairs, IMAGES, THREE, TWO_STEPS)
  assert made.shape == IMAGES.shape and not same(made, edit.paired(*pairs, IMAGES[:, ::-1], THREE, TWO_STEPS))
  with pytest.raises(UserError, match="always trained with 'paired', Paired"):
    edit.image_to_image(*pairs, IMAGES, sampling=TWO_STEPS)
  with pytest.raises(UserError, match="inpainting needs Masked"):
    edit.inpaint(*pairs, IMAGES, KNOWN, sampling=TWO_STEPS)


def unconditional(model):
  objective = model.objective
  network = objective.network.clone(classes=0)
  return dataclasses.replace(
    model, objective=dataclasses.replace(objective, network=network, conditioners=())
  )


@pytest.mark.parametrize(
  ("call", "message"),
  [
    (
      lambda tiny: edit.image_to_image(*tiny, IMAGES, request=Request(given={"label": [1, 2, 3]})),
      "3 values of 'label' for 2 samples",
    ),
    (lambda tiny: latent_edit.interpolate(*tiny, IMAGES[:1]), "1 pictures and 9 places"),
    (
      lambda tiny: latent_edit.interpolate(*tiny, IMAGES, space="pixels"),
      "space='pixels'; expected 'noise' or 'latents'",
    ),
    (
      lambda tiny: latent_edit.traverse(*tiny, IMAGES[:1], np.zeros((1, 2, 2, 4)), [1.0]),
      "directions of [1, 2, 2, 4]",
    ),
    (lambda tiny: latent_edit.attribute(*tiny, IMAGES, [1, 1]), "2 of 2 flags set; expected some of both"),
    (
      lambda tiny: latent_edit.translate(unconditional(tiny[0]), tiny[1], IMAGES, {"label": 1}),
      "knows no classes",
    ),
    (
      lambda tiny: edit.image_to_image(*tiny, IMAGES, request=3),
      "3 in the place of the request; expected Request(",
    ),
    (lambda tiny: edit.paired(*tiny, IMAGES), "not trained on pairs"),
  ],
)
def test_mistakes(tiny, call, message):
  with pytest.raises(UserError) as error:
    call(tiny)
  assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
  ("call", "message"),
  [
    (
      lambda m, p: latent_edit.invert(m, p, IMAGES, Request(n=2)),
      "n=2 of an edit that draws no noise; expected 1",
    ),
    (
      lambda m, p: latent_edit.translate(m, p, IMAGES, {"label": 1}, request=Request(n=2)),
      "n=2 of an edit that draws",
    ),
    (
      lambda m, p: edit.image_to_image(m, p, IMAGES, request=Request(size=(8, 8))),
      "size of the request of an",
    ),
    (lambda m, p: edit.image_to_image(m, p, IMAGES, request=Request(n=0)), "n=0; expected at least 1"),
    (lambda m, p: edit.inpaint(m, p, IMAGES, KNOWN, repaint=(1, 5)), "jump=5 with repeats=1"),
    (lambda m, p: edit.inpaint(m, p, IMAGES, KNOWN, repaint=(2, 2), sampling=TWO_STEPS), "jump=2 of 2 steps"),
    (lambda m, p: edit.inpaint(m, p, IMAGES, KNOWN, repaint=(0, 1)), "repeats=0; expected a whole number"),
    (lambda m, p: edit.restore(m, p, IMAGES, noise=np.inf), "noise=inf; expected at least 0"),
    (
      lambda m, p: edit.restore(m, p, IMAGES, Blurred(1e9)),
      "sigma=1000000000.0; expected numbers in (0, 1e6]",
    ),
    (
      lambda m, p: latent_edit.attribute(m, p, IMAGES, [0, 1], controls=-1),
      "controls=-1; expected at least 0",
    ),
    (
      lambda m, p: latent_edit.traverse(m, p, IMAGES[:1], [], [np.nan]),
      "amounts=[nan]; expected finite numbers",
    ),
  ],
)
def test_what_reaches_nothing_or_is_out_of_range_is_refused(tiny, call, message):
  with pytest.raises(UserError) as error:
    call(*tiny)
  assert message in str(error.value) and "\n" not in str(error.value)
