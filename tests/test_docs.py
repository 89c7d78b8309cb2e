"""docs/extending.md: its blocks are one file, with which a person trains, draws and asks for what it has."""

import re
import shlex
import sys
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jldm
from jldm.cli import import_target, main
from jldm.config import registry
from jldm.diffusion.process import Flow
from jldm.models.autoencoders.kl import KLAutoencoder
from jldm.objectives.autoencoder import Reconstruction
from tests.configs import ROOT
from tests.samplers.gaussian import measured_order

PAGE = (ROOT / "docs" / "extending.md").read_text()
SMALL = {"autoencoder": 3, "denoiser": 3}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """A folder to work in, with mine.py, made of the page's blocks."""
  folder = tmp_path_factory.mktemp("extending")
  (folder / "mine.py").write_text("\n\n".join(re.findall(r"```python\n(.*?)```", PAGE, re.S)))
  with mock.patch.dict(registry.CLASSES), mock.patch.dict(sys.modules), pytest.MonkeyPatch.context() as patch:
    patch.chdir(folder)
    yield folder


@pytest.mark.slow
def test_what_is_trained_with_all_blocks_is_drawn_from(folder):
  (line,) = [line for line in PAGE.splitlines() if line.startswith("jldm train")]
  command = shlex.split(line.replace("configs/", f"{ROOT}/configs/"))[1:]
  for stage, steps in SMALL.items():
    command += ["--set", f"{stage}.steps={steps}", "--set", f"{stage}.batch_size=8"]
  assert main([*command, "--devices", "1"]) == 0
  workdir = folder / "runs" / "mine"
  drawn = [
    "sample",
    "--workdir",
    str(workdir),
    "--import",
    str(folder / "mine.py"),
    "--sampler",
    "Midpoint(share=0.7)",
  ]
  assert main([*drawn, "--steps", "3", "--n", "2", "--out", str(folder / "O.npz")]) == 0
  model, params = jldm.load(str(workdir))
  assert type(model.sampling).__name__ == "Sampling" and params["brightness"]["direction"].shape == (8,)
  dark, bright = (
    jldm.generate(model, params, jldm.Request(n=2, seed=0, given={"brightness": v})).data for v in (-1.0, 1.0)
  )
  assert dark.shape == (2, 16, 16, 1) and dark.dtype == np.uint8 and bright.shape == dark.shape
  judged = [
    "evaluate",
    "--workdir",
    str(workdir),
    "--import",
    str(folder / "mine.py"),
    "--n",
    "20",
    "--extractor",
    "pixels",
  ]
  assert main([*judged, "--metrics", "kid", "--steps", "2", "--devices", "1"]) == 0
  assert (workdir / "evaluation" / "3.json").exists()
  with pytest.raises(jldm.UserError, match="brightness=3"):
    jldm.generate(model, params, jldm.Request(n=2, seed=0, given={"brightness": 3}))


def test_the_sampler_is_of_second_order(folder):
  midpoint = import_target(str(folder / "mine.py")).Midpoint()
  assert measured_order(Flow(), midpoint) == pytest.approx(2, abs=0.15)


def test_blocks_are_a_codec(folder):
  module = import_target(str(folder / "mine.py"))
  codec, images = module.Blocks(), np.random.default_rng(0).integers(0, 256, (2, 8, 12, 3), np.uint8)
  latents = codec.encode({}, {"image": images}).mean
  np.testing.assert_array_equal(codec.finish(codec.decode({}, latents)), images)
  assert codec.latent_spec((("image", images[0]),)).shape == latents.shape[1:] == (2, 3, 48)
  assert jldm.Need("codec", codec).source == codec
  with pytest.raises(jldm.UserError, match="7x8"):
    codec.latent_spec((("image", np.zeros((7, 8, 3))),))


@pytest.mark.slow
def test_the_sparse_latents_are_a_term_of_the_loss(folder):
  """In proportion to its weight; without one the loss is that of a reconstruction."""
  sparse, network = (
    import_target(str(folder / "mine.py")).Sparse,
    KLAutoencoder(channels=1, widths=(4,), resnets=0, groups=2),
  )
  batch = {"image": np.random.default_rng(0).integers(0, 256, (2, 4, 4, 1), np.uint8), "row": jnp.arange(2)}
  params, extra = Reconstruction(network=network).init(jax.random.key(0), batch, {})
  loss = lambda objective: np.asarray(objective.loss(params, extra, params, {}, batch, jax.random.key(1))[0])
  none, some, more = (loss(sparse(network=network, sparsity=weight)) for weight in (0.0, 1.0, 2.0))
  np.testing.assert_array_equal(none, loss(Reconstruction(network=network)))
  assert (some > none).all()
  np.testing.assert_allclose(more - none, 2 * (some - none), rtol=1e-4)


@pytest.mark.parametrize(
  "page", ["docs/architecture.md", "docs/extending.md", "CONTRIBUTING.md", "README.md"]
)
def test_every_file_that_a_page_names_exists(page):
  named = set(re.findall(r"`((?:jldm|tests|configs|docs|benchmarks)/[\w./]*)`", (ROOT / page).read_text()))
  assert named and not [path for path in named if not (ROOT / path).exists()]


def test_the_picture_of_layers_is_that_of_the_table():
  layers = re.search(r"```\n(core ◄.*?)```", (ROOT / "docs" / "architecture.md").read_text(), re.S)[1]
  folders = {path.name for path in (ROOT / "jldm").iterdir() if (path / "__init__.py").exists()}
  assert set(re.findall(r"\w+", layers)) == folders
