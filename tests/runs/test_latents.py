"""Latents are encoded once, standardised by their codec, and rebuilt where they are lost; conditions stand beside them."""

import dataclasses
import shutil

import jax
import numpy as np
import pytest

from jldm.config.override import override
from jldm.core.keys import row_keys
from jldm.data.synthetic import Synthetic
from jldm.inference import pipeline
from jldm.models.codecs import codec as codecs
from jldm.runs import latents, run as runs, stages
from jldm.storage import array_cache
from tests.trained import STEPS, assert_same_end, with_condition


def test_the_codec_standardises_the_cached_latents(experiment, unbroken):
  _, params = pipeline.load(unbroken)
  (cache,) = (unbroken / "latents").glob("*/0-0")
  mean, log_variance = np.load(cache / "mean.npy"), np.load(cache / "log_variance.npy")
  std = np.sqrt(mean.var((0, 1, 2)) + np.exp(log_variance).mean((0, 1, 2)))
  np.testing.assert_allclose(params["codec"]["mean"], mean.mean((0, 1, 2)), rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(params["codec"]["std"], std, rtol=1e-5)


@pytest.mark.slow
def test_a_lost_or_damaged_latent_cache_is_rebuilt(experiment, unbroken, tmp_path):
  workdir = tmp_path / "w"
  shutil.copytree(unbroken, workdir)
  shutil.rmtree(workdir / "denoiser")
  (cache,) = (workdir / "latents").glob("*/0-0")
  whole = (cache / "mean.npy").read_bytes()
  (cache / "mean.npy").write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
  stages.train(experiment, workdir, devices=1)
  assert (cache / "mean.npy").read_bytes() == whole
  assert_same_end(unbroken, workdir)


def test_source_pictures_are_encoded_beside_their_targets(experiment, unbroken, tmp_path):
  """In the cache row i has the latents of picture i and of what is made of it, and another degradation is another cache."""
  changed = with_condition(experiment, "Paired(degradation=Mixture())", unbroken, tmp_path / "w")
  source = changed.data.open("train")
  model, mesh = pipeline.of(changed), runs.mesh_of(changed.denoiser, 1)
  codec = latents.committed_codec(model, tmp_path / "w", STEPS)
  run = runs.Run(changed, model, tmp_path / "w", 1)
  cache = latents.encoded(run, {"params": codec["params"]}, source, mesh)
  rows = cache[np.arange(len(source))]
  images = codecs.pixels(source[np.arange(len(source))]["image"])
  assert len(source) == 20 > changed.autoencoder.batch_size, "several batches, the last one short"
  keys = row_keys(jax.random.key(latents.SOURCE_SEED), np.arange(20))
  made = changed.denoiser.objective.condition.degradation(images, keys)
  encode = lambda images: np.asarray(codecs.encode(model.autoencoder, codec, images).mean)
  np.testing.assert_allclose(rows["mean"], encode(images), rtol=1e-3, atol=1e-4)
  np.testing.assert_allclose(rows["source"], encode(made), rtol=1e-3, atol=1e-4)
  assert (np.abs(rows["source"] - rows["mean"]).max((1, 2, 3)) > 0.01).all()
  others = ("Paired(degradation=Mixture((Noisy(),)))", "Paired(degradation=Noisy())", "Masked()", "None")
  hashes = {latents.codec_hash(codec, override(changed, "denoiser.objective.condition", other)) for other in others}
  assert len(hashes | {latents.codec_hash(codec, changed)}) == 5, "each has a cache of its own"
  assert {latents.codec_hash({"params": codec["params"]}, experiment)} == {path.name for path in (unbroken / "latents").iterdir()}


def test_a_condition_that_is_drawn_from_pictures_finds_them_beside_their_moments(experiment, unbroken, tmp_path):
  changed = with_condition(experiment, "Masked()", unbroken, tmp_path / "w")
  source, model = changed.data.open("train"), pipeline.of(changed)
  codec, mesh = latents.committed_codec(model, tmp_path / "w", STEPS), runs.mesh_of(changed.denoiser, 1)
  rows = latents.encoded(runs.Run(changed, model, tmp_path / "w", 1), {"params": codec["params"]}, source, mesh)[np.arange(20)]
  images = source[np.arange(20)]["image"]
  np.testing.assert_array_equal(rows["image"], images)
  np.testing.assert_allclose(rows["mean"], codecs.encode(model.autoencoder, codec, images).mean, rtol=1e-3, atol=1e-4)
  encoder = latents.handed(model, codec)
  np.testing.assert_allclose(encoder(images), codecs.standardised(encoder, rows["mean"]), rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_pictures_of_several_shapes_mirrored_and_partly_labelled(experiment, tmp_path):
  data = Synthetic(channels=1, classes=10, count=40, buckets=((16, 48), (48, 16)), mirror=True, labelled=0.5)
  stages.train(dataclasses.replace(experiment, data=data), tmp_path / "w", devices=1)
  cache = array_cache.open_cache(next((tmp_path / "w" / "latents").iterdir()))
  shapes = {source[np.array([0])]["mean"].shape[1:3] for source in cache.sources}
  assert shapes == {(4, 4), (2, 6), (6, 2)} and len(cache) == 80
  labels = np.concatenate([source[np.arange(len(source))]["label"] for source in cache.sources])
  assert (labels >= 0).sum() == 40
  assert pipeline.generate(*pipeline.load(tmp_path / "w"), [3], steps=2, size=(48, 16), devices=1).shape == (1, 48, 16, 1)
