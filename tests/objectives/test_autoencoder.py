import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jldm.core.errors import UserError
from jldm.core.keys import row_keys
from jldm.distributed import sharding
from jldm.metrics import perceptual
from jldm.models.autoencoders.kl import KLAutoencoder
from jldm.models.autoencoders.quantize import FSQ, Codebook
from jldm.models.autoencoders.vq import VQAutoencoder
from jldm.objectives.autoencoder import Reconstruction, add_latent_noise, halve_sides, rotate_at_random
from jldm.train.ema import Decay
from jldm.train.state import init_state
from jldm.train.step import make_step, step_fn
from tests.networks import quick, randomised

SMALL = dict(channels=1, latent_channels=2, widths=(4,), resnets=0, groups=2, patch=2)
NETWORK = KLAutoencoder(**SMALL)
OBJECTIVE = Reconstruction(network=NETWORK, l1_weight=0.7, l2_weight=0.4, kl_weight=0.1)
CODEBOOK = Codebook(size=8, decay=0.7, restart_every_steps=3)
VQ = Reconstruction(network=VQAutoencoder(quantizer=CODEBOOK, **SMALL), commitment_weight=0.3)
FINITE = Reconstruction(network=VQAutoencoder(quantizer=FSQ((3, 5)), **SMALL))
KEY = jax.random.key(0)
ROWS = np.arange(8)


@pytest.fixture(scope="module", autouse=True)
def quick_to_compile():
  jax.config.update("jax_disable_most_optimizations", True)
  yield
  jax.config.update("jax_disable_most_optimizations", False)


def batch_of(step: int, height: int = 4, width: int = 6) -> dict:
  images = np.random.default_rng(step).integers(0, 256, (8, height, width, 1), np.uint8)
  return {"image": images, "row": ROWS, "stratum": np.float32(ROWS / 8)}


BATCH = batch_of(0)
X = np.float32(BATCH["image"] / 127.5 - 1)


@functools.cache
def state_of(objective):
  """(params, extra): random parameters, and where there is a codebook, latents of the batch."""
  params, extra = jax.eval_shape(objective.init, KEY, BATCH, {})
  params, extra = randomised(params), jax.tree.map(lambda x: np.zeros(x.shape, np.float32), extra)
  return params, jax.device_get(quick(objective.refresh)(params, extra, BATCH, KEY))


@functools.cache
def loss_of(objective):
  return quick(lambda params, extra, batch, key: objective.loss(params, extra, params, {}, batch, key))


def test_it_is_its_formula():
  params, extra = state_of(OBJECTIVE)
  values, aux = loss_of(OBJECTIVE)(params, extra, BATCH, KEY)
  keys = row_keys(jax.random.split(KEY, 3)[0], jnp.arange(8))
  back, posterior = quick(NETWORK.apply)({"params": params}, X, keys)
  error, mean, log_variance = np.float64(X - back), *np.float64(posterior)
  kl = 0.5 * (mean**2 + np.exp(log_variance) - 1 - log_variance).sum((1, 2, 3))  # nats an image
  expected = (0.7 * np.abs(error) + 0.4 * error**2).mean((1, 2, 3)) + 0.1 * kl / 24
  assert values.shape == (8,) and values.dtype == jnp.float32
  np.testing.assert_allclose(values, expected, rtol=1e-5)
  np.testing.assert_allclose(aux.metrics["kl"], (kl / 24).mean(), rtol=1e-5)
  np.testing.assert_allclose(
    aux.metrics["psnr"], (10 * np.log10(4 / (error**2).mean((1, 2, 3)))).mean(), rtol=1e-5
  )
  assert aux.extra == {}


def test_of_codes_it_is_its_formula():
  params, extra = state_of(VQ)
  later = BATCH | {"image": 255 - BATCH["image"]}
  values, aux = loss_of(VQ)(params, extra, later, KEY)

  @quick
  def by_hand(variables):
    z = VQ.network.apply(variables, -X, method="encode").mean
    quantized, codes = VQ.network.apply(variables, z, method="quantize")
    return z, quantized, codes, VQ.network.apply(variables, quantized, method="decode")

  z, quantized, codes, back = jax.device_get(by_hand({"params": params} | extra))
  commitment = np.square(z - quantized).mean((1, 2, 3))
  assert commitment.min() > 0
  np.testing.assert_allclose(values, np.abs(-X - back).mean((1, 2, 3)) + 0.3 * commitment, rtol=1e-4)
  expected = VQ.network.quantizer.update(extra["codebook"], z, codes)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), aux.extra, {"codebook": expected}
  )
  assert set(aux.metrics) == {"psnr", "commitment", "usage", "perplexity"}


def test_the_codec_is_of_the_network():
  assert OBJECTIVE.result({"a": 1}, {"b": 2}, {}).params == {"params": {"a": 1}, "extra": {"b": 2}}


def test_terms_are_what_the_loss_is_of():
  params, extra = state_of(OBJECTIVE)
  x, back, values, aux = quick(lambda params: OBJECTIVE.terms(params, extra, BATCH, KEY, {}))(params)
  same, same_aux = loss_of(OBJECTIVE)(params, extra, BATCH, KEY)
  np.testing.assert_allclose(x, X, atol=1e-6)
  assert back.shape == X.shape
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), (values, aux), (same, same_aux))


@pytest.mark.slow
def test_the_encoder_learns_through_the_codes():
  params, extra = state_of(VQ)
  only = dataclasses.replace(VQ, commitment_weight=0.0)
  gradients = quick(jax.grad(lambda params: only.loss(params, extra, (), {}, batch_of(1), KEY)[0].mean()))(
    params
  )
  assert min(np.abs(leaf).max() for leaf in jax.tree.leaves(gradients)) > 1e-7


@pytest.mark.parametrize("objective", [OBJECTIVE, VQ], ids=["kl", "vq"])
def test_how_the_batch_is_split_changes_nothing(objective):
  params, extra = state_of(objective)
  objective = dataclasses.replace(objective, latent_noise=0.3)
  whole, _ = loss_of(objective)(params, extra, BATCH, KEY)
  halves = [jax.tree.map(lambda x, part=part: x[part], BATCH) for part in (slice(0, 8, 2), slice(1, 8, 2))]
  for part, half in enumerate(halves):
    np.testing.assert_allclose(loss_of(objective)(params, extra, half, KEY)[0], whole[part::2], rtol=1e-5)
  moved = halves[0] | {"row": halves[1]["row"]}
  assert np.abs(loss_of(objective)(params, extra, moved, KEY)[0] - whole[::2]).max() > 1e-4, (
    "noise comes with the row"
  )


@pytest.mark.parametrize(
  "objective, collections", [(OBJECTIVE, {}), (FINITE, {}), (VQ, {"codebook"})], ids=["kl", "fsq", "vq"]
)
def test_init_is_of_the_network(objective, collections):
  params, extra = jax.eval_shape(objective.init, KEY, BATCH, {})
  expected = jax.eval_shape(objective.network.init, KEY, jnp.zeros((8, 4, 6, 1)), jax.random.split(KEY, 8))[
    "params"
  ]
  assert set(extra) == set(collections)
  assert jax.tree.map(lambda x: x.shape, params) == jax.tree.map(lambda x: x.shape, expected)
  assert objective.refresh_every_steps == (3 if objective is VQ else 0)


@pytest.mark.slow
def test_a_codebook_begins_with_latents_of_the_first_batch():
  params, extra = quick(VQ.init)(KEY, BATCH, {})
  assert loss_of(VQ)(params, extra, BATCH, KEY)[1].metrics["usage"] == 1
  z = np.asarray(VQ.network.apply({"params": params}, X, method="encode").mean).reshape(-1, 2)
  for e in np.asarray(VQ.network.quantizer.vectors(extra["codebook"])):
    assert np.abs(z - e).max(-1).min() < 1e-4 * np.abs(z).max()


@pytest.mark.parametrize("name", ["l1_weight", "equivariance_weight", "latent_noise", "commitment_weight"])
def test_weights_below_zero_are_refused(name):
  with pytest.raises(UserError, match=f"{name}=-0.1; expected at least 0"):
    Reconstruction(network=NETWORK, **{name: -0.1})


def test_perceptual_distance(monkeypatch):
  params, extra = state_of(OBJECTIVE)
  objective = dataclasses.replace(OBJECTIVE, perceptual_weight=0.5)
  monkeypatch.setattr(
    perceptual, "lpips_distance", lambda frozen, a, b: frozen["scale"] * jnp.abs(a - b).max((1, 2, 3))
  )
  x, back, plain, _ = quick(lambda params: OBJECTIVE.terms(params, extra, BATCH, KEY, {}))(params)
  perceived = quick(lambda params, frozen: objective.loss(params, extra, (), frozen, BATCH, KEY))
  values, aux = perceived(params, {"lpips": {"scale": 3.0}})
  expected = 3 * np.abs(x - back).max((1, 2, 3))
  np.testing.assert_allclose(values, plain + 0.5 * expected, rtol=1e-5)
  np.testing.assert_allclose(aux.metrics["perceptual"], expected.mean(), rtol=1e-5)
  with pytest.raises(UserError, match="there are no LPIPS weights"):
    jax.eval_shape(objective.terms, params, extra, BATCH, KEY, {})


# ---- regularisers


@pytest.mark.slow
def test_equivariance_is_the_distance_of_halved_and_turned():
  params, extra = state_of(OBJECTIVE)
  batch = batch_of(3, 8, 8)
  plain, _ = loss_of(OBJECTIVE)(params, extra, batch, KEY)
  both, aux = loss_of(dataclasses.replace(OBJECTIVE, equivariance_weight=0.5))(params, extra, batch, KEY)
  keys = jax.random.split(KEY, 3)
  turns = [int(jax.random.randint(key, (), 0, 4)) for key in row_keys(keys[2], ROWS)]
  x = np.float32(batch["image"] / 127.5 - 1)

  @quick
  def by_hand(params):
    z = NETWORK.apply({"params": params}, x, method="encode").sample(row_keys(keys[0], ROWS))
    small = z.reshape(8, 2, 2, 2, 2, 2).mean((2, 4))
    small = jnp.stack([jnp.rot90(one, turn) for one, turn in zip(small, turns)])
    return NETWORK.apply({"params": params}, small, method="decode")

  target = np.stack(
    [np.rot90(one, turn) for one, turn in zip(x.reshape(8, 4, 2, 4, 2, 1).mean((2, 4)), turns)]
  )
  error = np.float64(target - by_hand(params))
  unequal = (0.7 * np.abs(error) + 0.4 * error**2).mean((1, 2, 3))
  assert len(set(turns)) > 2
  np.testing.assert_allclose(both - plain, 0.5 * unequal, rtol=1e-3, atol=1e-6)
  np.testing.assert_allclose(aux.metrics["equivariance"], unequal.mean(), rtol=1e-4)


def test_turns_are_half_turns_where_not_square():
  x = np.float32(np.random.default_rng(0).normal(size=(8, 2, 4, 1)))
  out = np.asarray(rotate_at_random(x, row_keys(KEY, ROWS)))
  each = {tuple(np.array_equal(out[b], np.rot90(x[b], turn)) for turn in (0, 2)) for b in range(8)}
  assert each == {(True, False), (False, True)}


def test_odd_latents_are_not_halved():
  with pytest.raises(
    UserError, match="equivariance halves latents, and these are 2x3; expected even sides, or set it to 0"
  ):
    halve_sides(jnp.zeros((1, 2, 3, 1)))


def test_noise_is_relative_to_the_spread_of_an_example():
  z = (
    np.random.default_rng(0).normal(size=(400, 4, 4, 2))
    * np.where(np.arange(400) % 2, 5, 0.1)[:, None, None, None]
  )
  added = np.asarray(add_latent_noise(np.float32(z), 0.5, row_keys(KEY, np.arange(400)))) - z
  strength = np.sqrt(np.square(added).mean((1, 2, 3))) / z.std((1, 2, 3))
  for part in (strength[::2], strength[1::2]):
    np.testing.assert_allclose(np.sqrt(np.square(part).mean()), 0.5, rtol=0.15)  # E n^2 = 1
    assert part.min() < 0.05 and part.max() > 1


# ---- a codebook in any number of parts

TX, AVERAGE, ROOT = optax.sgd(0.05, 0.9), Decay(0.9), jax.random.key(5)


@functools.cache
def compiled(accumulate: int):
  return make_step(VQ.loss, TX, AVERAGE, accumulate)


def first_state():
  return jax.device_get(init_state(*state_of(VQ), TX, AVERAGE))


def run(devices: int, accumulate: int = 1):
  """Six steps with restarts after the third and the sixth: the state and the metrics of each, on the host."""
  mesh, metrics = sharding.mesh_for(8, devices), []
  state, root = sharding.replicate(mesh, (first_state(), ROOT))
  refresh = jax.jit(VQ.refresh)
  for n in range(1, 7):
    batch = sharding.shard_batch(mesh, batch_of(n))
    state, each = compiled(accumulate)(state, batch, root, {})
    metrics.append(jax.device_get(each))
    if n % VQ.refresh_every_steps == 0:
      state = state.replace(extra=refresh(state.params, state.extra, batch, jax.random.fold_in(KEY, n)))
  return jax.device_get(state), metrics


reference = functools.cache(lambda: run(1))


def assert_near(these, those, tolerance=1e-4):
  """max|difference| / max|reference| of every leaf."""
  assert jax.tree.structure(these) == jax.tree.structure(those)
  for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(these), jax.tree.leaves(those)):
    atol = tolerance * np.abs(b).max() + 1e-6
    np.testing.assert_allclose(a, b, rtol=0, atol=atol, err_msg=jax.tree_util.keystr(path))


@pytest.mark.slow  # tests/train/test_step.py has both of a denoiser
@pytest.mark.parametrize("devices, accumulate", [(1, 4), (8, 1), (2, 4)])
def test_codebook_and_loss_agree_between_devices_and_in_microbatches(devices, accumulate):
  state, metrics = reference()
  assert np.abs(state.extra["codebook"]["sums"] - first_state().extra["codebook"]["sums"]).max() > 1e-3, (
    "it learns"
  )
  assert_near(run(devices, accumulate), (state, metrics))


@pytest.mark.slow
def test_codebook_and_loss_agree_between_jit_and_pmap():
  step = jax.pmap(step_fn(VQ.loss, TX, AVERAGE, axis_name="d"), axis_name="d", in_axes=(0, 0, None, None))
  state = jax.tree.map(lambda x: np.stack([x] * 8), first_state())
  for n in range(1, 4):
    batch = jax.tree.map(lambda x: x.reshape(8, 1, *x.shape[1:]), batch_of(n))
    state, metrics = step(state, batch, ROOT, {})
    for device in (0, 7):
      assert_near(jax.tree.map(lambda x, d=device: np.asarray(x)[d], metrics), reference()[1][n - 1])
  whole = first_state()
  for n in range(1, 4):
    whole, _ = compiled(1)(whole, batch_of(n), ROOT, {})
  assert_near(jax.tree.map(lambda x: np.asarray(x)[7], state.extra), jax.device_get(whole.extra))
