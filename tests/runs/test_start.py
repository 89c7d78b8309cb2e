"""A stage that starts from another one: on other data, with statistics and classes of its own."""

import dataclasses

import jax
import numpy as np
import pytest

from jldm.config.experiment import Pretrained
from jldm.config.override import override
from jldm.core.errors import UserError
from jldm.inference.load import load, load_codec
from jldm.models.codecs.images import ImageCodec
from jldm.runs.train import train

TABLE = ("denoiser", "label", "table")


def of_classes(experiment, classes):
  """The experiment on data of another number of classes."""
  for path, text in (
    ("data.classes", str(classes)),
    ("denoiser.objective.network.classes", str(classes)),
    ("denoiser.objective.conditioners", f"(ClassLabel(classes={classes}),)" if classes else "()"),
  ):
    experiment = override(experiment, path, text)
  return experiment


def tuned(experiment, unbroken, **fields):
  """Its denoiser, for one step that changes nothing, from that of the finished run."""
  started = override(experiment, "denoiser.start", str(unbroken))
  for name, text in {"steps": "1", "optimizer.schedule.peak": "0.0", "ema": "Decay(0.0)", **fields}.items():
    started = override(started, f"denoiser.{name}", text)
  return dataclasses.replace(started, stages=(Pretrained(str(unbroken)), started.stage("denoiser")))


def test_statistics_are_measured_anew_on_request(on_imported, imported, tmp_path, capsys):
  """Standardised by them, the latents of the training set have mean 0 and variance 1."""
  network, before = load_codec(imported)
  train(
    on_imported.with_stage(Pretrained(str(imported), remeasure=True)),
    tmp_path / "w",
    ("autoencoder",),
    devices=1,
  )
  assert "codec: latents have mean" in capsys.readouterr().out
  after = load_codec(tmp_path / "w")[1]
  jax.tree.map(np.testing.assert_array_equal, after["params"], before["params"])
  data = on_imported.data
  posterior = ImageCodec(network).encode(after, data.open(data.train)[np.arange(20)])
  mean, std = np.asarray(after["mean"]), np.asarray(after["std"])
  z = (np.asarray(posterior.mean) - mean) / std
  np.testing.assert_allclose(z.mean((0, 1, 2)), 0, atol=1e-4)
  noise = (np.exp(np.asarray(posterior.log_variance)) / std**2).mean((0, 1, 2))
  np.testing.assert_allclose(z.var((0, 1, 2)) + noise, 1, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("classes", [4, 0])
def test_other_classes_get_a_new_label_table_and_all_else_is_kept(
  experiment, unbroken, tmp_path, capsys, classes
):
  train(tuned(of_classes(experiment, classes), unbroken), tmp_path / "w", devices=1)
  message = f"new label table; denoiser.objective.network.classes: 10 -> {classes}"
  assert message in capsys.readouterr().out
  theirs, ours = (load(workdir)[1]["denoiser"] for workdir in (unbroken, tmp_path / "w"))
  tables = [network.pop("label", {}).get("table") for network in (theirs, ours)]
  jax.tree.map(np.testing.assert_array_equal, ours, theirs)
  assert tables[0].shape == (11, 8) and (tables[1] is None or tables[1].shape == (classes + 1, 8))
  if classes:
    assert 0.005 < np.std(tables[1]) < 0.05 and not np.isin(tables[1], tables[0]).any(), "drawn anew"


def test_what_does_not_fit_is_one_line(experiment, unbroken, tmp_path):
  wider = {"objective.network.width": "16"}
  for classes in (10, 4):
    with pytest.raises(UserError, match=r"another network: denoiser.objective.network.width: 8 -> 16; make"):
      train(tuned(of_classes(experiment, classes), unbroken, **wider), tmp_path / "w", devices=1)
  for stage, words in (("denoiser", "makes a denoiser"), ("autoencoder", "starts from 'nothing'")):
    with pytest.raises(UserError, match=rf"{stage}.remeasure=True .*{words}"):
      train(override(experiment, f"{stage}.remeasure", "True"), tmp_path / "w", devices=1)
  assert not (tmp_path / "w").exists()
