import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jldm.core.errors import UserError
from jldm.interop.flat import flatten, unflatten

TREE = {
  "denoiser": {"blocks": {"kernel": np.ones((2, 3), np.float32)}},
  "codec": {"extra": {}, "mean": jnp.zeros(2, jnp.bfloat16)},
}


def test_there_and_back():
  arrays = flatten(TREE)
  assert set(arrays) == {"denoiser/blocks/kernel", "codec/mean"} and all(
    type(x) is np.ndarray for x in arrays.values()
  )
  back = unflatten(arrays, jax.eval_shape(lambda: TREE))
  assert jax.tree.structure(back) == jax.tree.structure(TREE)
  jax.tree.map(np.testing.assert_array_equal, back, TREE)


@pytest.mark.parametrize(
  "change, message",
  [
    ({"codec/mean": None}, "1 arrays do not fit: codec/mean is missing"),
    ({"more": np.zeros(2)}, "'more' is in surplus"),
    ({"codec/mean": np.zeros(2, np.float32)}, r"codec/mean is float32\[2\], expected bfloat16\[2\]"),
    (
      {"denoiser/blocks/kernel": np.zeros((3, 2), np.float32), "a": np.zeros(1)},
      r"2 arrays .*\[3, 2\], expected float32\[2, 3\]",
    ),
  ],
)
def test_what_does_not_fit_is_reported(change, message):
  arrays = {name: value for name, value in (flatten(TREE) | change).items() if value is not None}
  with pytest.raises(UserError, match=message):
    unflatten(arrays, TREE)


def test_two_of_one_name_are_refused():
  with pytest.raises(UserError, match="one name"):
    flatten({"a": {"b": np.zeros(1)}, "a/b": np.zeros(1)})
