import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jldm.core.errors import UserError
from jldm.models.denoisers.dit import DiT
from jldm.models.denoisers.inputs import read_tokens, with_concat, with_estimate
from jldm.models.denoisers.unet import UNet
from jldm.nn.transformer import ModulatedBlock, PlainBlock
from tests.networks import quick, random_params

RNG = np.random.default_rng(0)
Z = np.float32(RNG.normal(size=(3, 4, 6, 2)))  # [B, H, W, C], not square
LEVEL = np.array([0.1, 0.5, 0.9], np.float32)
INPUTS = {
  "label": np.array([0, 2, -1]),
  "vector": np.float32(RNG.normal(size=(3, 5))),
  "tokens": np.float32(RNG.normal(size=(3, 4, 7))),
  "mask": np.array([[True, True, False, True], [True, False, False, False], [False] * 4]),
  "concat": np.float32(RNG.normal(size=(3, 4, 6, 1))),
  "to": np.array([0.0, 0.2, 0.4], np.float32),
  "guidance_scale": np.array([1.0, 2.0, 7.5], np.float32),
}
FIELDS = {"target_time": True, "guidance_scale": True, "token_width": 7}
DIT = DiT(ModulatedBlock(heads=2), patch=2, width=8, depth=2)
UNET = UNet(widths=(8,), resnets=0, attention=(True,), heads=2, groups=4)
NETWORKS = {
  "dit": DIT.clone(classes=3, **FIELDS),
  "dit in context": DIT.clone(block=PlainBlock(heads=2), in_context=True, rotary=True, classes=3, **FIELDS),
  "unet": UNET.clone(**FIELDS),
  "unet without tokens": UNET.clone(classes=3, **FIELDS | {"token_width": 0}),
}
READ = {
  name: INPUTS.keys() - unread
  for name, unread in {
    "dit": set(),
    "dit in context": set(),
    "unet": {"label"},
    "unet without tokens": {"tokens", "mask"},
  }.items()
}
apply = functools.partial(quick, static_argnums=0)(
  lambda network, params, inputs: network.apply({"params": params}, Z, LEVEL, inputs).value
)


def turned(name: str) -> dict:
  """All inputs, that one of the first sample changed, of the last its mask: there all tokens are hidden."""
  other = INPUTS[name].copy()
  other[0] = {"label": 1, "mask": [True] * 4}.get(
    name, other[0] + 0.3 * np.arange(1, 1 + other[0].size).reshape(other[0].shape)
  )
  return INPUTS | {name: other}


@pytest.mark.parametrize("name", NETWORKS)
def test_an_input_changes_its_own_sample_if_it_is_read_and_nothing_else(name):
  network = NETWORKS[name]
  params = random_params(network, Z, LEVEL, INPUTS)
  out = np.asarray(apply(network, params, INPUTS))
  for one in INPUTS:
    changed = np.abs(apply(network, params, turned(one)) - out).max((1, 2, 3)) > 1e-4
    np.testing.assert_array_equal(changed, [one in READ[name], False, False], one)


@pytest.mark.parametrize("name", ["dit", "dit in context", "unet"])
def test_tokens_that_are_masked_do_nothing(name):
  network = NETWORKS[name]
  params = random_params(network, Z, LEVEL, INPUTS)
  hidden = np.where(INPUTS["mask"][..., None], INPUTS["tokens"], 100)
  out = np.asarray(apply(network, params, INPUTS))
  assert np.isfinite(out).all(), "with the third sample, whose tokens are all masked"
  np.testing.assert_array_equal(apply(network, params, INPUTS | {"tokens": hidden}), out)
  gradient = quick(
    jax.grad(lambda params: jnp.sin(network.apply({"params": params}, Z, LEVEL, INPUTS).value).sum())
  )(params)
  assert all(np.isfinite(leaf).all() and leaf.any() for leaf in jax.tree.leaves(gradient)), (
    "every parameter learns"
  )


@pytest.mark.parametrize("network", [DIT, UNET])
def test_what_is_not_read_makes_no_parameters(network):
  """Of all inputs a network without fields reads `vector` and `concat`, if it is initialised with them."""
  without = {name: array for name, array in INPUTS.items() if name not in ("vector", "concat")}
  shapes = lambda network, inputs: jax.tree.map(np.shape, random_params(network, Z, LEVEL, inputs))
  assert shapes(network, without) == shapes(network, {})
  assert shapes(network, without | {"vector": INPUTS["vector"]}).keys() == shapes(network, {}).keys() | {
    "vector"
  }


@pytest.mark.parametrize("name", NETWORKS)
def test_inputs_that_are_missing_are_named(name):
  network = NETWORKS[name]
  needed = {
    "label": "classes=3",
    "tokens": "token_width=7",
    "to": "target_time=True",
    "guidance_scale": "guidance_scale=True",
  }
  params = random_params(network, Z, LEVEL, INPUTS)
  for one in needed.keys() & READ[name]:
    inputs = {key: array for key, array in INPUTS.items() if key != one}
    with pytest.raises(UserError) as error:
      network.apply({"params": params}, Z, LEVEL, inputs)
    assert str(error.value) == f"{needed[one]} and inputs {sorted(inputs)}; expected {one!r} among them"


@pytest.mark.parametrize("name", NETWORKS)
def test_a_vector_of_the_training_is_not_left_out_in_silence(name):
  params = random_params(NETWORKS[name], Z, LEVEL, INPUTS)
  inputs = {key: array for key, array in INPUTS.items() if key != "vector"}
  with pytest.raises(
    UserError, match=r"a layer 'vector' and inputs \['concat', .*; expected 'vector' among them"
  ):
    NETWORKS[name].apply({"params": params}, Z, LEVEL, inputs)


@pytest.mark.parametrize(
  "changed, message",
  [
    ({"tokens": INPUTS["tokens"][..., :6]}, "tokens of shape (3, 4, 6); expected [B, M, 7]"),
    ({"tokens": INPUTS["tokens"][0]}, "tokens of shape (4, 7); expected [B, M, 7]"),
    (
      {"mask": INPUTS["mask"][:, :3]},
      "a mask of shape (3, 3); expected (3, 4) for tokens of shape (3, 4, 7)",
    ),
  ],
)
def test_tokens_that_do_not_fit_are_refused(changed, message):
  with pytest.raises(UserError) as error:
    read_tokens(INPUTS | changed, 7)
  assert str(error.value) == message


def test_an_estimate_stands_behind_z_and_is_zero_if_there_is_none():
  z, estimate = RNG.normal(size=(2, 1, 2, 2, 3))
  both = with_estimate(jnp.asarray(z), estimate)
  np.testing.assert_allclose(both[..., :3], z, rtol=1e-6)
  np.testing.assert_allclose(both[..., 3:], estimate, rtol=1e-6)
  np.testing.assert_array_equal(
    with_estimate(jnp.asarray(z), None), with_estimate(jnp.asarray(z), jnp.zeros_like(z))
  )
  assert with_estimate(jnp.asarray(z, jnp.bfloat16), estimate).dtype == jnp.bfloat16


def test_concat_stands_behind_z_in_its_dtype():
  source = np.float32(RNG.normal(size=(2, 4, 6, 3)))
  z = jnp.asarray(-source, jnp.bfloat16)
  both = with_concat(z, {"concat": source})
  assert both.dtype == jnp.bfloat16
  np.testing.assert_array_equal(both[..., :3], z)
  np.testing.assert_array_equal(both[..., 3:], jnp.asarray(source, jnp.bfloat16))
  assert with_concat(z, {}) is z
