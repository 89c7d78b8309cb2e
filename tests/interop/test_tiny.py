import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jldm.core.errors import UserError
from jldm.interop import rename, safetensors, tiny
from tests.networks import quick

PARITY = Path(__file__).parents[1] / "parity"
NAMES = ("tiny_sd", "tiny_flux")


def published(name):
  """-> (config, tensors, outputs) of what diffusers saved and said."""
  folder = PARITY / name
  tensors = safetensors.read(folder / "diffusion_pytorch_model.safetensors")
  return json.loads((folder / "config.json").read_text()), tensors, np.load(folder / "outputs.npz")


def shapes(network):
  images = jnp.zeros((1, 2 * network.factor, network.factor, network.channels))
  return jax.eval_shape(network.init, jax.random.key(0), images, jax.random.split(jax.random.key(0), 1))["params"]


@pytest.mark.parametrize("name", NAMES)
def test_equals_diffusers(name):
  config, tensors, outputs = published(name)
  network = tiny.network(config)
  params = rename.load(tiny.table(network), shapes(network), tensors)
  apply = quick(lambda params, x, method: network.apply({"params": params}, x, method=method), static_argnums=2)
  for size in ("square", "wide"):
    with jax.default_matmul_precision("highest"):
      latents = apply(params, outputs[f"{size}_images"], "encode").mean
      decoded = apply(params, outputs[f"{size}_z"], "decode")
    for found, expected in ((latents, outputs[f"{size}_latents"]), (decoded, outputs[f"{size}_decoded"])):
      assert np.abs(found - expected).max() <= 2e-5 * np.abs(expected).max()
      print(np.abs(found - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize("name", NAMES)
def test_writes_what_it_read(name):
  config, tensors, _ = published(name)
  network = tiny.network(config)
  params = rename.load(tiny.table(network), shapes(network), tensors)
  back = rename.publish(tiny.table(network), params)
  assert set(back) == set(tensors)
  for key, value in back.items():
    np.testing.assert_array_equal(value, tensors[key])
  told = tiny.config(network)
  assert told.items() <= config.items()
