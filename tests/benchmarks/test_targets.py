"""The comparisons run on a shrunk experiment, and say what is so where the answer is known."""

import sys

import numpy as np
import pytest

from benchmarks import averages, log_variance, targets
from jldm.config.override import override
from jldm.config.serialize import from_data, to_data
from jldm.runs import validate
from jldm.runs.train import train
from jldm.storage import workdir as workdirs
from tests.configs import config, shrunk
from tests.marks import slow_after


@pytest.mark.parametrize("network", slow_after(1, targets.NETWORKS))
@pytest.mark.parametrize("target", targets.TARGETS)
def test_every_row_is_an_experiment_that_can_be_sampled(network, target):
  from jldm.inference.generate import sampling_pairs
  from jldm.inference.model import build_model

  experiment = targets.experiment(network, target, 10)
  assert from_data(to_data(experiment)) == experiment and experiment.stage("autoencoder") == config(
    "digits"
  ).stage("autoencoder")
  model = build_model(experiment)
  validate.check_shapes(model, experiment.data)
  sampling_pairs(model, model.sampling)


def test_the_table_has_a_line_a_row():
  row = {
    "network": "DiT",
    "target": "eps",
    "parameters": 2_834_704,
    "class_agreement": 0.957,
    "std_ratio": 0.8712,
  }
  assert targets.table([row]).splitlines()[2:] == ["| DiT | eps | 2.8 M | 95.7 % | 0.87 |"]


@pytest.mark.slow
def test_what_was_learned_and_what_was_averaged(tmp_path, monkeypatch, capsys):
  experiment = shrunk(config("digits"), 12)
  experiment = override(experiment, "denoiser.ema", "Power((0.05, 0.10, 0.20))")
  experiment = override(experiment, "denoiser.objective.network.log_variance", "True")
  train(experiment, tmp_path / "w", devices=1)
  monkeypatch.setattr(sys, "argv", ["averages", str(tmp_path / "w")])
  averages.main()
  first = capsys.readouterr().out.splitlines()[-4].split("|")
  assert first[1:3] == [" 12 ", " 1 steps "] and float(first[3]) < 2e-6
  monkeypatch.setattr(log_variance, "TIMES", 3)
  times, log_loss, u = log_variance.measure(tmp_path / "w", 16)
  assert times.shape == log_loss.shape == u.shape == (3,) and np.isfinite([log_loss, u]).all()
  plain = experiment.with_stage(shrunk(config("digits"), 12).stage("denoiser"))
  workdirs.claim_workdir(tmp_path / "plain", plain)
  with pytest.raises(SystemExit, match=r"learned no log-variance; train with network.log_variance=True"):
    log_variance.measure(tmp_path / "plain", 16)
