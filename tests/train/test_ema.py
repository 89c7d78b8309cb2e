"""Averages against their formulas in float64, and those made afterwards against those that were tracked."""

import functools
import json

import jax
from jax.flatten_util import ravel_pytree
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jldm.core.errors import UserError
from jldm.objectives.objective import Aux
from jldm.train.ema import WIDEST, Decay, Power, power_exponent, reconstruct, snapshot_weights, weighted_sum
from jldm.train.state import init_state
from jldm.train.step import make_step
from tests.networks import quick

WIDTHS = (0.05, 0.10, 0.15, 0.2, 0.28)


@functools.cache
def profile(width: float, steps: int) -> np.ndarray:
  """What the recursion (2) makes of each step's params: float64 [steps]."""
  shares = np.zeros(steps)
  for t in range(1, steps + 1):
    beta = (1 - 1 / t) ** (power_exponent(width) + 1)
    shares *= beta
    shares[t - 1] = 1 - beta
  return shares


def error(value, reference) -> float:
  return np.abs(np.asarray(value) - reference).max() / np.abs(reference).max()


@pytest.mark.parametrize("width", [1e-3, 0.01, *WIDTHS, WIDEST])
def test_gamma_solves_its_equation(width):
  g = power_exponent(width)
  assert g >= 0 and np.sqrt(g + 1) / (g + 2) / np.sqrt(g + 3) == pytest.approx(width, rel=1e-12)


@pytest.mark.parametrize("width", [0, -0.1, 0.2887, 1.0, float("nan")])
def test_widths_that_are_none(width):
  for call in (
    power_exponent,
    lambda width: Power((0.05, width)),
    lambda width: snapshot_weights([5], [0.05], 5, width),
  ):
    with pytest.raises(UserError, match=r"expected more than 0 and at most 0.289, the mean of all steps"):
      call(width)


@pytest.mark.parametrize("widths", [0.05, (), [0.05]])
def test_widths_are_a_tuple(widths):
  with pytest.raises(UserError, match=r"expected a tuple of widths such as \(0.05, 0.10\)"):
    Power(widths)


@quick
def unit_vectors(init):
  """The averages of e_1, e_2, ..., after the last: what each step weighs."""
  average, steps = Power(WIDTHS), len(init)
  one = lambda averages, n: (average.update(averages, jax.nn.one_hot(n, steps), n), None)
  return jax.lax.scan(one, average.init(init), jnp.arange(steps))[0]


def test_the_power_function_has_its_profile_and_its_width():
  steps = 600
  # whatever it was before, it is forgotten
  for width, tracked in zip(WIDTHS, unit_vectors(jnp.full(steps, 7.0))):
    assert error(tracked, profile(width, steps)) < 1e-5 and np.sum(tracked) == pytest.approx(1, abs=1e-6)
    k = np.arange(1, steps + 1)
    closed = (k / steps) ** (power_exponent(width) + 1) - ((k - 1) / steps) ** (power_exponent(width) + 1)
    assert error(closed, profile(width, steps)) < 1e-12, "the product telescopes"
    places = (k - 0.5) / steps
    mean = tracked @ places
    assert np.sqrt(tracked @ (places - mean) ** 2) == pytest.approx(width, rel=2e-3)


def test_decay_is_its_formula():
  average, values = Decay(0.9), np.random.default_rng(0).normal(size=(100, 3))
  averages, expected = average.init(np.float32(values[0])), values[0]
  for n, value in enumerate(values):
    averages = average.update(averages, np.float32(value), jnp.int32(n))
    rate = min(0.9, (1 + n) / (10 + n))
    expected = rate * expected + (1 - rate) * value
  assert len(averages) == 1 and error(averages[0], expected) < 1e-6


@pytest.mark.parametrize(
  "average", [Decay(np.float64(0.9)), Power((np.float64(0.05), 0.1))], ids=["decay", "power"]
)
def test_averages_stay_float32_and_are_compiled_once(average):
  update = jax.jit(average.update)
  with jax.enable_x64(True):
    averages = average.init(jnp.ones(2))
    for n in range(3):
      averages = update(averages, jnp.ones(2, jnp.bfloat16), jnp.int32(n))
  assert {one.dtype for one in averages} == {jnp.dtype("float32")} and update._cache_size() == 1


def test_they_are_data():
  for average in (Decay(), Power()):
    assert hash(average) == hash(type(average)()) and json.dumps(vars(average))


def places(steps: int, every: int, widths=(0.05, 0.10)) -> tuple[list[int], list[float]]:
  taken = [t for t in range(1, steps + 1) if t % every == 0 or t == steps]
  return [t for t in taken for _ in widths], [width for _ in taken for width in widths]


def made(x, when, widths, steps: int) -> np.ndarray:
  """The profile of the weighted sum."""
  return sum(w * np.pad(profile(width, t), (0, steps - t)) for w, t, width in zip(x, when, widths))


@pytest.mark.parametrize(
  "every, widths", [(1, (0.05,)), (1, (0.05, 0.1)), (2, (0.05, 0.1)), (3, (0.05, 0.1, 0.2))]
)
@pytest.mark.parametrize("width", [0.04, 0.07, 0.15, 0.25])
def test_as_many_widths_as_steps_between_snapshots_are_exact(every, widths, width):
  when, of = places(60, every, widths)
  assert np.abs(made(snapshot_weights(when, of, 60, width), when, of, 60) - profile(width, 60)).max() < 1e-11


@pytest.mark.parametrize("width", [0.04, 0.05, 0.07, 0.1, 0.15, 0.25])
def test_no_other_weights_have_smaller_sums_of_squares(width):
  """The minimum of (4): from it, no direction among weights that sum to 1 leads down."""
  when, of = places(96, 8)
  x = snapshot_weights(when, of, 96, width)
  basis = np.cumsum([np.pad(profile(w, t), (0, 96 - t)) for t, w in zip(when, of)], 1)
  slope = basis @ (x @ basis - np.cumsum(profile(width, 96)))
  assert x.sum() == pytest.approx(1, abs=1e-14) and np.ptp(slope) < 1e-12
  assert np.abs(x).sum() < 3 or width < 0.05, "rounding errors of snapshots do not grow"


def test_many_steps_cost_neither_memory_nor_accuracy():
  steps = 200_000
  when, of = places(steps, steps // 64)
  x, k = snapshot_weights(when, of, steps, 0.15), np.arange(1, steps, 997)
  share = lambda t, width: np.minimum(k / t, 1) ** (power_exponent(width) + 1)
  assert (
    np.abs(sum(w * share(t, width) for w, t, width in zip(x, when, of)) - share(steps, 0.15)).max() < 2e-5
  )
  assert np.abs(x).sum() < 3


def test_a_snapshot_is_itself():
  x = snapshot_weights([4, 4, 9, 9, 12], [0.05, 0.1, 0.05, 0.1, 0.05], 9, 0.1)
  np.testing.assert_allclose(x, [0, 0, 0, 1, 0], atol=1e-12)
  np.testing.assert_array_equal(snapshot_weights([9], [0.1], 9, 0.1), [1])


@pytest.mark.parametrize("steps, message", [([4, 8, 8], "one of 4, 8$"), ([], "of which there are none$")])
def test_a_step_without_a_snapshot(steps, message):
  with pytest.raises(UserError, match=f"step=5 has no snapshot; expected .*{message}"):
    reconstruct(0.1, 5, [((step, 0.1), None) for step in steps])


def test_combine():
  trees = [
    {"a": np.float32([1, 2]), "b": (np.float32(3),)},
    {"a": jnp.array([1e8, 0]), "b": (jnp.float32(1),)},
  ]
  total = weighted_sum([2.0, 1e-8], iter(trees))
  assert total["a"].dtype == np.float32 and isinstance(total["b"][0], np.ndarray)
  np.testing.assert_array_equal(total["a"], np.float32([3, 4]))
  np.testing.assert_array_equal(total["b"][0], np.float32(6 + 1e-8))


def test_snapshots_are_loaded_one_at_a_time_and_only_where_used():
  held = []

  def load(t):
    held.append(t)
    return {"w": np.float32(t)}

  snapshots = (((t, width), functools.partial(load, t)) for t in (1, 2, 3, 4) for width in (0.05, 0.1))
  assert 0 < reconstruct(0.2, 2, snapshots)["w"] < 2 and set(held) == {1, 2} and len(held) <= 4


TRACKED = (0.05, 0.10, 0.07, 0.15, 0.2)
STEPS = 400


def mlp_loss(params, extra, ema, frozen, batch, key):
  x = jax.random.normal(key, (32, 4))
  out = jnp.tanh(x @ params["in"]) @ params["out"] + params["bias"]
  return jnp.square(out - jnp.sin(x[:, :2] * 2)).sum(-1), Aux({}, extra)


@functools.cache
def training() -> tuple[tuple, tuple]:
  """Adam on an MLP: parameters and averages after every step, on the host."""
  rng, average, tx = np.random.default_rng(0), Power(TRACKED), optax.adam(3e-3)
  params = {"in": rng.normal(size=(4, 32)), "out": rng.normal(size=(32, 2)) / 6, "bias": np.zeros(2)}
  state = init_state(jax.tree.map(jnp.float32, params), {}, tx, average)
  step, trajectory = make_step(mlp_loss, tx, average), []
  for _ in range(STEPS):
    state, _ = step(state, {}, jax.random.key(1), ())
    trajectory.append(jax.device_get((state.params, state.ema)))
  return tuple(zip(*trajectory))


@pytest.mark.parametrize("width", TRACKED)
def test_tracked_in_training_it_is_the_weighted_sum_of_the_parameters(width):
  params, averages = training()
  expected = profile(width, STEPS) @ np.stack([ravel_pytree(p)[0] for p in params]).astype(np.float64)
  assert error(ravel_pytree(averages[-1][TRACKED.index(width)])[0], expected) < 1e-6


@pytest.mark.parametrize("every, step", [(2, 400), (4, 400), (4, 200), (6, 400)])
@pytest.mark.parametrize("width", TRACKED)
def test_of_a_training_it_equals_the_tracked_one(width, every, step):
  """With 50 snapshots or more up to that step, to 1e-6."""
  _, averages = training()
  when = [t for t in range(1, STEPS + 1) if t % every == 0 or t == STEPS]
  snapshots = [((t, TRACKED[i]), lambda t=t, i=i: averages[t - 1][i]) for t in when for i in (0, 1)]
  averaged = reconstruct(width, step, snapshots)
  assert jax.tree.structure(averaged) == jax.tree.structure(averages[0][0])
  assert error(ravel_pytree(averaged)[0], ravel_pytree(averages[step - 1][TRACKED.index(width)])[0]) < 1e-6
