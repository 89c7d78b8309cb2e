"""The contract of an objective, which autoencoders and diffusion share."""

from typing import Any, ClassVar, NamedTuple, Protocol

import jax

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


class Objective(Protocol):
  """A frozen dataclass of objects.

  A batch is a dict of arrays [B, ...] with `row`, an example's place in the global batch, and
  `stratum` = row / size of the global batch.  `ema` is the averaged parameters before the step.
  `frozen` holds other models by role (codec, lpips, teacher): they are never trained, donated or
  averaged.

  makes: the kind of result, "codec" or "denoiser".
  network: the network of the result, which must be that of the result that `start` starts from.
  """

  makes: ClassVar[str]
  network: Any

  def init(self, key: Array, batch: dict, frozen: dict) -> tuple[Any, Any]:
    """-> (params, extra)."""
    ...

  def loss(
    self, params: Any, extra: Any, ema: Any, frozen: dict, batch: dict, key: Array
  ) -> tuple[Array, Aux]:
    """-> (loss per example [B], Aux)."""
    ...

  def result(self, params: Any, extra: Any, frozen: dict) -> Loaded:
    """The trained model, for later stages and for sampling."""
    ...

  def start(self, params: Any, extra: Any, started: Any) -> tuple[Any, Any]:
    """The state of `init` with the parameters of a result of this kind."""
    ...
