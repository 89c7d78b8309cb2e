"""Equations by hand, what trains what, and one state on any devices and in any parts."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jldm.core.errors import UserError
from jldm.distributed import sharding
from jldm.models.autoencoders.discriminator import PatchDiscriminator
from jldm.models.autoencoders.kl import KLAutoencoder
from jldm.models.autoencoders.quantize import Codebook
from jldm.models.autoencoders.vq import VQAutoencoder
from jldm.objectives.adversarial import Adversarial
from jldm.objectives.autoencoder import Reconstruction
from jldm.train.ema import Decay
from jldm.train.state import init_state
from jldm.train.step import make_step, step_fn
from tests.networks import quick, randomised

INNER = Reconstruction(
  network=KLAutoencoder(channels=1, latent_channels=2, widths=(4,), resnets=0, groups=2, patch=2),
  l1_weight=0.7,
  kl_weight=1e-2,
)
DISCRIMINATOR = PatchDiscriminator(widths=(4, 4), groups=2)
OBJECTIVE = Adversarial(inner=INNER, discriminator=DISCRIMINATOR, start_step=2, weight=0.6, decay=0.7)
KEY = jax.random.key(0)


def batch_of(step: int) -> dict:
  images = np.random.default_rng(step).integers(0, 256, (8, 8, 12, 1), np.uint8)
  return {"image": images, "row": np.arange(8), "stratum": np.float32(np.arange(8) / 8)}


@functools.cache
def start() -> tuple:
  """(params, extra after two steps in which something was measured)."""
  params, extra = jax.eval_shape(OBJECTIVE.init, KEY, batch_of(0), {})
  extra = jax.tree.map(np.abs, randomised(extra, seed=1)) | {"steps": np.float32(2)}
  return randomised(params), extra


def loss_of(objective, params, extra, batch, key):
  return objective.loss(params, extra, params, {}, batch, key)


loss = functools.cache(lambda objective: quick(functools.partial(loss_of, objective)))
gradient = quick(
  jax.grad(lambda params, extra: loss_of(OBJECTIVE, params, extra, batch_of(0), KEY)[0].mean())
)
logits = lambda params, images: DISCRIMINATOR.apply({"params": params["discriminator"]}, images)
inner_terms = lambda params: INNER.terms(params["autoencoder"], {}, batch_of(0), KEY, {})


def assert_near(these, those, tolerance=1e-4):
  """max|difference| / max|reference| of every leaf."""
  assert jax.tree.structure(these) == jax.tree.structure(those)
  for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(these), jax.tree.leaves(those)):
    np.testing.assert_allclose(
      a, b, rtol=0, atol=tolerance * np.abs(b).max() + 1e-7, err_msg=jax.tree_util.keystr(path)
    )


def expected_weight(extra) -> float:
  """Equations (2) and (4)."""
  v = {
    name: 0.7 * extra["squares"][name] + 0.3 * np.square(extra["gradients"][name]).sum()
    for name in ("inner", "adversarial")
  }
  return 0.6 * np.sqrt(v["inner"]) / (np.sqrt(v["adversarial"]) + 1e-6)


def test_it_is_its_formula():
  params, extra = start()
  values, aux = loss(OBJECTIVE)(params, extra, batch_of(0), KEY)
  x, back, inner, inner_aux = quick(inner_terms)(params)
  real, fake = (np.float64(quick(logits)(params, images)).mean((1, 2)) for images in (x, back))
  each = lambda sign, images: np.maximum(0, 1 + sign * np.float64(quick(logits)(params, images))).mean((1, 2))
  loss_of_both = 0.5 * (each(-1, x) + each(1, back))
  weight = expected_weight(extra)
  assert values.shape == (8,) and values.dtype == jnp.float32
  np.testing.assert_allclose(values, inner - weight * fake + loss_of_both, rtol=1e-4)
  assert aux.metrics.keys() == inner_aux.metrics.keys() | {"d_real", "d_fake", "d_loss", "adversarial_weight"}
  actual = [aux.metrics[name] for name in ("d_real", "d_fake", "d_loss", "adversarial_weight", "psnr")]
  np.testing.assert_allclose(
    actual, [real.mean(), fake.mean(), loss_of_both.mean(), weight, inner_aux.metrics["psnr"]], rtol=1e-4
  )


@pytest.mark.slow
def test_each_part_learns_from_its_own_terms_alone():
  params, extra = start()

  def for_autoencoder(autoencoder):
    _, back, inner, _ = inner_terms({"autoencoder": autoencoder})
    return inner.mean() - expected_weight(extra) * logits(params, back).mean()

  def for_discriminator(discriminator):
    x, back, _, _ = inner_terms(params)
    hinge = lambda images, sign: jax.nn.relu(
      1 + sign * logits({"discriminator": discriminator}, images)
    ).mean()
    return (hinge(x, -1) + hinge(back, 1)) / 2

  expected = {
    "autoencoder": quick(jax.grad(for_autoencoder))(params["autoencoder"]),
    "discriminator": quick(jax.grad(for_discriminator))(params["discriminator"]),
  }
  assert_near(jax.device_get(gradient(params, extra)), jax.device_get(expected))


def test_neither_part_learns_from_the_terms_of_the_other():
  params, _ = start()
  fooled = lambda params: OBJECTIVE.generator_loss(params["discriminator"], inner_terms(params)[1])[0].mean()
  loss_of_both = lambda params: OBJECTIVE.discriminator_loss(
    params["discriminator"], *inner_terms(params)[:2]
  )[0].mean()
  nothing = lambda tree: all((np.asarray(leaf) == 0).all() for leaf in jax.tree.leaves(tree))
  assert nothing(quick(jax.grad(fooled))(params))
  of_told = quick(jax.grad(loss_of_both))(params)
  assert nothing(of_told["autoencoder"]) and not nothing(of_told["discriminator"])


def test_the_gradients_at_the_last_kernel_are_measured():
  params, extra = start()
  _, aux = loss(OBJECTIVE)(params, extra, batch_of(0), KEY)

  def at_last(which):
    def value(kernel):
      decoder = params["autoencoder"]["decoder"]
      changed = params["autoencoder"] | {"decoder": decoder | {"out": decoder["out"] | {"kernel": kernel}}}
      _, back, inner, _ = inner_terms({"autoencoder": changed})
      return inner.mean() if which == "inner" else -logits(params, back).mean()

    return quick(jax.grad(value))(params["autoencoder"]["decoder"]["out"]["kernel"])

  expected = {which: np.asarray(at_last(which)) for which in ("inner", "adversarial")}
  assert_near(jax.device_get(aux.extra["gradients"]), expected)
  assert aux.extra["steps"] == 2


@pytest.mark.parametrize("inner, adversarial, weight", [(0, 0, 0), (0, 3, 0), (5, 0, 0.6e4), (4, 2, 1.2)])
def test_the_weight_is_bounded(inner, adversarial, weight):
  norms = {"inner": jnp.zeros(3).at[0].set(inner), "adversarial": jnp.zeros(3).at[1].set(adversarial)}
  extra = {"gradients": norms, "squares": jax.tree.map(lambda g: jnp.square(g).sum(), norms)}
  np.testing.assert_allclose(OBJECTIVE.adaptive(extra)[1], weight, rtol=1e-5)


@pytest.mark.slow
def test_before_the_start_it_is_the_inner_objective():
  params, extra = start()
  extra = extra | {"steps": np.float32(1)}
  # op by op: two programs may round otherwise
  values, aux = loss_of(OBJECTIVE, params, extra, batch_of(0), KEY)
  np.testing.assert_array_equal(values, loss_of(INNER, params["autoencoder"], {}, batch_of(0), KEY)[0])
  assert aux.extra["steps"] == 2
  assert not any(jax.tree.leaves(jax.tree.map(np.any, aux.extra["gradients"])))
  actual = gradient(params, extra)
  alone = quick(jax.grad(lambda params: loss_of(INNER, params, {}, batch_of(0), KEY)[0].mean()))
  assert_near(actual["autoencoder"], alone(params["autoencoder"]))
  assert all((np.asarray(leaf) == 0).all() for leaf in jax.tree.leaves(actual["discriminator"]))


def test_from_the_first_step_on_the_discriminator_learns_and_then_the_autoencoder():
  objective = dataclasses.replace(OBJECTIVE, start_step=0)
  params, extra = start()
  first = extra | jax.tree.map(
    np.zeros_like, {name: extra[name] for name in ("gradients", "squares", "steps")}
  )
  _, aux = loss(objective)(params, first, batch_of(0), KEY)
  assert aux.metrics["adversarial_weight"] == 0 and aux.metrics["d_loss"] > 0 and aux.extra["steps"] == 0
  second = loss(objective)(params, jax.device_get(aux.extra), batch_of(1), KEY)[1]
  norm = lambda which: np.linalg.norm(aux.extra["gradients"][which])
  np.testing.assert_allclose(
    second.metrics["adversarial_weight"], 0.6 * norm("inner") / norm("adversarial"), rtol=1e-3
  )


TX, DECAY, STEPS = optax.sgd(0.05), Decay(0.9), 5  # the discriminator starts at the third


@pytest.fixture(scope="module", autouse=True)
def quick_to_compile():
  jax.config.update("jax_disable_most_optimizations", True)
  yield
  jax.config.update("jax_disable_most_optimizations", False)


def first_state():
  params = randomised(jax.eval_shape(OBJECTIVE.init, KEY, batch_of(0), {})[0])
  extra = OBJECTIVE.init(KEY, batch_of(0), {})[1]
  return jax.device_get(init_state(params, extra, TX, DECAY))


def run(devices: int, accumulate: int):
  mesh = sharding.mesh_for(8, devices)
  state, metrics, root = sharding.replicate(mesh, first_state()), [], sharding.replicate(mesh, KEY)
  step = make_step(OBJECTIVE.loss, TX, DECAY, accumulate)
  for n in range(STEPS):
    state, each = step(state, sharding.shard_batch(mesh, batch_of(n)), root, {})
    metrics.append(jax.device_get(each))
  return jax.device_get(state), metrics


@pytest.fixture(scope="module")
def whole():
  state, metrics = run(1, 1)
  moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), state.params, first_state().params)
  assert min(jax.tree.leaves(moved)) > 1e-6, "both parts learn"
  assert [bool(each["adversarial_weight"]) for each in metrics] == [False, False, False, True, True]
  return state, metrics


@pytest.mark.parametrize("devices, accumulate", [(1, 4), (8, 1)])
@pytest.mark.slow
def test_devices_and_microbatches_agree(whole, devices, accumulate):
  assert_near(run(devices, accumulate), whole)


@pytest.mark.slow
def test_pmap_agrees(whole):
  step = jax.pmap(
    step_fn(OBJECTIVE.loss, TX, DECAY, axis_name="d"), axis_name="d", in_axes=(0, 0, None, None)
  )
  state, metrics = jax.tree.map(lambda x: np.stack([x] * 8), first_state()), []
  for n in range(STEPS):
    state, each = step(state, jax.tree.map(lambda x: x.reshape(8, 1, *x.shape[1:]), batch_of(n)), KEY, {})
    metrics.append(jax.device_get(each))
  for device in (0, 7):
    assert_near(jax.tree.map(lambda x, d=device: np.asarray(x)[d], (state, metrics)), whole)


@pytest.mark.slow
def test_a_codebook_is_the_inner_objectives():
  network = VQAutoencoder(
    quantizer=Codebook(size=5), channels=1, latent_channels=2, widths=(4,), resnets=0, groups=2, patch=2
  )
  inner = Reconstruction(network=network)
  objective = Adversarial(inner=inner, discriminator=DISCRIMINATOR, start_step=0)
  shapes, state = jax.eval_shape(objective.init, KEY, batch_of(0), {})
  params, extra = randomised(shapes), jax.tree.map(np.abs, randomised(state, seed=1))
  _, aux = loss(objective)(params, extra, batch_of(0), KEY)
  _, expected = loss(inner)(params["autoencoder"], extra["autoencoder"], batch_of(0), KEY)
  assert_near(aux.extra["autoencoder"], expected.extra, 1e-5)
  refreshed = jax.eval_shape(objective.refresh, params, extra, batch_of(0), KEY)
  assert jax.tree.map(jnp.shape, refreshed) == jax.tree.map(jnp.shape, extra)
  assert objective.refresh_every_steps == inner.refresh_every_steps > 0 and objective.network == network
  assert objective.result(params, extra, {}).params == {
    "params": params["autoencoder"],
    "extra": extra["autoencoder"],
  }


@pytest.mark.parametrize(
  "change, loss_of_both",
  [
    ({"start_step": -1}, "start_step=-1"),
    ({"weight": -0.5}, "weight=-0.5"),
    ({"decay": 1.0}, "decay=1.0; expected at least"),
  ],
)
def test_numbers_that_are_not_legal_are_refused(change, loss_of_both):
  with pytest.raises(UserError, match=loss_of_both):
    dataclasses.replace(OBJECTIVE, **change)


@pytest.mark.parametrize(
  "last, loss_of_both",
  [("decoder/put/kernel", "no 'put', but"), ("decoder/out/kernel/x", "no 'x', but an array")],
)
def test_a_last_kernel_that_is_not_there_is_refused(last, loss_of_both):
  with pytest.raises(UserError, match=loss_of_both):
    jax.eval_shape(dataclasses.replace(OBJECTIVE, last_kernel=last).init, KEY, batch_of(0), {})


def test_a_trained_autoencoder_takes_the_place_of_a_new_one():
  objective = Adversarial(inner=Reconstruction(network=KLAutoencoder()))
  codec = {"params": "trained", "extra": {"codebook": "its"}, "mean": 0, "std": 1}
  params, extra = objective.start(
    {"autoencoder": "new", "discriminator": "new"}, {"autoencoder": {}, "steps": 0}, codec
  )
  assert params == {"autoencoder": "trained", "discriminator": "new"}
  assert extra == {"autoencoder": {"codebook": "its"}, "steps": 0}
  assert objective.result(params, extra, {}).params == {"params": "trained", "extra": {"codebook": "its"}}
