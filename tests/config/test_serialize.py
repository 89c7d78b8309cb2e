"""Experiments as data: what goes out comes back, and nothing else comes in."""

import dataclasses
import json

import pytest

from jldm.config.experiment import Sampling
from jldm.config.override import override
from jldm.config.registry import field_names
from jldm.config.serialize import differences, dumps, from_data, loads, to_data, without_execution_fields
from jldm.diffusion.process import Flow
from jldm.diffusion.times import Uniform
from jldm.nn.attention import late_normalised
from jldm.samplers.churn import Churn
from jldm.samplers.clock import Ratio
from jldm.samplers.dpm_solver import DPMSolverPP
from jldm.samplers.grid import Grid
from jldm.samplers.guidance import APG, ClassifierFree, Interval, Rescale
from jldm.samplers.heun import Heun
from jldm.samplers.pairs import Pairs
from jldm.samplers.per_conditioner import PerConditioner
from jldm.samplers.transforms import Threshold
from tests.config.examples import SMALL, Network, Pair, refused
from tests.configs import config


@pytest.mark.parametrize("name", ["digits", "fashion_mnist", "folder"])
def test_what_is_written_is_read(name):
  experiment = config(name)
  back = loads(dumps(experiment))
  assert back == experiment and hash(back) == hash(experiment)
  assert dumps(back) == dumps(experiment)
  assert json.loads(dumps(experiment)) == to_data(experiment), "strict JSON"


@pytest.mark.parametrize(
  "sampling",
  [
    Sampling(
      sampler=DPMSolverPP(3, exact_d2=True), steps=7, guidance=Interval(ClassifierFree(2.0), -3.0, 3.0)
    ),
    Sampling(sampler=Churn(Heun(Ratio()), 0.1), grid=Pairs(((1.0, 0.5), (0.5, 0.0)))),
    Sampling(sampler=None, grid=Grid("karras"), guidance=PerConditioner(("label", "masked"), (2.0, 1.5))),
    Sampling(guidance=Rescale(APG(3.0), 0.5), transforms=(Threshold(0.9, 1.0),)),
  ],
  ids=repr,
)
def test_samplings_of_objects_are_data(sampling):
  experiment = dataclasses.replace(SMALL, sampling=sampling)
  back = loads(dumps(experiment))
  assert back == experiment and hash(back) == hash(experiment)


def test_every_field_is_written_down():
  """Or a default that changes in a later version would change an old experiment."""

  def whole(value):
    assert not dataclasses.is_dataclass(value) or set(to_data(value)) == {"class", *field_names(value)}, value
    for field in field_names(value) if dataclasses.is_dataclass(value) else ():
      whole(getattr(value, field))

  whole(SMALL)


def test_equal_experiments_have_equal_data():
  record = dataclasses.replace(SMALL.stage("denoiser").objective, times=Uniform())
  assert record == SMALL.stage("denoiser").objective and to_data(record) == to_data(
    SMALL.stage("denoiser").objective
  )


def test_unregistered_classes_are_refused_both_ways():
  with_pair = dataclasses.replace(SMALL, data=Pair())
  assert refused(dumps, with_pair) == "class 'Pair' is not known; decorate it with @jldm.register"
  text = dumps(SMALL).replace('"ImageData"', '"Pair"')
  assert (
    "class 'Pair' is not known; give the file that defines it, decorated with @jldm.register, "
    "as --import FILE.py" in refused(loads, text)
  )


def test_a_class_of_a_known_name_is_not_that_class():
  impostor = dataclasses.make_dataclass("Flow", [], frozen=True)
  assert "class 'Flow' is not known" in refused(to_data, impostor())


@pytest.mark.parametrize(
  "name", ["os.system", "jldm.config.experiment.Stage", "__import__", "eval", "", None, 3]
)
def test_only_names_of_the_table_are_read(name):
  data = to_data(SMALL)
  data["stages"][1]["objective"]["process"] = {"class": name, "command": "echo"}
  assert f"class {name!r} is not known" in refused(loads, json.dumps(data))


@pytest.mark.parametrize(
  "text", ["", "nonsense", "[]", "3", "{}", '{"class": "Stage"}', '{"class": ["Experiment"]}']
)
def test_what_is_not_an_experiment_is_refused(text):
  assert refused(loads, text).startswith("not an experiment: ")


def test_fields_of_another_version_are_refused():
  data = to_data(SMALL)
  data["stages"][0]["momentum"] = 0.9
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


def test_how_a_thing_is_computed_is_no_difference():
  changed = override(SMALL, "denoiser.objective.network.remat", "dots")
  assert changed.stage("denoiser").objective.network.remat == "dots" and to_data(changed) != to_data(SMALL)
  assert differences(to_data(SMALL), to_data(changed)) == []
  assert (
    without_execution_fields(to_data(changed)) == without_execution_fields(to_data(SMALL)) != to_data(SMALL)
  )


def test_differences_are_named_in_order():
  other = override(override(SMALL, "seed", "1"), "denoiser.steps", "5")
  process = dataclasses.replace(other.stage("denoiser").objective, process=Flow())
  other = other.with_stage(dataclasses.replace(other.stage("denoiser"), objective=process))
  assert differences(to_data(SMALL), to_data(other)) == [
    "denoiser.objective.process.class: 'Cosine' -> 'Flow'",
    "denoiser.steps: 1000 -> 5",
    "seed: 0 -> 1",
  ]
  assert differences(to_data(SMALL), to_data(SMALL)) == []
  assert differences({"a": 1}, {"a": 1.0}) == ["a: 1 -> 1.0"], "another type is another experiment"
  assert differences({"a": 1}, {"b": 2}) == ["a: 1 -> None", "b: None -> 2"]
