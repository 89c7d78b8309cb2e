"""Tables of names and axes, both ways."""

import jax.numpy as jnp
import numpy as np
import pytest

from jldm.core.errors import UserError
from jldm.interop import flat, rename
from jldm.interop.rename import CONV, DENSE, NORM, POINTWISE

TABLE = (
  ("in", "conv_in", CONV),
  (
    "attention",
    "mid.0",
    (
      ("norm", "group_norm", NORM),
      ("qkv", ("to_q", "to_k", "to_v"), DENSE),
      ("out", "to_out.0", POINTWISE),
      ("shortcut", "nin", CONV),
    ),
  ),
)


def tree(seed: int = 0) -> dict:
  draw = np.random.default_rng(seed).normal
  dense = lambda i, o: {
    "kernel": draw(size=(i, o)).astype(np.float32),
    "bias": draw(size=o).astype(np.float32),
  }
  norm = {"scale": draw(size=4).astype(np.float32), "bias": draw(size=4).astype(np.float32)}
  conv = {"kernel": draw(size=(3, 5, 2, 4)).astype(np.float32), "bias": draw(size=4).astype(np.float32)}
  return {"in": conv, "attention": {"norm": norm, "qkv": dense(4, 12), "out": dense(4, 4)}}


def test_names_and_axes_are_theirs():
  ours = tree()
  theirs = rename.publish(TABLE, ours)
  assert sorted(theirs) == sorted(
    f"{layer}.{leaf}"
    for leaf in ("weight", "bias")
    for layer in ("conv_in", "mid.0.group_norm", "mid.0.to_q", "mid.0.to_k", "mid.0.to_v", "mid.0.to_out.0")
  )
  assert theirs["conv_in.weight"].shape == (4, 2, 3, 5)
  assert theirs["conv_in.weight"][3, 1, 2, 4] == ours["in"]["kernel"][2, 4, 1, 3]
  assert theirs["mid.0.to_out.0.weight"].shape == (4, 4, 1, 1)
  assert theirs["mid.0.to_k.weight"][2, 1] == ours["attention"]["qkv"]["kernel"][1, 4 + 2]
  assert {name: value.shape for name, value in theirs.items()} == rename.published_shapes(TABLE, ours)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_loading_is_the_inverse(dtype):
  ours = tree()
  theirs = {name: value.astype(dtype) for name, value in rename.publish(TABLE, ours).items()}
  again = rename.import_tensors(TABLE, ours, theirs | {"loss.x": np.zeros(1)}, leave_out=r"loss\..*")
  assert all(np.array_equal(a, b) for a, b in zip(flat.flatten(again).values(), flat.flatten(ours).values()))


def test_half_precision_is_cast_and_a_dense_layer_may_be_a_1x1_convolution():
  theirs = {name: jnp.asarray(value, jnp.bfloat16) for name, value in rename.publish(TABLE, tree()).items()}
  theirs["mid.0.to_q.weight"] = theirs["mid.0.to_q.weight"][..., None, None]
  again = rename.import_tensors(TABLE, tree(), theirs)
  assert again["attention"]["qkv"]["kernel"].dtype == jnp.float32
  assert np.array_equal(again["in"]["kernel"][0, 0], np.float32(theirs["conv_in.weight"])[:, :, 0, 0].T)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (
      lambda t: t.pop("mid.0.to_k.bias"),
      r"the file lacks 1 of 12 tensors: mid\.0\.to_k\.bias; give the config\.json .* to it, or a whole",
    ),
    (
      lambda t: t.update(other=t.pop("mid.0.to_k.bias")),
      r"lacks 1 of 12 tensors: mid\.0\.to_k\.bias, and has 1 of another: other; give",
    ),
    (
      lambda t: t.update(other=np.zeros(1)),
      r"has 1 tensors beyond the 12 of this network: other; give the config\.json",
    ),
    (
      lambda t: t.update({"conv_in.bias": np.zeros(5)}),
      r"conv_in\.bias of the file is \[5\], expected \[4\]; give",
    ),
    (
      lambda t: t.update({"conv_in.bias": np.zeros(4, np.int64)}),
      r"conv_in\.bias of the file is int64; expected float32",
    ),
    (
      lambda t: t.update({"conv_in.bias": np.array([0, np.nan, np.inf, 0])}),
      r"conv_in\.bias of the file has 2 values",
    ),
  ],
)
def test_what_does_not_fit_is_reported_by_name(change, message):
  theirs = rename.publish(TABLE, tree())
  change(theirs)
  with pytest.raises(UserError, match=message):
    rename.import_tensors(TABLE, tree(), theirs)


def test_what_is_not_finite_may_be_allowed():
  theirs = rename.publish(TABLE, tree()) | {"conv_in.bias": np.full(4, np.nan)}
  assert np.isnan(rename.import_tensors(TABLE, tree(), theirs, allow_nan=True)["in"]["bias"]).all()
