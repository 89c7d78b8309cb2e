"""What conditioners share: dropout, joining, names, and inputs where nothing is given."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jldm.core.errors import UserError
from jldm.core.keys import row_keys
from jldm.core.specs import spec
from jldm.diffusion.process import Flow
from jldm.models.conditioners.conditioner import (
  RESERVED,
  Conditioner,
  blank_inputs,
  check_names,
  draw_conditions,
  join_conditions,
)
from jldm.models.conditioners.label import ClassLabel
from jldm.models.conditioners.pictures import Masked, Paired
from jldm.models.conditioners.vector import Vector
from jldm.objectives.diffusion import Diffusion

RNG = np.random.default_rng(0)
SIZE = 1000
BATCH = {"label": RNG.integers(0, 3, SIZE), "pose": np.float32(RNG.normal(size=(SIZE, 2)))}
ROWS = np.arange(SIZE)
LABEL, POSE = ClassLabel(classes=3), Vector(field="pose")
DATA = spec(image=(np.uint8, (8, 12, 3)), label=(np.int32, ()), pose=(np.float32, (2,)))


def drawn(rates, seed=0, some=slice(None)):
  """Which rows are kept of the label and of the vector: [2, B]."""
  conditioners = [dataclasses.replace(one, dropout=rate) for one, rate in zip((LABEL, POSE), rates)]
  keys = [row_keys(key, ROWS[some]) for key in jax.random.split(jax.random.key(seed))]
  batch = {name: array[some] for name, array in BATCH.items()}
  conditions = draw_conditions(conditioners, {}, batch, None, keys)
  label, vector = np.asarray(conditions["label"]["label"]), np.asarray(conditions["vector"]["vector"])
  np.testing.assert_array_equal(label, np.where(label >= 0, batch["label"], -1))
  known = np.concatenate([batch["pose"], np.ones_like(batch["pose"][:, :1])], 1)
  np.testing.assert_array_equal(vector, np.where(vector[:, -1:] > 0, known, 0))
  return np.stack([label >= 0, vector[:, -1] > 0])


def test_dropout_at_its_ends():
  np.testing.assert_array_equal(drawn((0.0, 1.0)).all(1), [True, False])
  np.testing.assert_array_equal(drawn((1.0, 0.0)).any(1), [False, True])


def test_dropout_at_its_rate_and_of_each_conditioner_by_itself():
  rates = np.array([0.3, 0.6])
  dropped = ~drawn(rates)
  assert (np.abs(dropped.mean(1) - rates) < 5 * np.sqrt(rates * (1 - rates) / SIZE)).all()
  assert abs(np.corrcoef(dropped)[0, 1]) < 5 / np.sqrt(SIZE)


def test_dropout_depends_on_the_key_of_the_row_alone():
  whole = drawn((0.5, 0.5))
  np.testing.assert_array_equal(drawn((0.5, 0.5), some=slice(7, 400, 3)), whole[:, 7:400:3])
  assert (drawn((0.5, 0.5), seed=1) != whole).mean() > 0.4


def test_more_dropout_leaves_fewer_of_the_same():
  few, more = drawn((0.6, 0.6)), drawn((0.2, 0.2))
  assert (more | ~few).all() and more.sum() > few.sum()


ones = lambda *shape: jnp.ones(shape)


def test_inputs_of_a_kind_are_joined_in_order():
  first = {
    "vector": ones(2, 3),
    "concat": ones(2, 4, 4, 1),
    "tokens": ones(2, 5, 6),
    "label": jnp.zeros(2, int),
  }
  second = {
    key: 2 * array[..., :2] if key == "vector" else 2 * array
    for key, array in first.items()
    if key != "label"
  }
  third = {"vector": 3 * ones(2, 1)}
  inputs = join_conditions({"a": first, "b": second, "c": third})
  assert inputs.keys() == {"vector", "concat", "tokens", "label"}
  np.testing.assert_array_equal(inputs["vector"], [[1, 1, 1, 2, 2, 3]] * 2)
  np.testing.assert_array_equal(inputs["concat"][1, 2, 3], [1, 2])
  np.testing.assert_array_equal(inputs["tokens"][1, :, 0], [1] * 5 + [2] * 5)
  assert inputs["label"] is first["label"] and join_conditions({}) == {}


def test_masks_follow_their_tokens_and_tokens_without_may_all_be_attended_to():
  mask = jnp.array([[True, False], [False, False]])
  some, whole = {"tokens": ones(2, 2, 6), "mask": mask}, {"tokens": ones(2, 3, 6)}
  for order, expected in (("sw", [1, 0, 1, 1, 1]), ("ws", [1, 1, 1, 1, 0]), ("sws", [1, 0, 1, 1, 1, 1, 0])):
    inputs = join_conditions(
      {f"{n}": {"s": some, "w": whole}[one] for n, one in enumerate(order)} | {"v": {"vector": ones(2, 1)}}
    )
    assert inputs["mask"].dtype == bool and inputs["mask"].shape == inputs["tokens"].shape[:2]
    np.testing.assert_array_equal(inputs["mask"][0], expected)
  assert "mask" not in join_conditions({"a": whole, "b": whole})


def test_two_labels_are_refused():
  with pytest.raises(
    UserError, match="two conditioners give 'label' to the network; expected one of them, or"
  ):
    join_conditions({"a": {"label": jnp.zeros(2, int)}, "b": {"label": jnp.zeros(2, int)}})


@pytest.mark.parametrize("name", [*RESERVED, "", "two words", "1st", "a-b"])
def test_names_that_are_none_or_of_other_parts_are_refused(name):
  with pytest.raises(
    UserError, match=f"a conditioner named {name!r}; expected an identifier other than denoiser, codec"
  ):
    Vector(name=name)


def test_two_of_one_name_are_refused():
  check_names([Vector(name="a"), Vector(name="b")])
  for build in (check_names, lambda some: Diffusion(network=None, process=Flow(), conditioners=some)):
    with pytest.raises(
      UserError, match="several conditioners are named 'label'; give each a name of its own"
    ):
      build((LABEL, POSE, ClassLabel(classes=2)))


@pytest.mark.parametrize("dropout", [-0.1, 1.5])
def test_a_dropout_is_a_share(dropout):
  with pytest.raises(
    UserError, match=f"dropout={dropout} of conditioner 'label'; expected a share from 0 to 1"
  ):
    ClassLabel(classes=3, dropout=dropout)


IMAGE = np.zeros((1, 8, 12, 3), np.uint8)


@pytest.mark.parametrize(
  "conditioner, given",
  [(LABEL, 0), (POSE, [0, 0]), (Masked(), (IMAGE, np.zeros((8, 12)))), (Paired(), IMAGE)],
)
def test_blank_inputs_have_the_shapes_of_those_that_are_read_and_are_zeros(conditioner, given):
  shapes = lambda inputs: {name: (array.shape, array.dtype) for name, array in inputs.items()}
  inputs = blank_inputs(conditioner, DATA)
  assert shapes(inputs) == shapes(conditioner.read_request(given, DATA))
  assert not any(array.any() for array in inputs.values())


def test_the_contract_itself_draws_nothing():
  bare = Conditioner(name="bare")
  assert bare.fields == () and not bare.cached and bare.init(None, {}) == {}
  for method in (
    lambda: bare.draw_inputs({}, None),
    lambda: bare.read_request(0, DATA),
    lambda: bare.embed({}, {}, None),
  ):
    with pytest.raises(NotImplementedError):
      method()
