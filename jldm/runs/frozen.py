"""What a stage's objective is given beside its state, by role: results of other stages, and weights of files."""

from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from jldm.core.errors import UserError
from jldm.core.specs import Loaded
from jldm.distributed import sharding
from jldm.inference import load
from jldm.interop import safetensors
from jldm.metrics import perceptual
from jldm.runs.run import Run


def load_frozen(run: Run, mesh: Mesh) -> dict[str, Any]:
  """`frozen` of a stage: {role: Loaded} of its needs, split over the mesh as what is trained, and what
  LPIPS compares by.

  Raises:
    UserError: a stage that is needed is not finished, or a file cannot be read.
  """
  needed = {
    role: Loaded(each.model, sharding.shard(mesh, each.params))
    for role, each in load.load_needed(run.at).items()
  }
  return needed | sharding.replicate(mesh, lpips_weights(run.stage.objective))


def frozen_with_weights(at: load.StagePlace) -> dict[str, Any]:
  """The same as shapes; the weights of files are read."""
  return load.frozen_shapes(at) | lpips_weights(at.stage.objective)


def lpips_weights(objective: Any) -> dict:
  """{"lpips": …}, what the perceptual term of an autoencoder's objective compares by; {} where it has none."""
  if not getattr(objective, "perceptual_weight", 0):
    return {}
  if not objective.lpips:
    raise UserError(
      f"perceptual_weight={objective.perceptual_weight} without weights; set lpips to a file that jldm convert --kind lpips made"
    )
  return {"lpips": perceptual.unpack_lpips(safetensors.read(Path(objective.lpips)))}
