"""What blocks keep for the backward pass, on the networks that have a choice: the same numbers, and
fewer of them kept.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jldm.core.errors import UserError
from jldm.core.keys import row_keys
from jldm.models.autoencoders.kl import KLAutoencoder
from jldm.models.autoencoders.quantize import FSQ
from jldm.models.autoencoders.vq import VQAutoencoder
from jldm.models.denoisers.dit import DiT
from jldm.models.denoisers.unet import UNet
from jldm.nn.remat import POLICIES
from jldm.nn.transformer import ModulatedBlock
from tests.compiling import UNOPTIMIZED
from tests.networks import random_params

RNG = np.random.default_rng(0)
Z = np.float32(RNG.normal(size=(2, 4, 4, 2)))
NOISED = (Z, np.array([0.1, 0.9], np.float32), {"label": np.array([0, -1])})
IMAGES = (np.float32(RNG.uniform(-1, 1, (2, 4, 4, 3))), row_keys(jax.random.key(1), jnp.arange(2)))
CODEC = dict(channels=3, latent_channels=2, widths=(4,), resnets=0, groups=2)
DENOISERS = {
  "dit": DiT(ModulatedBlock(heads=2), width=16, depth=3, classes=3),
  "unrolled dit": DiT(ModulatedBlock(heads=2), width=16, depth=2, classes=3, unroll=2),
  "unet": UNet(widths=(8,), resnets=0, attention=(True,), heads=2, classes=3, groups=4),
}
CODECS = {"kl": KLAutoencoder(**CODEC), "vq": VQAutoencoder(FSQ((3, 4)), **CODEC)}
CASES = [pytest.param(network, NOISED, id=name) for name, network in DENOISERS.items()]
CASES += [pytest.param(network, IMAGES, id=name) for name, network in CODECS.items()]
TRAINED = [
  pytest.param(*case.values, id=case.id, marks=[pytest.mark.slow] * (case.id != "dit"))
  for case in CASES
  if case.id in ("dit", "unet", "kl")
]


def loss(network, inputs, params):
  out = network.apply({"params": params}, *inputs)
  return jnp.sin(out[0] if isinstance(out, tuple) else out).mean()


def kept(network, inputs, params) -> int:
  """Bytes that the forward pass leaves to the backward pass."""
  backward = jax.eval_shape(
    lambda params: jax.vjp(functools.partial(loss, network, inputs), params)[1], params
  )
  return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(backward))


@pytest.mark.parametrize("network, inputs", CASES)
def test_each_policy_keeps_less_and_has_the_same_parameters(network, inputs):
  shapes = {
    name: jax.eval_shape(network.clone(remat=name).init, jax.random.key(0), *inputs) for name in POLICIES
  }
  assert shapes["none"] == shapes["dots"] == shapes["full"]
  actual = {name: kept(network.clone(remat=name), inputs, shapes["none"]["params"]) for name in POLICIES}
  assert actual["none"] > actual["dots"] > actual["full"]


@pytest.mark.parametrize("network, inputs", TRAINED)
def test_loss_and_gradients_are_the_same(network, inputs):
  params = random_params(network, *inputs)
  programs = {}
  for name in POLICIES:
    both = jax.jit(jax.value_and_grad(functools.partial(loss, network.clone(remat=name), inputs)))
    programs[name] = both.lower(params).compile(UNOPTIMIZED)
  (value, grads), *others = (jax.device_get(program(params)) for program in programs.values())
  largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(grads))
  assert all(leaf.any() for leaf in jax.tree.leaves(grads)), "every parameter learns"
  for other, actual in others:
    np.testing.assert_allclose(other, value, rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-6 * largest), actual, grads)
  if isinstance(network, DiT):  # a loop's values are kept in one piece, on a CPU too
    temporary = {name: program.memory_analysis().temp_size_in_bytes for name, program in programs.items()}
    assert temporary["none"] > 2 * temporary["dots"] > 2 * temporary["full"]


def test_a_second_computation_is_kept_apart_where_no_loop_does_that():
  for name, barriers in (("dit", False), ("unrolled dit", True), ("unet", True)):
    network = DENOISERS[name].clone(remat="full")
    params = jax.eval_shape(network.init, jax.random.key(0), *NOISED)["params"]
    text = jax.jit(jax.grad(functools.partial(loss, network, NOISED))).lower(params).as_text()
    assert ("optimization_barrier" in text) == barriers, name


@pytest.mark.parametrize("network, inputs", CASES)
def test_another_name_is_refused(network, inputs):
  with pytest.raises(UserError, match=r"remat='all'; expected one of \['none', 'dots', 'full'\]"):
    jax.eval_shape(network.clone(remat="all").init, jax.random.key(0), *inputs)
