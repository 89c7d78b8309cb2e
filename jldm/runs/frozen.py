"""The frozen networks of a stage by role: results of other stages, and weights read from files."""

from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from jldm.core.specs import Loaded
from jldm.distributed import sharding
from jldm.inference.load import load_needed
from jldm.inference.model import StagePlace, frozen_shapes
from jldm.interop import safetensors
from jldm.metrics import perceptual
from jldm.objectives.objective import Objective
from jldm.runs.run import Run


def load_frozen(run: Run, mesh: Mesh) -> dict[str, Any]:
  """The `frozen` of a stage: {role: Loaded} of its needs, and the weights of LPIPS if it uses them.

  The networks are sharded like the parameters that the stage trains.

  Raises:
    UserError: a stage that is needed is not finished, or a file cannot be read.
  """
  needed = {
    role: Loaded(each.model, sharding.shard(mesh, each.params)) for role, each in load_needed(run.at).items()
  }
  return needed | sharding.replicate(mesh, file_weights(run.stage.objective))


def frozen_with_weights(at: StagePlace) -> dict[str, Any]:
  """`load_frozen` as shapes; weights of files are read."""
  return frozen_shapes(at) | file_weights(at.stage.objective)


def file_weights(objective: Objective) -> dict:
  """By role, the weights of files that the objective names."""
  return {role: READERS[role](Path(file)) for role, file in objective.weight_files.items()}


# Role -> reads the weights of a file.
READERS = {"lpips": lambda path: perceptual.unpack_lpips(safetensors.read(path))}
