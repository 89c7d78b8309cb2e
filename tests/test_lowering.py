"""The training step of every config, at its own size, lowers for TPU and for CUDA on a machine that has neither."""

import jax
from jax import export
import pytest

from jldm import pipeline, rehearsal, workdir as workdirs
from jldm.train.step import make_step
from tests.configs import ROOT, config

NAMES = sorted(path.stem for path in (ROOT / "configs").glob("*.py"))
QUICK = {("digits", "denoiser")}  # the others are traced for seconds each


def marked(name: str, stage: str) -> object:
  return pytest.param(name, stage, marks=[] if (name, stage) in QUICK else pytest.mark.slow)


@pytest.mark.parametrize("name, stage", [marked(name, stage) for name in NAMES for stage in workdirs.STAGES])
def test_the_step_lowers_for_accelerators(name, stage):
  experiment = config(name)
  part = getattr(experiment, stage)
  state, batch, frozen = rehearsal.rehearse(experiment, pipeline.of(experiment), stage)
  step = make_step(part.objective.loss, part.optimizer.build(part.steps), part.ema, part.accumulate)
  key = jax.eval_shape(jax.random.key, 0)
  lowered = export.export(step, platforms=("tpu", "cuda"))(state, batch, key, frozen)
  assert lowered.platforms == ("tpu", "cuda")
  arguments = jax.tree.leaves((state, batch, key, frozen))
  assert len(lowered.in_avals) == len(arguments)
