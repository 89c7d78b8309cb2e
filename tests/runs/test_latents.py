"""Latents are encoded once, standardised by their codec, and rebuilt where they are lost; conditions
stand beside them.
"""

import dataclasses
import shutil

import jax
import numpy as np
import pytest

from jldm.core.keys import row_keys
from jldm.data.synthetic import Synthetic
from jldm.inference.generate import Request, generate
from jldm.inference.load import load
from jldm.inference.model import build_model, find_stage
from jldm.models.codecs import codec as codecs
from jldm.runs import latents, run as runs
from jldm.runs.frozen import load_frozen
from jldm.runs.train import train
from jldm.storage import array_cache
from tests.trained import assert_same_end, claimed_with, with_conditioner


def test_the_codec_standardises_the_cached_latents(experiment, unbroken):
  _, params = load(unbroken)
  (cache,) = (unbroken / "latents").glob("*/0-0")
  mean, log_variance = np.load(cache / "mean.npy"), np.load(cache / "log_variance.npy")
  std = np.sqrt(mean.var((0, 1, 2)) + np.exp(log_variance).mean((0, 1, 2)))
  np.testing.assert_allclose(params["codec"]["mean"], mean.mean((0, 1, 2)), rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(params["codec"]["std"], std, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("folder", "array"), [("latents", "mean.npy"), ("conditions", "label.npy")])
def test_a_lost_or_damaged_latent_cache_is_rebuilt(experiment, unbroken, tmp_path, folder, array):
  workdir = tmp_path / "w"
  shutil.copytree(unbroken, workdir)
  shutil.rmtree(workdir / "denoiser")
  (cache,) = (workdir / folder).glob("*/0-0")
  whole = (cache / array).read_bytes()
  (cache / array).write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
  train(experiment, workdir, devices=1)
  assert (cache / array).read_bytes() == whole
  assert_same_end(unbroken, workdir)


@pytest.mark.slow
def test_source_pictures_are_encoded_beside_their_targets(experiment, unbroken, tmp_path):
  """In the cache row i has the latents of picture i and of what is made of it, and another degradation
  is another cache.
  """
  changed = claimed_with(experiment, "Paired(degradation=Mixture())", unbroken, tmp_path / "w")
  source = changed.data.open("train")
  model, mesh = build_model(changed), runs.mesh_for_stage(changed.stage("denoiser"), 1)
  run = runs.Run(find_stage(tmp_path / "w"), 1)
  codec = load_frozen(run, mesh)["codec"].params
  cache = latents.encode_training_set(run, codec, source, mesh)
  rows = cache[np.arange(len(source))]
  images = codecs.pixels(source[np.arange(len(source))]["image"])
  assert len(source) == 20 > changed.stage("autoencoder").batch_size, "several batches, the last one short"
  keys = row_keys(jax.random.key(latents.SOURCE_SEED), np.arange(20))
  made = model.conditioners["paired"].degradation(images, keys)
  encode = lambda images: np.asarray(model.codec.encode(codec, {"image": images}).mean)
  np.testing.assert_allclose(rows["mean"], encode(images), rtol=1e-3, atol=1e-4)
  made_raw = rows["paired__concat"] * np.asarray(codec["std"]) + np.asarray(codec["mean"])
  np.testing.assert_allclose(made_raw, encode(made), rtol=1e-3, atol=1e-4)
  assert (np.abs(made_raw - rows["mean"]).max((1, 2, 3)) > 0.01).all()
  others = ("Paired(degradation=Mixture((Noisy(),)))", "Paired(degradation=Noisy())", "Masked()")
  every = [changed, experiment, *(with_conditioner(experiment, other) for other in others)]
  conditions_hash = lambda codec, experiment: latents.conditions_hash(
    codec, build_model(experiment), experiment.data
  )
  moments_hash = lambda codec, experiment: latents.moments_hash(
    codec, build_model(experiment), experiment.data
  )
  assert len({conditions_hash(codec, each) for each in every}) == 5, "each has a cache of its own"
  rescaled = codec | {"std": 2 * codec["std"]}
  assert conditions_hash(rescaled, changed) != conditions_hash(codec, changed), "they are standardised"
  names = lambda folder: {path.name for path in (unbroken / folder).iterdir()}
  assert {moments_hash({"params": codec["params"]}, each) for each in every} == names("latents"), (
    "and moments one"
  )
  assert {conditions_hash(codec, experiment)} == names("conditions")


def test_a_condition_that_is_drawn_from_pictures_finds_them_beside_their_moments(
  experiment, unbroken, tmp_path
):
  changed = claimed_with(experiment, "Masked()", unbroken, tmp_path / "w")
  source, model = changed.data.open("train"), build_model(changed)
  run, mesh = runs.Run(find_stage(tmp_path / "w"), 1), runs.mesh_for_stage(changed.stage("denoiser"), 1)
  loaded = load_frozen(run, mesh)["codec"]
  codec = loaded.params
  rows = latents.encode_training_set(run, codec, source, mesh)[np.arange(20)]
  images = source[np.arange(20)]["image"]
  np.testing.assert_array_equal(rows["image"], images)
  np.testing.assert_allclose(
    rows["mean"], model.codec.encode(codec, {"image": images}).mean, rtol=1e-3, atol=1e-4
  )
  np.testing.assert_allclose(
    codecs.encode_mean(loaded, {"image": images}),
    codecs.standardised(codec, rows["mean"]),
    rtol=1e-3,
    atol=1e-3,
  )


@pytest.mark.slow
def test_pictures_of_several_shapes_mirrored_and_partly_labelled(experiment, tmp_path):
  data = Synthetic(channels=1, classes=10, count=40, buckets=((16, 48), (48, 16)), mirror=True, labelled=0.5)
  train(dataclasses.replace(experiment, data=data), tmp_path / "w", devices=1)
  cache = array_cache.open_cache(next((tmp_path / "w" / "latents").iterdir()))
  shapes = {source[np.array([0])]["mean"].shape[1:3] for source in cache.sources}
  assert shapes == {(4, 4), (2, 6), (6, 2)} and len(cache) == 80
  given = array_cache.open_cache(next((tmp_path / "w" / "conditions").iterdir()))
  labels = np.concatenate([source[np.arange(len(source))]["label"] for source in given.sources])
  assert [len(source) for source in given.sources] == [len(source) for source in cache.sources]
  assert (labels >= 0).sum() == 40
  model, params = load(tmp_path / "w")
  request, sampling = Request(given={"label": 3}, size=(48, 16)), dataclasses.replace(model.sampling, steps=2)
  assert generate(model, params, request, sampling, devices=1).data.shape == (1, 48, 16, 1)
