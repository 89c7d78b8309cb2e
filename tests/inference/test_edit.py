"""Edits of a tiny model: what must not change does not, and changing numbers compiles nothing."""

import dataclasses

import numpy as np
import pytest

from jldm.config import presets
from jldm.core.errors import UserError
from jldm.editing.edict import EDICT
from jldm.inference import edit, pipeline
from jldm.media.images import to_uint8
from jldm.models.codecs import codec as codecs
from jldm.models.conditioners.concat import Masked, Paired
from jldm.models.conditioners.degradation import Blurred
from jldm.samplers.ddim import DDIM
from tests.configs import config, shrunk
from tests.edits import model_of, quick_edits

IMAGES = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 1), np.uint8)
KNOWN = np.ones((16, 16), np.float32)
KNOWN[4:12, 8:] = 0
HOW = edit.How(DDIM(), steps=2, guidance_scale=1.5)


@pytest.fixture(scope="module")
def tiny():
  with quick_edits():
    yield model_of(shrunk(config("fashion_mnist")))


def conditioned(condition):
  experiment = shrunk(config("fashion_mnist"))
  replace, objective = dataclasses.replace, experiment.denoiser.objective
  denoiser = replace(experiment.denoiser, objective=replace(objective, condition=condition))
  return model_of(replace(experiment, denoiser=denoiser))


def reconstruction(model, params):
  sized = pipeline.resized(model, (16, 16))
  z = pipeline.encode(sized, params["codec"], IMAGES)
  return to_uint8(codecs.decode(sized.autoencoder, params["codec"], z))


def same(a, b):
  return np.abs(a.astype(int) - b.astype(int)).max() <= 1


def test_strength_0_is_the_reconstruction_and_numbers_compile_nothing(tiny):
  before = edit.run_image_to_image._cache_size()
  run = lambda strength, label=3, **how: edit.image_to_image(
    *tiny, IMAGES, strength, label, how=dataclasses.replace(HOW, **how))
  assert same(run(0), reconstruction(*tiny))
  whole = run(1.0)
  assert not same(whole, run(0.5)) and not same(whole, run(1, seed=1)) and not same(whole, run(1, label=[2, 3]))
  assert not same(whole, run(1, guidance_scale=3)) and not same(whole, run(1, sampler=DDIM(1)))
  assert edit.run_image_to_image._cache_size() == before + 1


def test_what_is_known_is_kept_and_masks_compile_nothing(tiny):
  before = edit.run_inpaint._cache_size()
  run = lambda known, strength=1.0, **how: edit.inpaint(
    *tiny, IMAGES, known, 3, strength=strength, how=dataclasses.replace(HOW, **how))
  for known in (KNOWN, KNOWN[::-1], np.stack([KNOWN, KNOWN.T])[..., None]):
    filled, kept = run(known), np.broadcast_to(known[..., None] if known.ndim == 2 else known, IMAGES.shape) == 1
    np.testing.assert_array_equal(filled[kept], IMAGES[kept])
    assert (filled[~kept] != IMAGES[~kept]).mean() > 0.5
  assert not same(run(KNOWN), run(KNOWN, seed=1)) and not same(run(KNOWN), run(KNOWN, 0.5))
  assert edit.run_inpaint._cache_size() == before + 1
  hidden = np.where(KNOWN[..., None] == 1, IMAGES, 0).astype(np.uint8)
  np.testing.assert_array_equal(edit.inpaint(*tiny, hidden, KNOWN, 3, how=HOW), run(KNOWN)), "what is hidden is not seen"


def test_edict_comes_back(tiny):
  found = edit.invert(*tiny, IMAGES, 3, edit.How(EDICT(), steps=4, guidance_scale=1.0))
  assert found.noise.shape == (2, 4, 4, 8) and (found.psnr > 60).all()
  assert same(found.codec, reconstruction(*tiny)) and same(found.reconstruction, found.codec)
  again = edit.revert(*tiny, found.noise, 3, edit.How(EDICT(), steps=4, guidance_scale=1.0))
  assert same(again, found.codec)


def test_a_translation_onto_the_same_class_changes_nothing(tiny):
  how = edit.How(steps=4, guidance_scale=2.0)
  assert same(edit.translate(*tiny, IMAGES, 6, 6, how=how), reconstruction(*tiny))
  assert not same(edit.translate(*tiny, IMAGES, 6, 8, how=how), reconstruction(*tiny))


@pytest.mark.slow
def test_an_interpolation_ends_at_the_reconstructions(tiny):
  for space in ("noise", "latents"):
    images = edit.interpolate(*tiny, IMAGES, 3, space, how=edit.How(steps=2, guidance_scale=1.0))
    assert images.shape == (3, 16, 16, 1) and same(images[[0, 2]], reconstruction(*tiny)), space


@pytest.mark.slow
def test_a_direction_of_no_length_changes_nothing_and_controls_are_as_long(tiny):
  examples = np.concatenate([IMAGES, IMAGES[:, ::-1], IMAGES[:, :, ::-1]])
  found = edit.attribute(*tiny, examples, [1, 0, 1, 0, 1, 0], controls=2)
  assert found.shape == (3, 4, 4, 4)
  norms = np.linalg.norm(found.reshape(3, -1), axis=1)
  np.testing.assert_allclose(norms, norms[0], rtol=1e-5)
  moved = edit.traverse(*tiny, IMAGES[:1], found, [0.0, 1.0], how=HOW)
  assert moved.shape == (3, 2, 16, 16, 1)
  assert all(same(row[0], reconstruction(*tiny)[0]) and not same(row[1], row[0]) for row in moved)


def test_restoration_keeps_the_pixels_that_are_there_and_compiles_once(tiny):
  before = edit.run_restore._cache_size()
  for known, noise in ((KNOWN, 0.0), (KNOWN[::-1], 0.0), (KNOWN, 0.2)):
    out = edit.restore(*tiny, IMAGES, known=known, noise=noise, how=HOW)
    assert np.array_equal(out[:, known == 1], IMAGES[:, known == 1]) == (noise == 0)
  assert edit.run_restore._cache_size() == before + 1


@pytest.mark.slow
def test_a_mean_of_restorations_and_other_degradations(tiny):
  each = edit.restore(*tiny, IMAGES, Blurred(1.0), n=3, how=HOW).reshape(2, 3, 16, 16, 1)
  mean = edit.restore(*tiny, IMAGES, Blurred(1.0), n=3, mean=True, how=HOW)
  assert np.abs(mean - each.mean(1)).max() <= 1


@pytest.mark.slow
@pytest.mark.parametrize("name", presets.SAMPLERS)
def test_every_sampler_edits(tiny, name):
  how = edit.How(presets.make_sampler(name), 2, 1.5)
  assert same(edit.image_to_image(*tiny, IMAGES, 0, how=how), reconstruction(*tiny))
  filled = edit.inpaint(*tiny, IMAGES, KNOWN, how=how)
  np.testing.assert_array_equal(filled[:, KNOWN == 1], IMAGES[:, KNOWN == 1])
  assert edit.restore(*tiny, IMAGES, how=how).shape == IMAGES.shape
  try:
    found = edit.invert(*tiny, IMAGES, how=how)
  except UserError as error:
    assert "draws noise at each step" in str(error)
  else:
    assert np.isfinite(found.noise).all()


@pytest.mark.slow
def test_a_model_of_masks_is_told_the_mask():
  masked = conditioned(Masked())
  filled = edit.inpaint(*masked, IMAGES, KNOWN, 3, how=HOW)
  np.testing.assert_array_equal(filled[:, KNOWN == 1], IMAGES[:, KNOWN == 1])
  other = KNOWN.copy()
  other[:4] = 0
  assert not same(edit.inpaint(*masked, IMAGES, other, 3, how=HOW)[:, KNOWN == 0], filled[:, KNOWN == 0])


def test_a_model_of_pairs_makes_one_of_the_other_and_nothing_else():
  pairs = conditioned(Paired(degradation=Blurred()))
  made = edit.paired(*pairs, IMAGES, 3, how=HOW)
  assert made.shape == IMAGES.shape and not same(made, edit.paired(*pairs, IMAGES[:, ::-1], 3, how=HOW))
  with pytest.raises(UserError, match="always trained beside a condition, Paired"):
    edit.image_to_image(*pairs, IMAGES, how=HOW)
  with pytest.raises(UserError, match="inpainting needs Masked"):
    edit.inpaint(*pairs, IMAGES, KNOWN, how=HOW)


@pytest.mark.parametrize(("call", "told"), [
  (lambda tiny: edit.image_to_image(*tiny, IMAGES, label=[1, 2, 3]), "3 labels for 2 pictures"),
  (lambda tiny: edit.interpolate(*tiny, IMAGES[:1]), "1 pictures and 9 places"),
  (lambda tiny: edit.interpolate(*tiny, IMAGES, space="pixels"), "space='pixels'; expected 'noise' or 'latents'"),
  (lambda tiny: edit.traverse(*tiny, IMAGES[:1], np.zeros((1, 2, 2, 4)), [1.0]), "directions of [1, 2, 2, 4]"),
  (lambda tiny: edit.attribute(*tiny, IMAGES, [1, 1]), "2 of 2 flags set; expected some of both"),
  (lambda tiny: edit.translate(dataclasses.replace(tiny[0], classes=0), tiny[1], IMAGES, -1, -1), "knows no classes"),
  (lambda tiny: edit.paired(*tiny, IMAGES), "not trained on pairs"),
])
def test_mistakes(tiny, call, told):
  with pytest.raises(UserError) as error:
    call(tiny)
  assert told in str(error.value) and "\n" not in str(error.value)
