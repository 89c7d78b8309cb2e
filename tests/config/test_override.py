"""`--set`: a leaf keeps its type, an object its role, and a mistake is one line."""

import pytest

from jldm.config.override import override
from jldm.config.serialize import differences, dumps, from_data, loads, to_data
from jldm.diffusion.process import EDM, Betas, Discrete
from jldm.diffusion.target import Predict
from jldm.diffusion.weighting import MinSNR, TargetWeighting
from jldm.models.conditioners.degradation import Downsampled, Grey, Mixture, Noisy
from jldm.models.conditioners.label import ClassLabel
from jldm.models.conditioners.pictures import Masked, Paired
from jldm.models.denoisers.unet import UNet
from jldm.train.ema import Power
from tests.config.examples import SMALL, Pair, field, refused

CONDITIONERS = (
  "a tuple of ClassLabel(...) or Vector(...) or Sizes(...) or Masked(...) or Paired(...) or Text(...) "
  "or Words(...), such as (), (A(),)"
)


@pytest.mark.parametrize(
  "path, text, value",
  [
    ("seed", "7", 7),
    ("denoiser.steps", "500", 500),
    ("denoiser.optimizer.schedule.peak", "3e-4", 3e-4),
    ("denoiser.ema.decay", "1", 1.0),  # an int is a legal float
    ("denoiser.objective.network.width", "512", 512),
    ("denoiser.objective.parametrization.prediction_type", "eps", "eps"),
    ("autoencoder.objective.network.widths", "(8, 16, 32)", (8, 16, 32)),
    ("autoencoder.objective.network.widths", "8,16", (8, 16)),
    ("data.name", "3", "3"),  # a string stays one
    ("data.name", "a=b c", "a=b c"),
  ],
)
def test_an_override_replaces_one_leaf(path, text, value):
  changed = override(SMALL, path, text)
  leaf = field(changed, path)
  assert leaf == value and type(leaf) is type(value)
  assert hash(changed) != hash(SMALL) or changed == SMALL
  assert [line.split(":")[0] for line in differences(to_data(SMALL), to_data(changed))] == [path]


@pytest.mark.parametrize(
  "path, text, message",
  [
    ("denoizer.steps", "5", "Experiment has no field 'denoizer'; did you mean 'denoiser'?"),
    ("denoiser.objective.network.widht", "5", "DiT has no field 'widht'; did you mean 'width'?"),
    ("denoiser.qqq", "5", "Stage has no field 'qqq'; it has name, objective, needs, start"),
    ("denoiser.objective.process.s", "5", "Cosine has no field 's'; it has none"),
    ("denoiser.objective.network.parent", "5", "DiT has no field 'parent'"),
    ("denoiser.steps.more", "5", "denoiser.steps.more: 1000 has no fields; set it whole"),
    ("denoiser.steps", "5.0", "denoiser.steps: expected int such as 1000, got '5.0'"),
    ("denoiser.steps", "many", "expected int such as 1000, got 'many'"),
    ("denoiser.steps", "True", "expected int such as 1000, got 'True'"),
    ("denoiser.steps", "", "expected int such as 1000, got ''"),
    ("denoiser.steps", "__import__('os').getpid()", "expected int"),
    ("denoiser.ema.decay", "True", "expected float such as 0.998, got 'True'"),
    ("denoiser.objective.network.in_context", "1", "expected bool such as False, got '1'"),
    ("autoencoder.objective.network.widths", "8", "expected tuple such as (64, 128), got '8'"),
    ("autoencoder.objective.network.widths", "(8, 1.5)", "expected tuple such as (64, 128), got '(8, 1.5)'"),
    (
      "denoiser.objective.process",
      "Flow",
      "denoiser.objective.process: expected Cosine(...) or Flow(...) or LinearVP(...)",
    ),
    ("denoiser.objective.process", "Uniform()", "(none), got 'Uniform()'"),
    (
      "denoiser.objective.process",
      "Flou()",
      "denoiser.objective.process: no class 'Flou'; did you mean 'Flow'?",
    ),
    ("denoiser.objective.process", "EDM(top=3)", "EDM(top=3) does not fit: "),
    (
      "denoiser.objective.process",
      "open('x')",
      "no class 'open'; a class of your own needs --import FILE.py",
    ),
    ("denoiser.objective.process", "Flow().alpha(1)", "expected Cosine(...)"),
    (
      "denoiser.objective.process",
      "Discrete(Uniform())",
      "beta_schedule=Uniform() of Discrete; expected one like ScaledLinearBetas(",
    ),
    ("denoiser.objective.process", "Shifted(3.0)", "process=3.0 of Shifted; expected one like Flow()"),
    ("denoiser.objective.process", "EDM(**{'rho': 3.0})", "does not fit"),
    ("denoiser.objective.weighting", "MinSNR", "expected Unweighted(...) or TargetWeighting(...)"),
    ("denoiser.objective.weighting", "Uniform()", "expected Unweighted(...) or TargetWeighting(...)"),
    ("denoiser.objective.parametrization", "Predict('epps')", "prediction_type='epps'; expected one of"),
    (
      "denoiser.objective.parametrization.prediction_type",
      "epps",
      "prediction_type='epps'; expected one of ['eps', 'flow', 'v', 'x0']",
    ),
    (
      "denoiser.objective.conditioners",
      "(Grey(),)",
      f"conditioners: expected {CONDITIONERS}, got '(Grey(),)'",
    ),
    ("denoiser.objective.conditioners", "Masked()", f"conditioners: expected {CONDITIONERS}, got 'Masked()'"),
    ("denoiser.objective.conditioners", "masked", f"conditioners: expected {CONDITIONERS}, got 'masked'"),
    ("denoiser.objective.conditioners", "None", f"conditioners: expected {CONDITIONERS}, got 'None'"),
    ("denoiser.objective.conditioners", "(Paired(degradation=Masked()),)", "degradation=Masked("),
    (
      "denoiser.objective.conditioners",
      "(Paired(degradation=Downsampled(2.5)),)",
      "factor=2.5 of Downsampled; expected one like 4",
    ),
    (
      "denoiser.objective.conditioners",
      "(Masked(dropout=2),)",
      "dropout=2 of conditioner 'masked'; expected a share from 0 to 1",
    ),
    ("denoiser.objective.conditioners", "(Masked(), Masked())", "several conditioners are named 'masked'"),
  ],
)
def test_an_override_that_does_not_fit_is_reported(path, text, message):
  assert message in refused(override, SMALL, path, text)


@pytest.mark.parametrize(
  "path, text, value",
  [
    ("denoiser.objective.process", "EDM(sigma_max=20.0)", EDM(sigma_max=20.0)),
    (
      "denoiser.objective.process",
      "Discrete(Betas((0.1, 0.2)), rescale_betas_zero_snr=True)",
      Discrete(Betas((0.1, 0.2)), True),
    ),
    ("denoiser.objective.parametrization", "Predict('eps')", Predict("eps")),
    ("denoiser.objective.weighting", "MinSNR()", MinSNR()),
    ("denoiser.objective.weighting", "TargetWeighting('flow', 400)", TargetWeighting("flow", 400)),
    ("denoiser.objective.network", "UNet(widths=(16, 32), classes=10)", UNet(widths=(16, 32), classes=10)),
    ("denoiser.ema", "Power((0.05, 0.2))", Power((0.05, 0.2))),
    ("denoiser.objective.conditioners", "(Masked(shapes=('box',)),)", (Masked(shapes=("box",)),)),
    (
      "denoiser.objective.conditioners",
      "(ClassLabel(classes=3, dropout=0.5), Masked())",
      (ClassLabel(classes=3, dropout=0.5), Masked()),
    ),
    (
      "denoiser.objective.conditioners",
      "(Paired(degradation=Mixture((Noisy(1), Grey())), dropout=0.1),)",
      (Paired(degradation=Mixture((Noisy(1.0), Grey())), dropout=0.1),),
    ),
  ],
)
def test_an_override_replaces_an_object_by_one_of_its_role(path, text, value):
  changed = field(override(SMALL, path, text), path)
  assert changed == value and type(changed) is type(value)


def test_a_registered_class_may_stand_anywhere(registered):
  assert override(SMALL, "denoiser.objective.process", "Pair()").stage("denoiser").objective.process == Pair()


def test_ints_are_floats_in_a_tuple_of_floats():
  assert override(Pair(), "rates", "(1, 2.5)").rates == (1.0, 2.5)


def test_ints_are_floats_within_an_object():
  process = override(SMALL, "denoiser.objective.process", "EDM(20)").stage("denoiser").objective.process
  assert process == EDM(20.0) and type(process.sigma_max) is float


def test_bare_words_where_nothing_stood_are_refused():
  assert "limit: expected a value written as in Python" in refused(override, Pair(), "limit", "some")
  assert "expected" in refused(override, Pair(), "limit", "Flow()")


def test_an_override_where_nothing_stood_is_any_literal():
  assert override(Pair(), "limit", "0.5").limit == 0.5
  assert override(Pair(), "limit", "'some'").limit == "some"
  assert override(Pair(inner=Pair()), "inner.sizes", "(5,)").inner.sizes == (5,)


def test_conditioners_may_be_set_changed_and_taken_back():
  path = "denoiser.objective.conditioners"
  paired = override(override(SMALL, path, "(Paired(),)"), path, "(Paired(degradation=Downsampled(2)),)")
  assert paired.stage("denoiser").objective.conditioners == (Paired(degradation=Downsampled(2)),)
  assert loads(dumps(paired)) == paired
  assert override(override(paired, path, "(Masked(),)"), path, "()") == SMALL
  before = to_data(SMALL)
  before["stages"][1]["objective"].pop("conditioners")
  assert from_data(before) == SMALL, "what was written before there were conditioners"
