"""An experiment that is read has values of the types and roles of its fields, or is refused in one line."""

import copy
import json

import pytest

from jldm.config.experiment import Experiment
from jldm.config.serialize import dumps, from_data, loads, to_data
from jldm.core.errors import UserError
from jldm.inference.model import build_model
from tests.config.examples import Network, Pair, refused
from tests.configs import config, shrunk

EXPERIMENT = to_data(shrunk(config("digits")))
NETWORK = EXPERIMENT["stages"][1]["objective"]["network"]
PROCESS = EXPERIMENT["stages"][1]["objective"]["process"]
OTHERS = (None, True, "text", -1, 0.5, 10**30, [], [1], ["a"], {}, {"a": 1}, NETWORK, PROCESS, [NETWORK])


def places(node, path=()):
  """The path of every value in JSON data."""
  for key in list(node) if isinstance(node, dict) else range(len(node)):
    yield (*path, key)
    if isinstance(node[key], (dict, list)):
      yield from places(node[key], (*path, key))


def changed(path, value) -> dict:
  data = copy.deepcopy(EXPERIMENT)
  node = data
  for key in path[:-1]:
    node = node[key]
  node[path[-1]] = copy.deepcopy(value)
  return data


def kind(value):
  """What a value is to a reader of the JSON."""
  return (value.get("class"), type(value)) if isinstance(value, dict) else type(value)


def test_whatever_stands_in_its_place_a_value_is_read_as_it_is_or_refused():
  """What is read has the types of what stood there; the only values of other kinds are legal ones."""
  other_kinds = set()
  for path in places(EXPERIMENT):
    old = EXPERIMENT
    for key in path:
      old = old[key]
    for value in OTHERS:
      data = changed(path, value)
      try:
        read = loads(json.dumps(data))
      except UserError as error:
        assert "\n" not in str(error) and len(str(error)) < 600, (path, value)
        continue
      assert isinstance(read, Experiment) and loads(dumps(read)) == read
      if kind(value) != kind(old):
        other_kinds.add((".".join(str(key) for key in path if not isinstance(key, int)), kind(value)))
  real = {
    path for path, came in other_kinds if came not in ((int), (float)) and path.rpartition(".")[2] != "class"
  }
  # None of the data is an imported autoencoder, None of the sampler is the default of an edit.
  # A scale may be a number per sample.
  assert real <= {"data", "sampling.sampler", "sampling.guidance.guidance_scale"}, real


@pytest.mark.parametrize(
  ("path", "value", "words"),
  [
    (("stages", 1, "objective", "process"), NETWORK, r"Diffusion.process is DiT(…); expected Cosine or Flow"),
    (("stages", 1, "objective", "network"), PROCESS, "Diffusion.network is Flow(…); expected DiT or UNet"),
    (
      ("stages", 0, "objective", "network"),
      NETWORK,
      "Reconstruction.network is DiT(…); expected KLAutoencoder or",
    ),
    (("stages", 1, "objective"), NETWORK, "Stage.objective is DiT(…); expected Reconstruction or"),
    (("stages", 1, "objective", "conditioners"), [PROCESS], "expected a list of ClassLabel or Vector"),
    (("stages", 0, "steps"), "500", "Stage.steps is '500'; expected int"),
    (("stages", 0, "steps"), True, "Stage.steps is True; expected int"),
    (("stages", 0, "batch_size"), None, "Stage.batch_size is None; expected int"),
    (("stages", 0, "optimizer", "b2"), "0.9", "AdamW.b2 is '0.9'; expected float"),
    (("data", "count"), 10**30, "data.count=1000000000000000000000000000000; expected whole numbers in"),
    (("data",), PROCESS, "Experiment.data is Flow(…); expected ImageData or Synthetic, or null"),
    (("sampling", "guidance"), 3, "Sampling.guidance is 3; expected ClassifierFree"),
  ],
)
def test_the_line_names_the_field_what_came_and_what_is_legal(path, value, words):
  assert words in refused(loads, json.dumps(changed(path, value)))


@pytest.mark.parametrize(
  "field", ["widths", "groups", "latent_channels", "factor", "dtype", "remat", "attention"]
)
@pytest.mark.parametrize("value", [[], [0], 3, "float33", [[1]]])
def test_a_network_of_what_is_read_is_built_or_refused(field, value):
  network = ("stages", 0, "objective", "network", field)
  try:
    build_model(loads(json.dumps(changed(network, value))))
  except UserError as error:
    assert "\n" not in str(error)


def test_whole_numbers_may_stand_for_floats_and_text_in_no_number():
  assert from_data({"class": "Decay", "decay": 1}).decay == 1
  for value in ("1", None, [0.5], True):
    assert "Decay.decay is" in refused(from_data, {"class": "Decay", "decay": value})


def test_a_registered_class_may_stand_where_an_object_may_and_checks_its_own_fields(registered):
  data = changed(("stages", 1, "objective", "network"), to_data(Network(width=5)))
  assert loads(json.dumps(data)).stages[1].objective.network == Network(width=5)
  assert from_data(to_data(Pair(limit="anything"))).limit == "anything"
  assert "Stage.steps is Pair(…)" in refused(
    loads, json.dumps(changed(("stages", 0, "steps"), to_data(Pair())))
  )


@pytest.mark.parametrize("name", ["parent", "name"])
def test_what_flax_adds_to_a_network_is_no_field_of_the_data(name):
  assert f"DiT has no field '{name}'" in refused(from_data, NETWORK | {name: None})
