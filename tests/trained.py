"""Workdirs that several files of tests read: each is trained once, by whichever worker comes first,
and copied to be changed.
"""

import fcntl
import os
from pathlib import Path
import shutil

import jax
import numpy as np
import pytest

from jldm.cli import main
from jldm.config.experiment import Experiment
from jldm.config.override import override
from jldm.interop import pretrained
from jldm.models.autoencoders.kl import KLAutoencoder
from jldm.models.codecs import codec as codecs
from jldm.models.codecs.images import ImageCodec
from jldm.runs.train import train
from jldm.storage import workdir as workdirs
from tests.configs import STAGES
from tests.networks import randomised

STEPS = 6


def once(factory: pytest.TempPathFactory, name: str, experiment: Experiment) -> Path:
  """The finished workdir of an experiment; the workers of one session share it, and nobody writes to it."""
  folder = factory.getbasetemp()
  folder = (folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "trained"
  folder.mkdir(exist_ok=True)
  done = folder / f"{name}.done"
  with (folder / f"{name}.lock").open("w") as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    if not done.exists():
      shutil.rmtree(folder / name, ignore_errors=True)
      train(experiment, folder / name, devices=1)
      done.touch()
  return folder / name


def imported_into(folder: Path) -> Path:
  """A workdir made of a folder of diffusers, of grey pictures and with a scale of its own."""
  network = KLAutoencoder(channels=1, latent_channels=2, widths=(4, 4), resnets=1, groups=2)
  shapes = codecs.init_shapes(ImageCodec(network))
  vector = np.ones(2, np.float32)
  pretrained.save(folder / "vae", network, randomised(shapes) | {"mean": 0.5 * vector, "std": 3 * vector})
  assert main(["convert", str(folder / "vae"), str(folder / "w"), "--to", "jldm"]) == 0
  return folder / "w"


def with_conditioner(experiment: Experiment, conditioner: str) -> Experiment:
  """The experiment with one more conditioner, written as in Python, after its own."""
  every = (*map(repr, experiment.stage("denoiser").objective.conditioners), conditioner)
  return override(experiment, "denoiser.objective.conditioners", f"({', '.join(every)},)")


def claimed_with(experiment: Experiment, conditioner: str, unbroken: Path, workdir: Path) -> Experiment:
  """The experiment with one more conditioner, written as in Python, in a workdir whose autoencoder is
  trained.
  """
  changed = with_conditioner(experiment, conditioner)
  workdirs.claim_workdir(workdir, changed)
  shutil.copytree(unbroken / "autoencoder", workdir / "autoencoder")
  return changed


def last_state(workdir: Path, stage: str, step: int = STEPS) -> dict[str, np.ndarray]:
  """Every array of a stage's checkpoint, by default the last, read without knowing its types."""
  import orbax.checkpoint as ocp

  folder = workdirs.checkpoints_folder(workdir, stage) / str(step)
  items = sorted(path.name for path in folder.iterdir() if path.is_dir())
  leaves = {item: ocp.PyTreeCheckpointer().restore(folder / item) for item in items}
  return {
    jax.tree_util.keystr(path): np.asarray(x) for path, x in jax.tree_util.tree_leaves_with_path(leaves)
  }


def assert_same_end(a: Path, b: Path) -> None:
  """Both workdirs end with the same bits in both stages."""
  for stage in STAGES:
    left, right = last_state(a, stage), last_state(b, stage)
    assert left.keys() == right.keys() and len(left) > 50
    for name, value in left.items():
      np.testing.assert_array_equal(value, right[name], err_msg=f"{stage} {name}")
