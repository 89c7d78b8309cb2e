"""What is learned: the contract that autoencoders and diffusion share."""

from typing import Any, ClassVar, NamedTuple, Protocol

import jax

from jldm.core.specs import Loaded

Array = jax.Array


class Aux(NamedTuple):
  """What a loss tells besides itself.

  metrics: scalars, means over the batch.
  extra: the non-gradient state, made of float batch means, so that averaging over devices or
    microbatches is exact.
  """

  metrics: dict[str, Array]
  extra: Any


class Objective(Protocol):
  """A frozen dataclass of objects.

  A batch is a dict of arrays [B, ...] with `row`, an example's place in the global batch, and
  `stratum` = row / its size. `ema` is the averaged parameters of the step itself; `frozen` is what
  is passed beside the state, by role (codec, lpips, teacher): it is never trained, donated or
  averaged.

  makes: the kind of result, "codec" or "denoiser".   network: the network of the result, which `start` compares.
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
    """What later stages are given, and samples are drawn by."""
    ...

  def start(self, params: Any, extra: Any, started: Any) -> tuple[Any, Any]:
    """What `init` gave with the parameters of a result of this kind in its place."""
    ...
