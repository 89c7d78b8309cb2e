"""Edits in tests: a small model of random parameters, and programs that compile fast."""

from collections.abc import Iterator
import contextlib
import inspect
from typing import Any

import numpy as np
import pytest

from jldm.config.experiment import Experiment
from jldm.inference import edit
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
  """The programs of jldm.inference.edit, compiled fast."""
  with pytest.MonkeyPatch.context() as patch:
    for name, run in vars(edit).items():
      if name.startswith("run_"):
        static = [field for field in ("model", "degradation") if field in inspect.signature(run).parameters]
        patch.setattr(edit, name, quick(run.__wrapped__, static_argnames=static))
    yield
