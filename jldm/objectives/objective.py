"""The contract of an objective, which autoencoders and diffusion share."""

import abc
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple

import jax

from jldm.core.errors import UserError
from jldm.core.specs import Loaded

Array = jax.Array


class Aux(NamedTuple):
  """What a loss returns besides its value.

  metrics: scalars, means over the batch.
  extra: the non-gradient state, made of float batch means, so that averaging over devices or
    microbatches is exact.
  """

  metrics: dict[str, Array]
  extra: Any


class Objective(abc.ABC):
  """What a stage learns; subclass it as a frozen dataclass of objects, and register it.

  A batch is a dict of arrays [B, ...] with `row`, an example's place in the global batch, and
  `stratum` = row / size of the global batch.  `ema` is the averaged parameters before the step.
  `frozen` holds other models by role (codec, lpips, teacher): they are never trained, donated or
  averaged.

  makes: the kind of result, "codec" or "denoiser".
  network: the network of the result, which must be that of the result that `start` starts from.
  refresh_every_steps: how often `refresh` is called between steps; 0 is never.
  weight_files: by role, the files of weights that `frozen` has besides the stage's needs.
  """

  makes: ClassVar[str]
  network: Any
  refresh_every_steps: int = 0
  weight_files: Mapping[str, str] = MappingProxyType({})

  @abc.abstractmethod
  def init(self, key: Array, batch: dict, frozen: dict) -> tuple[Any, Any]:
    """-> (params, extra)."""

  @abc.abstractmethod
  def loss(
    self, params: Any, extra: Any, ema: Any, frozen: dict, batch: dict, key: Array
  ) -> tuple[Array, Aux]:
    """-> (loss per example [B], Aux)."""

  @abc.abstractmethod
  def result(self, params: Any, extra: Any, frozen: dict) -> Loaded:
    """The trained model, for later stages and for sampling."""

  @abc.abstractmethod
  def start(self, params: Any, extra: Any, started: Any) -> tuple[Any, Any]:
    """The state of `init` with the parameters of a result of this kind."""

  def settle(self, frozen: dict) -> dict:
    """`frozen` as the steps of a training need it, after `cache` has used the whole."""
    return frozen

  def check_fields(self) -> None:  # noqa: B027  there may be nothing to check
    """Raises a UserError if fields contradict each other; called before anything is trained."""

  def at_time(self, t: Array) -> "Objective | None":
    """The objective whose loss is of time t [] alone, no condition dropped; None if times are not drawn."""
    del t

  def refresh(self, params: Any, extra: Any, batch: dict, key: Array) -> Any:
    """The next `extra`, computed outside the step."""
    del params, batch, key
    return extra


def check_objective(objective: Any, stage: str) -> Objective:
  """`objective` itself; UserError unless it is an `Objective`."""
  if not isinstance(objective, Objective):
    raise UserError(
      f"{stage}.objective is of type {type(objective).__name__}; expected a subclass of "
      "jldm.objectives.objective.Objective"
    )
  return objective
