import jax
import numpy as np
import optax
import pytest

from jldm.core.errors import UserError
from jldm.train.optimizer import AdamW, Constant
from jldm.train.parts import PerPart
from tests.networks import randomised

LAYER = {"conv": {"kernel": np.zeros((3, 2)), "bias": np.zeros(2)}}
PARAMS = randomised({"autoencoder": LAYER, "discriminator": LAYER})
SLOW, FAST = (
  AdamW(schedule=Constant(peak=peak), clip_norm=0.0, b1=b1) for peak, b1 in ((1e-3, 0.9), (3e-2, 0.5))
)
BOTH = PerPart(part=FAST, rest=SLOW)


def updated(tx, params, steps=3):
  state = tx.init(params)
  for n in range(steps):
    updates, state = tx.update(randomised(params, seed=n + 1), state, params)
    params = optax.apply_updates(params, updates)
  return params


def test_each_part_has_its_own_optimizer():
  """As each alone: gradients of seed n are drawn leaf by leaf, so a part is trained amid the whole."""
  actual = updated(BOTH.build(10), PARAMS)
  for part, alone in (("discriminator", FAST), ("autoencoder", SLOW)):
    expected = updated(alone.build(10), PARAMS)[part]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), actual[part], expected)


def test_a_part_clips_its_own_norm():
  clipping = AdamW(schedule=Constant(peak=1.0), clip_norm=1.0)
  tx, gradients = PerPart(part=clipping, rest=clipping).build(10), jax.tree.map(np.copy, PARAMS)
  one = tx.update(gradients, tx.init(PARAMS), PARAMS)[0]
  gradients["autoencoder"] = jax.tree.map(lambda x: 1e6 * x, gradients["autoencoder"])
  other = tx.update(gradients, tx.init(PARAMS), PARAMS)[0]
  jax.tree.map(np.testing.assert_array_equal, other["discriminator"], one["discriminator"])


def test_three_parts():
  nested = PerPart(where="kernel$", part=FAST, rest=BOTH).build(10)
  actual, kernels, others = (
    updated(nested, PARAMS),
    updated(FAST.build(10), PARAMS),
    updated(BOTH.build(10), PARAMS),
  )
  for part in PARAMS:
    np.testing.assert_allclose(actual[part]["conv"]["kernel"], kernels[part]["conv"]["kernel"], rtol=1e-6)
    np.testing.assert_allclose(actual[part]["conv"]["bias"], others[part]["conv"]["bias"], rtol=1e-6)


@pytest.mark.parametrize(
  "where, message",
  [
    ("^generator/", "where='.generator/' matches no parameter's path"),
    ("conv", "or in all of them"),
    ("(", "is no regex"),
  ],
)
def test_a_regex_that_divides_nothing_is_refused(where, message):
  with pytest.raises(UserError, match=message):
    PerPart(where=where).build(10).init(PARAMS)
