"""A text tower that was trained elsewhere, as the stage of a workdir: other stages need it."""

import dataclasses
from typing import Any, ClassVar

from flax import linen as nn
import jax
import jax.numpy as jnp

from jldm.core.errors import UserError
from jldm.core.specs import Loaded
from jldm.objectives.objective import Aux, Objective

Array = jax.Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tower(Objective):
  """An imported text tower, which no step trains."""

  makes: ClassVar[str] = "tower"
  network: nn.Module

  def init(self, key: Array, batch: dict, frozen: dict) -> tuple[Any, Any]:
    params = self.network.init(key, jnp.zeros((1, 1), jnp.int32))["params"]
    return jax.tree.map(lambda x: x.astype(self.network.dtype), params), {}  # as it was imported

  def loss(
    self, params: Any, extra: Any, ema: Any, frozen: dict, batch: dict, key: Array
  ) -> tuple[Array, Aux]:
    """Raises: UserError always."""
    raise UserError(
      "a text tower is imported and not trained; leave its stage out, and name its workdir in needs: "
      "Need('text', 'runs/clip')"
    )

  def result(self, params: Any, extra: Any, frozen: dict) -> Loaded:
    return Loaded(self.network, params)

  def start(self, params: Any, extra: Any, started: Any) -> tuple[Any, Any]:
    return started, extra
