"""Stable Diffusion's autoencoder at its size: 84 million random parameters, in processes of their own."""

import json
import os
from pathlib import Path
import subprocess
import sys

import jax
import numpy as np
import pytest

from jldm.interop import locate, rename, safetensors, vae
from jldm.models.autoencoders.kl import KLAutoencoder
from jldm.models.codecs import codec as codecs
from jldm.models.codecs.images import ImageCodec

ROOT = Path(__file__).parents[2]
NETWORK = KLAutoencoder()
# as published: 49,490,199 of the decoder and the convolution before it, 34,163,664 of the encoder's
PARAMETERS = 83_653_863
MIB = 2**20

LOAD = """
from pathlib import Path
import jax, jax.numpy as jnp
from jldm.interop import pretrained
held = lambda name: int(Path("/proc/self/status").read_text().split(name)[1].split()[1]) * 1024
jax.block_until_ready(jnp.ones(3) + 1)
Path("/proc/self/clear_refs").write_text("5")
before = held("VmRSS")
network, codec = pretrained.read_pretrained({folder!r})
jax.block_until_ready(codec)
print(held("VmHWM") - before)
"""
RUN = """
import jax, numpy as np
from jldm.interop import pretrained
from jldm.models.codecs.images import variables
from jldm.models.codecs.tiling import Exact
model, params = pretrained.load({folder!r})
rng = np.random.default_rng(0)
posterior = jax.jit(model.encode)(params, np.float32(rng.uniform(-1, 1, (1, 512, 512, 3))))
images = jax.jit(model.decode)(params, posterior.mean)
assert posterior.mean.shape == (1, 64, 64, 4) and images.shape == (1, 512, 512, 3)
assert np.isfinite(images).all() and np.std(images) > 0.01
z = np.float32(rng.normal(size=(1, 16, 16, 4)))
in_tiles = lambda params, z: Exact(8).decode(model.network, variables(params), z)
whole, tiled = (np.asarray(jax.jit(decode)(params, z)) for decode in (model.decode, in_tiles))
assert 0 < np.abs(tiled - whole).max() <= 1e-4 * np.abs(whole).max()
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """A folder as diffusers has it; kernels keep variances, all else is about 1."""
  path, rng = tmp_path_factory.mktemp("sd"), np.random.default_rng(0)
  shapes = rename.published_shapes(vae.table(NETWORK), codecs.init_shapes(ImageCodec(NETWORK))["params"])
  assert sum(map(np.prod, shapes.values())) == PARAMETERS
  scale = lambda shape: 1 / np.sqrt(np.prod(shape[1:])) if len(shape) > 1 else 0.1
  tensors = {
    name: rng.standard_normal(shape, np.float32) * np.float32(scale(shape)) + (len(shape) == 1)
    for name, shape in shapes.items()
  }
  (path / locate.CONFIG).write_text(json.dumps(vae.config(NETWORK) | {"scaling_factor": 0.18215}))
  safetensors.write(path / locate.WEIGHTS, tensors)
  return path


def printed_by(script: str, folder: Path) -> str:
  environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
  done = subprocess.run(
    [sys.executable, "-c", script.format(folder=str(folder))],
    env=environment,
    capture_output=True,
    text=True,
    timeout=1200,
  )
  assert done.returncode == 0, done.stderr[-2000:]
  return done.stdout


@pytest.mark.slow
def test_loads_one_tensor_after_the_other(folder):
  """What loading holds at most is the parameters and 256 MiB: never the file beside all of them."""
  size = (folder / locate.WEIGHTS).stat().st_size
  grown = int(printed_by(LOAD, folder))
  assert size <= grown < size + 256 * MIB
  print(f"{size / MIB:.0f} MiB of file, {grown / MIB:.0f} MiB held at most")


@pytest.mark.slow
def test_encodes_and_decodes_512_pixels(folder):
  printed_by(RUN, folder)


def test_the_number_of_parameters_is_the_published_one():
  assert (
    sum(leaf.size for leaf in jax.tree.leaves(codecs.init_shapes(ImageCodec(NETWORK))["params"]))
    == PARAMETERS
  )
