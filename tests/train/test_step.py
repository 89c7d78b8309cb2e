"""One step on any devices, in any parts, resumed or not; and the updates that are not made."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jldm.core.errors import UserError
from jldm.core.keys import normal_like, row_keys
from jldm.core.specs import Loaded
from jldm.diffusion.process import Cosine
from jldm.diffusion.times import LogitNormal
from jldm.distributed import sharding
from jldm.models.autoencoders.kl import KLAutoencoder
from jldm.models.conditioners.label import ClassLabel
from jldm.models.denoisers.dit import DiT
from jldm.nn.transformer import ModulatedBlock
from jldm.objectives.autoencoder import Reconstruction
from jldm.objectives.diffusion import Diffusion
from jldm.objectives.objective import Aux
from jldm.train.ema import Decay, Power
from jldm.train.state import init_state
from jldm.train.step import SKIPS_ALLOWED, make_step, microbatches, step_fn
from tests.networks import randomised

DENOISER = Diffusion(
  network=DiT(block=ModulatedBlock(heads=1), patch=2, width=8, depth=1, classes=3),
  process=Cosine(),
  times=LogitNormal(),
  conditioners=(ClassLabel(classes=3, dropout=0.3),),
)
AUTOENCODER = Reconstruction(
  network=KLAutoencoder(channels=1, latent_channels=2, widths=(4,), resnets=0, groups=2, patch=2),
  kl_weight=1e-2,
)
TX = optax.sgd(0.1, 0.9)  # rounding errors of gradients stay as small as they are, which those of Adam do not
POWER = Power((0.05, 0.1))  # a tuple of two
DECAY = Decay(0.9)
ROOT = jax.random.key(5)
CODEC = {"codec": Loaded(None, {"mean": np.float32([0.5, -1.0]), "std": np.float32([2.0, 0.5])})}


@pytest.fixture(scope="module", autouse=True)
def quick_to_compile():
  jax.config.update("jax_disable_most_optimizations", True)
  yield
  jax.config.update("jax_disable_most_optimizations", False)


def batch_of(step: int) -> dict:
  """The same for either objective: 8 images and 8 posteriors."""
  rng = np.random.default_rng(step)
  return {
    "image": rng.integers(0, 256, (8, 4, 6, 1), np.uint8),
    "mean": np.float32(rng.normal(size=(8, 4, 4, 2))),
    "log_variance": np.float32(rng.normal(size=(8, 4, 4, 2))),
    "label": rng.integers(-1, 3, 8),
    "row": np.arange(8),
    "stratum": np.float32(np.arange(8) / 8),
  }


@functools.cache
def compiled(objective, accumulate: int):
  # one function, so that its compilations can be counted
  return make_step(objective.loss, TX, POWER, accumulate)


@functools.cache
def first_state(objective):
  """As numpy, on the host."""
  params = randomised(jax.eval_shape(objective.init, ROOT, batch_of(0), CODEC)[0])
  return jax.device_get(jax.jit(lambda params: init_state(params, {}, TX, POWER))(params))


def run(objective, devices: int, start: int, stop: int, state=None, accumulate: int = 1):
  """Steps start + 1 to stop: (the state, the metrics of each), on the host."""
  mesh, metrics = sharding.mesh_for(8, devices), []
  state = sharding.replicate(mesh, state or first_state(objective))
  root, frozen = sharding.replicate(mesh, (ROOT, CODEC))
  for n in range(start, stop):
    state, each = compiled(objective, accumulate)(
      state, sharding.shard_batch(mesh, batch_of(n)), root, frozen
    )
    metrics.append(jax.device_get(each))
  return jax.device_get(state), metrics


def assert_near(these, those, tolerance=1e-4):
  """max|difference| / max|reference| of every leaf."""
  assert jax.tree.structure(these) == jax.tree.structure(those)
  for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(these), jax.tree.leaves(those)):
    atol = tolerance * np.abs(b).max() + 1e-7
    np.testing.assert_allclose(a, b, rtol=0, atol=atol, err_msg=jax.tree_util.keystr(path))


def assert_same(these, those):
  jax.tree.map(np.testing.assert_array_equal, these, those)


def assert_moved(state, objective):
  moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), state.params, first_state(objective).params)
  assert min(jax.tree.leaves(moved)) > 1e-6, "every parameter learns"


@functools.cache
def three_steps(objective):
  return run(objective, 8, 0, 3)


@pytest.mark.parametrize(
  "objective, accumulate",
  [
    (DENOISER, 4),
    pytest.param(DENOISER, 1, marks=pytest.mark.slow),
    pytest.param(AUTOENCODER, 1, marks=pytest.mark.slow),
  ],
  ids=["denoiser-in-microbatches", "denoiser", "autoencoder"],
)
def test_one_device_and_eight_agree(objective, accumulate):
  one, eight = run(objective, 1, 0, 3, accumulate=accumulate), three_steps(objective)
  assert_moved(eight[0], objective)
  assert_near(eight, one)


@pytest.mark.slow
def test_jit_and_pmap_agree():
  step = jax.pmap(step_fn(DENOISER.loss, TX, POWER, axis_name="d"), axis_name="d", in_axes=(0, 0, None, None))
  state = jax.tree.map(lambda x: np.stack([x] * 8), first_state(DENOISER))
  metrics = []
  for n in range(3):
    batch = jax.tree.map(lambda x: x.reshape(8, 1, *x.shape[1:]), batch_of(n))
    state, each = step(state, batch, ROOT, CODEC)
    metrics.append(jax.device_get(each))
  for device in (0, 7):
    assert_near(jax.tree.map(lambda x, d=device: np.asarray(x)[d], (state, metrics)), three_steps(DENOISER))


def test_resumed_is_bit_for_bit_the_same_and_nothing_is_compiled_twice():
  three_steps(DENOISER)
  before = compiled(DENOISER, 1)._cache_size()
  unbroken, metrics = run(DENOISER, 8, 0, 40)
  half, first = run(DENOISER, 8, 0, 20)
  saved = jax.tree.map(np.copy, half)
  resumed, second = run(DENOISER, 8, 20, 40, saved)
  assert unbroken.step == 40
  assert_same((resumed, first + second), (unbroken, metrics))
  assert np.mean([each["loss"] for each in metrics[-10:]]) < 0.9 * np.mean(
    [each["loss"] for each in metrics[:5]]
  )
  assert compiled(DENOISER, 1)._cache_size() == before


# What follows is one linear layer, so that a step can be written by hand.


def toy_loss(params, extra, ema, frozen, batch, key):
  """(w x~ - y)^2 with noisy x~; `inverse` lets a test make values or gradients that are not finite."""
  x = batch["x"] + 0.1 * normal_like(row_keys(key, batch["row"]), batch["x"])
  values = jnp.square(x @ params["w"] - batch["y"]) + jnp.sqrt(params["w"][0] * batch["slope"]) + frozen
  return values, Aux({"y": batch["y"].mean()}, {"seen": 0.5 * extra["seen"] + 0.5 * batch["y"].mean()})


def toy_batch(step: int, **change) -> dict:
  rng = np.random.default_rng(step)
  batch = {"x": rng.normal(size=(8, 3)), "y": rng.normal(size=8), "slope": np.ones(8)}
  return {name: np.float32(x) for name, x in (batch | change).items()} | {"row": np.arange(8)}


def toy_state(ema=DECAY):
  return init_state({"w": jnp.array([1.0, -2.0, 0.5])}, {"seen": jnp.float32(0)}, optax.adam(1e-2), ema)


toy = functools.cache(lambda accumulate=1, ema=DECAY: make_step(toy_loss, optax.adam(1e-2), ema, accumulate))
BAD = {
  "a value that is not a number": {"y": np.full(8, np.nan)},
  "one that is infinite": {"x": np.full((8, 3), np.inf)},
  "one of eight": {"y": np.where(np.arange(8) == 3, np.inf, 0)},
  "a gradient alone": {"slope": np.zeros(8)},  # sqrt at zero
  "the norm of the gradient alone": {"x": np.full((8, 3), 1e15), "y": np.zeros(8)},
}


def test_a_step_is_its_formula():
  """Mean over the batch, key of the step, update, average that warms up; compiled once."""
  tx, state, decay = optax.adam(1e-2), toy_state(), lambda n: min(DECAY.decay, (1 + n) / (10 + n))
  mean = lambda params, batch, key: toy_loss(params, {"seen": 0.0}, (), 0.25, batch, key)[0].mean()
  by_hand = jax.jit(jax.value_and_grad(mean))
  ema, seen = np.float64(state.params["w"]), 0.0
  for n in range(90):
    old = jax.device_get(state)
    state, metrics = toy()(state, toy_batch(n), ROOT, 0.25)
    if n in (0, 1, 89):
      value, gradient = by_hand(old.params, toy_batch(n), jax.random.fold_in(ROOT, n))
      updates, _ = tx.update(gradient, old.opt_state, old.params)
      np.testing.assert_allclose(state.params["w"], old.params["w"] + updates["w"], rtol=1e-5)
      np.testing.assert_allclose(metrics["loss"], value, rtol=1e-5)
      np.testing.assert_allclose(metrics["grad_norm"], np.linalg.norm(gradient["w"]), rtol=1e-5)
    ema = decay(n) * ema + (1 - decay(n)) * np.asarray(state.params["w"])
    seen = 0.5 * seen + 0.5 * toy_batch(n)["y"].mean()
  assert decay(0) == 0.1 and decay(79) < DECAY.decay == decay(81), "the average has warmed up"
  np.testing.assert_allclose(state.ema[0]["w"], ema, rtol=1e-4)
  np.testing.assert_allclose(state.extra["seen"], seen, rtol=1e-4)
  assert state.step == 90 and state.skipped == metrics["skipped"] == 0
  assert toy()._cache_size() == 1


def test_the_loss_sees_the_first_average():
  def loss(params, extra, ema, frozen, batch, key):
    return jnp.square(params["w"]).sum() + jnp.zeros(8), Aux({"seen": ema["w"][0]}, extra)

  step, state = make_step(loss, optax.sgd(0.1), POWER), toy_state(POWER)
  state = state.replace(
    ema=({"w": jnp.array([7.0, 0, 0])}, {"w": jnp.array([8.0, 0, 0])}), opt_state=optax.sgd(0.1).init({})
  )
  assert step(state, toy_batch(0), ROOT, ())[1]["seen"] == 7


def test_a_number_is_not_an_average():
  with pytest.raises(UserError, match=r"ema=0.999; expected an average such as Decay\(0.999\)"):
    make_step(toy_loss, TX, 0.999)


@pytest.mark.parametrize("ema", [DECAY, POWER], ids=["decay", "power"])
def test_the_state_is_donated_and_the_rest_is_not(ema):
  state, batch = toy_state(ema), jax.device_put(toy_batch(0))
  toy(1, ema)(state, batch, ROOT, 0.25)
  assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))
  assert not any(leaf.is_deleted() for leaf in (*batch.values(), ROOT))


def test_microbatches_agree_with_the_whole():
  """Gradients, other state and metrics."""
  (whole, metrics_of_whole), (parts, metrics_of_parts) = (
    toy(n)(toy_state(), toy_batch(0), ROOT, 0.25) for n in (1, 4)
  )
  assert_near(jax.device_get((parts, metrics_of_parts)), jax.device_get((whole, metrics_of_whole)), 1e-5)
  assert whole.extra["seen"] != 0


def test_microbatches_take_every_so_manyth_row():
  parts = microbatches({"row": jnp.arange(8), "x": jnp.arange(16).reshape(8, 2)}, 4)
  np.testing.assert_array_equal(parts["row"], [[0, 4], [1, 5], [2, 6], [3, 7]])
  np.testing.assert_array_equal(parts["x"][1], [[2, 3], [10, 11]])


@pytest.mark.parametrize("kind", BAD)
@pytest.mark.parametrize(
  "accumulate, ema", [(1, DECAY), (4, DECAY), (1, POWER)], ids=["whole", "parts", "power"]
)
def test_an_update_that_is_not_finite_is_not_made(kind, accumulate, ema):
  step = toy(accumulate, ema)
  state, _ = step(toy_state(ema), toy_batch(0), ROOT, 0.25)
  before = jax.device_get(state)
  state, metrics = step(state, toy_batch(1, **BAD[kind]), ROOT, 0.25)
  assert metrics["skipped"] == 1
  assert_same(jax.device_get(state), before.replace(step=np.int32(2), skipped=np.int32(1)))
  state, metrics = step(state, toy_batch(2), ROOT, 0.25)
  assert metrics["skipped"] == state.skipped == 0 and state.step == 3
  assert (np.asarray(state.params["w"]) != before.params["w"]).all()
  assert state.opt_state[0].count == 2, "the optimizer has seen the good ones alone"


@pytest.mark.parametrize("bad", [1, SKIPS_ALLOWED - 1, SKIPS_ALLOWED, SKIPS_ALLOWED + 2])
def test_ten_in_a_row_are_final(bad):
  state = toy_state()
  for n in range(bad):
    state, metrics = toy()(state, toy_batch(n, y=np.full(8, np.nan)), ROOT, 0.25)
    assert metrics["skipped"] == n + 1
  before = jax.device_get(state)
  state, metrics = toy()(state, toy_batch(bad), ROOT, 0.25)
  if bad < SKIPS_ALLOWED:
    assert metrics["skipped"] == 0 and (np.asarray(state.params["w"]) != before.params["w"]).all()
  else:
    assert_same(jax.device_get(state), before.replace(step=np.int32(bad + 1), skipped=np.int32(bad + 1)))
    assert np.isfinite(metrics["loss"])
