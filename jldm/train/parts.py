"""One optimizer per part of the parameters."""

import dataclasses
import re
from typing import Any

import jax
import optax

from jldm.core.errors import UserError
from jldm.train.optimizer import AdamW, match_paths, no_match_error, partition_by


@dataclasses.dataclass(frozen=True, kw_only=True)
class PerPart:
  """The optimizer `part` for parameters whose path matches the regex `where`, and `rest` for the others.

  A path is such as "discriminator/conv0/kernel".  Each optimizer has its own rate and clips its own
  norm.  `rest` may be a PerPart again.

  Adam also counts updates with zero gradients, as those of a discriminator before its start.  A short
  b2 keeps the first real updates from being much larger than the rate: 1.7 times at b1 = 0.5, b2 = 0.9,
  and 6.6 times at 0.9, 0.999.

  Raises:
    UserError: an invalid regex; in `init` of the built transformation, one that matches no path or all.
  """

  where: str = "^discriminator/"
  part: Any = AdamW(b1=0.5, b2=0.9)
  rest: Any = AdamW()

  def __post_init__(self):
    try:
      re.compile(self.where)
    except (re.error, TypeError) as error:
      raise UserError(
        f"where={self.where!r} is no regex: {error}; expected one such as '^discriminator/'"
      ) from error

  def check_regexes(self, params: Any) -> None:
    """Raises a UserError if the regex does not divide `params`, arrays or shapes."""
    if len(set(jax.tree.leaves(match_paths(self.where, params)))) != 2:
      raise no_match_error("where", self.where, "parameter's path, or in all of them,", params)

  def learning_rate(self, steps: int) -> optax.Schedule:
    """That of `rest`."""
    return self.rest.learning_rate(steps)

  def build(self, steps: int) -> optax.GradientTransformation:
    """The transformation for a run of `steps` updates."""
    chosen = lambda params: match_paths(self.where, params)
    tx = partition_by(chosen, rest=self.rest.build(steps), part=self.part.build(steps))

    def init(params):
      self.check_regexes(params)
      return tx.init(params)

    return optax.GradientTransformationExtraArgs(init, tx.update)
