import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jldm.core.errors import UserError
from jldm.core.trees import count, float32, leaf_names, map_named, named_leaves, pytree, traced
from jldm.samplers.ddim import DDIM
from jldm.samplers.dpm_solver import DPMSolverPP
from jldm.samplers.heun import Heun


@pytree
@dataclasses.dataclass(frozen=True)
class Example:
  number: float = 0.5
  choice: str = dataclasses.field(default="a", metadata={"static": True})


def test_numbers_are_leaves_and_choices_are_not():
  assert jax.tree.leaves(Example()) == [0.5]
  assert jax.tree.structure(Example(1.0)) == jax.tree.structure(Example(2.0))
  assert jax.tree.structure(Example(choice="a")) != jax.tree.structure(Example(choice="b"))


def test_a_tree_is_flattened_and_made_again():
  example = Example(2.0, "b")
  assert jax.tree.map(lambda x: x + 1, example) == Example(3.0, "b")
  ((path, leaf),) = jax.tree.leaves_with_path(example)
  assert jax.tree_util.keystr(path) == ".number" and leaf == 2.0


def test_two_classes_are_two_trees():
  """What register_dataclass does not keep: jit then ran one sampler's program for another, one time in
  a hundred.
  """
  other = pytree(dataclasses.make_dataclass("Other", [("number", float)], frozen=True))
  alike = pytree(dataclasses.make_dataclass("Alike", [("number", float)], frozen=True))
  assert jax.tree.structure(other(1.0)) != jax.tree.structure(alike(1.0))
  samplers = [DDIM(), Heun(), DPMSolverPP()]
  assert all(jax.tree.structure(a) != jax.tree.structure(b) for a, b in itertools.combinations(samplers, 2))


def test_count_takes_arrays_and_shapes():
  tree = {
    "w": jnp.zeros((3, 4)),
    "b": jax.ShapeDtypeStruct((5,), jnp.float32),
    "scale": np.float32(1),
    "none": None,
  }
  assert count(tree) == 18
  assert count({}) == 0


def test_a_number_is_traced_once_however_it_is_written():
  traces = []

  @jax.jit
  def double(example):
    traces.append(1)
    return 2 * example.number

  numbers = (
    1,
    1.0,
    True,
    np.float64(1),
    np.int64(1),
    np.float32(1),
    jnp.float32(1),
    jnp.asarray(1.0),
    jnp.asarray(1),
  )
  for number in numbers:
    assert double(traced(Example(number))) == 2
  assert len(traces) == 1


def test_keys_stay_keys():
  keys = jax.random.split(jax.random.key(0), 2)
  assert traced({"keys": keys})["keys"] is keys


def test_ids_stay_ids():
  ids = {"ids": np.int32([3, 2**24 + 1]), "known": np.array([True, False]), "weights": np.float64([0.5, 2])}
  for change in (traced, float32):
    changed = change(ids)
    assert {name: leaf.dtype.name for name, leaf in changed.items()} == {
      "ids": "int32",
      "known": "bool",
      "weights": "float32",
    }
    assert changed["ids"][1] == 2**24 + 1, "no float32"


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_float32_copies_have_buffers_of_their_own(dtype):
  original = {"w": jnp.arange(4, dtype=dtype)}
  copy = float32(original)
  assert copy["w"].dtype == jnp.float32
  jax.jit(lambda tree: jax.tree.map(lambda x: x + 1, tree), donate_argnums=0)(original)
  assert original["w"].is_deleted()
  np.testing.assert_array_equal(copy["w"], [0, 1, 2, 3])


def test_leaves_have_the_names_of_their_paths():
  tree = {"b": {"kernel": 1, "empty": {}}, "a": [2, (3,)], "c": Example(4)}
  names = ["a/0", "a/1/0", "b/kernel", "c/number"]
  assert leaf_names(tree) == names and leaf_names(tree, ".")[1] == "a.1.0" and leaf_names(5) == [""]
  assert named_leaves(tree) == dict(zip(names, [2, 3, 1, 4]))
  assert named_leaves(map_named(lambda name, leaf: (name, leaf)[0], tree)) == dict(zip(names, names))
  with pytest.raises(UserError, match="one name"):
    named_leaves({"a": {"b": 1}, "a/b": 2})
