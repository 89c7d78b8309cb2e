"""Stages that start from the result of another one, perhaps of data with other classes."""

import jax

from jldm.config.serialize import Change, changed_fields, to_data
from jldm.core.errors import UserError
from jldm.core.trees import named_leaves
from jldm.inference.model import StagePlace, result_shapes
from jldm.train.state import TrainState

CLASSES = "objective.network.classes"  # the field of a stage that may differ: its label table is drawn anew
DTYPE = "objective.network.dtype"  # may differ too: parameters are float32


def network_changes(at: StagePlace) -> list[Change]:
  """The fields of the network that differ from those of the stage that this one starts from."""
  start = at.started_from()
  if start is None:
    return []
  theirs, ours = (to_data(each.objective.network) for each in (start.stage, at.stage))
  return changed_fields(theirs, ours, f"{at.stage.name}.objective.network")


def class_change(at: StagePlace) -> Change | None:
  """The change of the number of classes, of a stage that starts from one with another."""
  return next((change for change in network_changes(at) if change.path == f"{at.stage.name}.{CLASSES}"), None)


def check_start(at: StagePlace) -> None:
  """Raises a UserError if a stage starts from another network than its own, but for classes and dtype."""
  legal = [f"{at.stage.name}.{field}" for field in (CLASSES, DTYPE)]
  if changed := [str(change) for change in network_changes(at) if change.path not in legal]:
    raise UserError(
      f"{at.stage.name}.start={at.stage.start!r} has another network: {'; '.join(changed[:3])}; make them "
      "equal"
    )


def check_started_shapes(at: StagePlace, state: TrainState) -> None:
  """Raises a UserError if the stage that it starts from has other arrays."""
  start = at.started_from()
  if start is None:
    return
  ours = state.params, state.extra
  theirs = jax.eval_shape(at.stage.objective.start, *ours, result_shapes(start).params)
  named = lambda tree: {name: f"{x.dtype}{list(x.shape)}" for name, x in named_leaves(tree).items()}
  ours, theirs = named(ours), named(theirs)
  if different := [name for name in ours | theirs if ours.get(name) != theirs.get(name)]:
    name = different[0]
    raise UserError(
      f"{at.stage.name}.start={at.stage.start!r} has other arrays, the first {name}: {theirs.get(name)}, "
      f"expected {ours.get(name)}; make the objectives equal"
    )
