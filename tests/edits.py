"""Edits in tests: a small model of random parameters, and programs that compile fast."""

from collections.abc import Iterator
import contextlib
import inspect
from typing import Any

import numpy as np
import pytest

from jldm.config.experiment import Experiment
from jldm.inference import edit, latent_edit
from jldm.inference.model import build_model, codec_shapes, denoiser_shapes
from tests.networks import quick, randomised


def model_of(experiment: Experiment) -> tuple[Any, dict]:
  """Its model and parameters that say something: those of two steps of training would say next to nothing."""
  model = build_model(experiment)
  params = randomised({"codec": codec_shapes(model)} | denoiser_shapes(model))
  params["codec"] |= {"mean": np.zeros(4, np.float32), "std": np.ones(4, np.float32)}
  return model, params


@contextlib.contextmanager
def quick_edits() -> Iterator[None]:
  """The programs of jldm.inference.edit and latent_edit, compiled fast."""
  programs = {name: run for name, run in (vars(edit) | vars(latent_edit)).items() if name.startswith("run_")}
  with pytest.MonkeyPatch.context() as patch:
    for name, run in programs.items():
      static = [field for field in ("model", "degradation") if field in inspect.signature(run).parameters]
      program = quick(run.__wrapped__, static_argnames=static)
      for module in (edit, latent_edit):
        if name in vars(module):
          patch.setattr(module, name, program)
    yield
