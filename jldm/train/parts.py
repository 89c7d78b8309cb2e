"""One optimizer a part of the parameters."""

import dataclasses
import re
from typing import Any

import jax
import optax

from jldm.core.errors import UserError
from jldm.train.optimizer import AdamW, found, no_match, split


@dataclasses.dataclass(frozen=True, kw_only=True)
class PerPart:
  """`part` trains the parameters in whose path, such as "discriminator/conv0/kernel", the regex
  `where` is found; `rest` the others.  Each has its own rate and clips its own norm; `rest` may be
  a PerPart again.

  Adam counts updates in which its gradients are zero too, as those of a discriminator before its
  start: a short b2 then keeps the first true ones from being much larger than the rate (1.7 times
  at b1 = 0.5, b2 = 0.9; 6.6 at 0.9, 0.999).

  Raises:
    UserError: an invalid regex; in `init` of what `build` returns, one that is found in no path or in all.
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

  def check(self, params: Any) -> None:
    """Raises a UserError where the regex does not divide `params`, arrays or shapes."""
    if len(set(jax.tree.leaves(found(self.where, params)))) != 2:
      raise no_match("where", self.where, "parameter's path, or in all of them,", params)

  def build(self, steps: int) -> optax.GradientTransformation:
    """The transformation for a run of `steps` updates."""
    chosen = lambda params: found(self.where, params)
    tx = split(chosen, rest=self.rest.build(steps), part=self.part.build(steps))

    def init(params):
      self.check(params)
      return tx.init(params)

    return optax.GradientTransformationExtraArgs(init, tx.update)
