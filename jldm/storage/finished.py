"""When a stage is finished: at its last step, or at the step where its patience ended it."""

import jax
import numpy as np

from jldm.config.experiment import Stage
from jldm.storage.checkpoint import Checkpoints

ENDED = "ended"  # the item of a last checkpoint before `Stage.steps`: the fields by which it came to that


def ended_item(stage: Stage) -> dict:
  """What the last checkpoint of a stage that ended early has besides its result."""
  return {ENDED: {"steps": np.int32(stage.steps), "patience": np.int32(stage.patience)}}


def is_finished(saved: Checkpoints, stage: Stage) -> bool:
  """Whether the newest checkpoint is the last of a stage; not so if it ended early by other fields."""
  step = saved.latest()
  if step is None or step == stage.steps or ENDED not in saved.items(step):
    return step == stage.steps
  ours = ended_item(stage)
  like = jax.tree.map(lambda number: jax.ShapeDtypeStruct((), number.dtype), ours)
  return jax.tree.map(int, saved.restore(step, like)) == jax.tree.map(int, ours)
