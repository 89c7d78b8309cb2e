"""Experiments as data: what goes out comes back, nothing else comes in, and a leaf keeps its type."""

import dataclasses
import json
from typing import Any

from flax import linen as nn
import pytest

from jldm.config import experiment as experiments
from jldm.config.experiment import Experiment, Stage, differences, dumps, from_data, loads, override, register, to_data, what
from jldm.core.errors import UserError
from jldm.data.tfds import ImageData
from jldm.diffusion.process import EDM, Betas, Cosine, Discrete, Flow
from jldm.diffusion.target import Predict
from jldm.diffusion.times import Uniform
from jldm.diffusion.weighting import MinSNR, Plain
from jldm.models.autoencoders.kl import KLAutoencoder
from jldm.models.conditioners.concat import Masked, Paired
from jldm.models.conditioners.degradation import Downsampled, Grey, Mixture, Noisy
from jldm.models.denoisers.dit import DiT
from jldm.models.denoisers.unet import UNet
from jldm.nn.attention import attend, late_normalised
from jldm.objectives.autoencoder import Reconstruction
from jldm.objectives.diffusion import Diffusion
from jldm.train.ema import Decay, Power
from tests.configs import config

SMALL = Experiment(
  data=ImageData(name="digits"),
  autoencoder=Stage(objective=Reconstruction(network=KLAutoencoder(widths=(64, 128)))),
  denoiser=Stage(objective=Diffusion(network=DiT(), process=Cosine()), steps=1000, ema=Decay(0.998)),
)


@dataclasses.dataclass(frozen=True)
class Pair:
  sizes: tuple = (1, 2)
  rates: tuple = (0.5, 0.25)
  limit: Any = None
  inner: Any = None


class Network(nn.Module):
  width: int = 3
  kernel: Any = attend


@pytest.fixture
def registered(monkeypatch):
  monkeypatch.setattr(experiments, "CLASSES", dict(experiments.CLASSES))
  return register(Pair), register(Network)


def refused(call, *arguments) -> str:
  """The one line that is told."""
  with pytest.raises(UserError) as error:
    call(*arguments)
  assert "\n" not in str(error.value)
  return str(error.value)


@pytest.mark.parametrize("name", ["digits", "fashion_mnist", "folder"])
def test_what_is_written_is_read(name):
  experiment = config(name)
  back = loads(dumps(experiment))
  assert back == experiment and hash(back) == hash(experiment)
  assert dumps(back) == dumps(experiment)
  assert json.loads(dumps(experiment)) == to_data(experiment), "strict JSON"


def test_every_field_is_written_down():
  """Or a default that changes in a later version would change an old experiment."""
  def whole(value):
    assert not dataclasses.is_dataclass(value) or set(to_data(value)) == {"class", *experiments.fields(value)}, value
    for field in experiments.fields(value) if dataclasses.is_dataclass(value) else ():
      whole(getattr(value, field))

  whole(SMALL)


def test_equal_experiments_have_equal_data():
  told = dataclasses.replace(SMALL.denoiser.objective, times=Uniform())
  assert told == SMALL.denoiser.objective and to_data(told) == to_data(SMALL.denoiser.objective)


def test_unregistered_classes_are_refused_both_ways():
  with_pair = dataclasses.replace(SMALL, data=Pair())
  assert refused(dumps, with_pair) == "class 'Pair' of the experiment is not known; register it: jldm.register(Pair)"
  text = dumps(SMALL).replace('"ImageData"', '"Pair"')
  assert "class 'Pair' of the experiment is not known" in refused(loads, text)


def test_a_class_of_a_known_name_is_not_that_class():
  impostor = dataclasses.make_dataclass("Flow", [], frozen=True)
  assert "class 'Flow' of the experiment is not known" in refused(to_data, impostor())


@pytest.mark.parametrize("name", ["os.system", "jldm.config.experiment.Stage", "__import__", "eval", "", None, 3])
def test_only_names_of_the_table_are_read(name):
  data = to_data(SMALL)
  data["denoiser"]["objective"]["process"] = {"class": name, "command": "echo"}
  assert f"class {name!r} of the experiment is not known" in refused(loads, json.dumps(data))


@pytest.mark.parametrize("text", ["", "nonsense", "[]", "3", "{}", '{"class": "Stage"}', '{"class": ["Experiment"]}'])
def test_what_is_not_an_experiment_is_refused(text):
  assert refused(loads, text).startswith("not an experiment: ")


def test_fields_of_another_version_are_refused():
  data = to_data(SMALL)
  data["autoencoder"]["momentum"] = 0.9
  assert "Stage of the experiment does not fit this version of jldm" in refused(loads, json.dumps(data))


@pytest.mark.parametrize("value", [len, {"a": 1}, object, 1j])
def test_what_is_not_data_is_refused(value):
  assert "is not data" in refused(to_data, dataclasses.replace(SMALL, data=value))


def test_registered_classes_go_out_and_come_back(registered):
  for value in (Pair((3,), (0.1, 2.0), None, Pair()), Network(width=5), Network()):
    back = from_data(json.loads(json.dumps(to_data(value))))
    assert back == value and type(back) is type(value) and hash(back) == hash(value)
  assert Network().kernel is from_data(to_data(Network())).kernel
  assert "is not data" in refused(to_data, Network(kernel=late_normalised))


def test_bools_of_older_files_are_read_as_what_they_meant():
  as_written = to_data(DiT(remat="none"))
  for bool_, name in ((False, "none"), (True, "full")):
    assert from_data(as_written | {"remat": bool_}) == DiT(remat=name)
  assert from_data(as_written | {"in_context": True}).in_context is True
  assert from_data(to_data(UNet()) | {"remat": True}) != UNet(remat="full")  # it never was one there


def test_registering_twice_is_nothing_and_another_class_of_that_name_is_refused(registered):
  assert register(Pair) is Pair
  another = dataclasses.make_dataclass("Pair", [], frozen=True)
  assert "another class named 'Pair' is registered" in refused(register, another)


@pytest.mark.parametrize("path, text, value", [
  ("seed", "7", 7),
  ("denoiser.steps", "500", 500),
  ("denoiser.optimizer.schedule.peak", "3e-4", 3e-4),
  ("denoiser.ema.decay", "1", 1.0),  # an int is a legal float
  ("denoiser.objective.network.width", "512", 512),
  ("denoiser.objective.parametrization.kind", "eps", "eps"),
  ("autoencoder.objective.network.widths", "(8, 16, 32)", (8, 16, 32)),
  ("autoencoder.objective.network.widths", "8,16", (8, 16)),
  ("data.name", "3", "3"),  # a string stays one
  ("data.name", "a=b c", "a=b c"),
])
def test_an_override_replaces_one_leaf(path, text, value):
  changed = override(SMALL, path, text)
  leaf = changed
  for name in path.split("."):
    leaf = getattr(leaf, name)
  assert leaf == value and type(leaf) is type(value)
  assert hash(changed) != hash(SMALL) or changed == SMALL
  assert [line.split(":")[0] for line in differences(to_data(SMALL), to_data(changed))] == [path]


def test_how_a_thing_is_computed_is_no_difference():
  changed = override(SMALL, "denoiser.objective.network.remat", "dots")
  assert changed.denoiser.objective.network.remat == "dots" and to_data(changed) != to_data(SMALL)
  assert differences(to_data(SMALL), to_data(changed)) == []
  assert what(to_data(changed)) == what(to_data(SMALL)) != to_data(SMALL)


@pytest.mark.parametrize("path, text, told", [
  ("denoizer.steps", "5", "Experiment has no field 'denoizer'; did you mean 'denoiser'?"),
  ("denoiser.objective.network.widht", "5", "DiT has no field 'widht'; did you mean 'width'?"),
  ("denoiser.qqq", "5", "Stage has no field 'qqq'; it has objective, optimizer, steps"),
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
  ("denoiser.objective.process", "Flow", "denoiser.objective.process: expected Cosine(...) or Flow(...) or LinearVP(...)"),
  ("denoiser.objective.process", "Uniform()", "(none), got 'Uniform()'"),
  ("denoiser.objective.process", "Flou()", "denoiser.objective.process: no class 'Flou'; did you mean 'Flow'?"),
  ("denoiser.objective.process", "EDM(top=3)", "EDM(top=3) does not fit: "),
  ("denoiser.objective.process", "open('x')", "no class 'open'"),
  ("denoiser.objective.process", "Flow().alpha(1)", "expected Cosine(...)"),
  ("denoiser.objective.process", "Discrete(Uniform())", "schedule=Uniform() of Discrete; expected one like ScaledLinearBetas("),
  ("denoiser.objective.process", "Shifted(3.0)", "process=3.0 of Shifted; expected one like Flow()"),
  ("denoiser.objective.process", "EDM(**{'rho': 3.0})", "does not fit"),
  ("denoiser.objective.weighting", "MinSNR", "expected Own(...) or Plain(...)"),
  ("denoiser.objective.weighting", "Uniform()", "expected Own(...) or Plain(...)"),
  ("denoiser.objective.parametrization", "Predict('epps')", "predict='epps'; expected one of"),
  ("denoiser.objective.parametrization.kind", "epps", "predict='epps'; expected one of ['eps', 'flow', 'v', 'x0']"),
  ("denoiser.objective.condition", "Grey()", "condition: expected Masked(...) or Paired(...), or None, got 'Grey()'"),
  ("denoiser.objective.condition", "masked", "condition: expected Masked(...) or Paired(...), or None, got 'masked'"),
  ("denoiser.objective.condition", "Paired(degradation=Masked())", "degradation=Masked("),
  ("denoiser.objective.condition", "Paired(degradation=Downsampled(2.5))", "factor=2.5 of Downsampled; expected one like 4"),
  ("denoiser.objective.condition", "Masked(dropout=2)", "dropout=2 of the condition; expected a share from 0 to 1"),
])
def test_an_override_that_does_not_fit_is_told(path, text, told):
  assert told in refused(override, SMALL, path, text)


@pytest.mark.parametrize("path, text, value", [
  ("denoiser.objective.process", "EDM(highest=20.0)", EDM(highest=20.0)),
  ("denoiser.objective.process", "Discrete(Betas((0.1, 0.2)), zero_terminal_snr=True)", Discrete(Betas((0.1, 0.2)), True)),
  ("denoiser.objective.parametrization", "Predict('eps')", Predict("eps")),
  ("denoiser.objective.weighting", "MinSNR()", MinSNR()),
  ("denoiser.objective.weighting", "Plain('flow', 400)", Plain("flow", 400)),
  ("denoiser.objective.network", "UNet(widths=(16, 32), classes=10)", UNet(widths=(16, 32), classes=10)),
  ("denoiser.ema", "Power((0.05, 0.2))", Power((0.05, 0.2))),
  ("denoiser.objective.condition", "Masked(shapes=('box',))", Masked(shapes=("box",))),
  ("denoiser.objective.condition", "Paired(degradation=Mixture((Noisy(1), Grey())), dropout=0.1)",
   Paired(degradation=Mixture((Noisy(1.0), Grey())), dropout=0.1)),
])
def test_an_override_replaces_an_object_by_one_of_its_role(path, text, value):
  changed = override(SMALL, path, text)
  for name in path.split("."):
    changed = getattr(changed, name)
  assert changed == value and type(changed) is type(value)


def test_a_registered_class_may_stand_anywhere(registered):
  assert override(SMALL, "denoiser.objective.process", "Pair()").denoiser.objective.process == Pair()


def test_ints_are_floats_in_a_tuple_of_floats():
  assert override(Pair(), "rates", "(1, 2.5)").rates == (1.0, 2.5)


def test_ints_are_floats_within_an_object():
  process = override(SMALL, "denoiser.objective.process", "EDM(20)").denoiser.objective.process
  assert process == EDM(20.0) and type(process.highest) is float


def test_bare_words_where_nothing_stood_are_refused():
  assert "limit: expected a value written as in Python" in refused(override, Pair(), "limit", "some")
  assert "expected" in refused(override, Pair(), "limit", "Flow()")


def test_an_override_where_nothing_stood_is_any_literal():
  assert override(Pair(), "limit", "0.5").limit == 0.5
  assert override(Pair(), "limit", "'some'").limit == "some"
  assert override(Pair(inner=Pair()), "inner.sizes", "(5,)").inner.sizes == (5,)


def test_a_condition_may_be_set_changed_and_taken_back():
  path = "denoiser.objective.condition"
  paired = override(override(SMALL, path, "Paired()"), f"{path}.degradation", "Downsampled(2)")
  assert paired.denoiser.objective.condition == Paired(degradation=Downsampled(2))
  assert loads(dumps(paired)) == paired
  assert override(override(paired, path, "Masked()"), path, "None") == SMALL
  before = to_data(SMALL)
  before["denoiser"]["objective"].pop("condition")
  assert from_data(before) == SMALL, "what was written before there were conditions"


def test_differences_are_named_in_order():
  other = override(override(SMALL, "seed", "1"), "denoiser.steps", "5")
  process = dataclasses.replace(other.denoiser.objective, process=Flow())
  other = dataclasses.replace(other, denoiser=dataclasses.replace(other.denoiser, objective=process))
  assert differences(to_data(SMALL), to_data(other)) == [
    "denoiser.objective.process.class: 'Cosine' -> 'Flow'", "denoiser.steps: 1000 -> 5", "seed: 0 -> 1",
  ]
  assert differences(to_data(SMALL), to_data(SMALL)) == []
  assert differences({"a": 1}, {"a": 1.0}) == ["a: 1 -> 1.0"], "another type is another experiment"
  assert differences({"a": 1}, {"b": 2}) == ["a: 1 -> None", "b: None -> 2"]
