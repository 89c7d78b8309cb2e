from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jldm.core.keys import normal, row_keys
from jldm.diffusion.process import Cosine, Flow, rates
from jldm.diffusion.target import Predict, combine, decode, reweight
from jldm.diffusion.times import LogitNormal, Uniform
from jldm.models.codec import Statistics
from jldm.models.denoisers.dit import DiT
from jldm.objectives.diffusion import Diffusion
from tests.networks import quick, randomised

RNG = np.random.default_rng(0)
KEY = jax.random.key(3)
CODEC = Statistics(jnp.array([2.0, -1.0, 0.0]), jnp.array([0.5, 1.0, 3.0]))
BATCH = {
  "mean": np.float32(RNG.normal(size=(8, 2, 4, 3))),
  "log_variance": np.float32(RNG.normal(size=(8, 2, 4, 3))),
  "label": np.array([0, 1, 2, -1, 0, 1, 2, -1]),
  "row": np.arange(8),
  "stratum": np.float32(np.arange(8) / 8),
}
filled = lambda value: np.full((8, 2, 4, 3), value, np.float32)
STILL = BATCH | {"mean": filled(5), "log_variance": filled(-200)}
X0 = (5 - CODEC.mean) / CODEC.std  # the latent of STILL, everywhere


class Exact(nn.Module):
  """The target itself, of data that is X0 everywhere."""

  process: Any
  parametrization: Any

  def __call__(self, z, level, labels):
    r = rates(self.process, level, z)
    return combine(self.parametrization.row(r), X0, (z - r.alpha * X0) / r.sigma)


class Translated(nn.Module):
  """One opinion of the data, told as an output of any kind."""

  process: Any
  parametrization: Any

  def __call__(self, z, level, labels):
    r = rates(self.process, level, z)
    said = decode(Predict("v").row(r), r, z, jnp.sin(3 * z) + r.sigma)
    return combine(self.parametrization.row(r), said.x0, said.eps)


class Told(nn.Module):
  """Something of all that the network is told."""

  def __call__(self, z, level, labels):
    return jnp.sin(z) + level[:, None, None, None] + labels[:, None, None, None]


class Label(nn.Module):
  """The label plus one, so that it can be read from a loss."""

  def __call__(self, z, level, labels):
    return jnp.zeros_like(z) + labels[:, None, None, None] + 1


def losses(network, batch=BATCH, key=KEY, params=(), **fields):
  objective = Diffusion(network=network, **({"process": Cosine(), "label_dropout": 0.0} | fields))
  values, aux = quick(objective.loss)(params or {}, {}, (), CODEC, batch, key)
  assert values.shape == (len(batch["row"]),) and aux.metrics == {} and aux.extra == {}
  return np.asarray(values)


@pytest.mark.parametrize("process", [Cosine(), Flow()])
@pytest.mark.parametrize("kind", ["x0", "eps", "v", "flow"])
def test_the_exact_target_has_no_loss(process, kind):
  network = Exact(process, Predict(kind))
  assert losses(network, STILL, process=process, parametrization=Predict(kind)).max() < 1e-5


@pytest.mark.parametrize("kind", ["x0", "eps", "flow"])
def test_losses_of_one_opinion_differ_by_the_reweighting(kind):
  v, other = (losses(Translated(Cosine(), Predict(k)), parametrization=Predict(k)) for k in ("v", kind))
  t = Uniform()(jax.random.split(KEY, 4)[1], BATCH["stratum"])
  r = rates(Cosine(), t, t)
  np.testing.assert_allclose(other, v * reweight(Predict("v").row(r), Predict(kind).row(r), r), rtol=2e-4)


def test_how_the_batch_is_split_changes_nothing():
  network = DiT(patch=2, width=8, depth=1, heads=1, classes=3)
  objective = Diffusion(network=network, process=Flow(), times=LogitNormal(0.5, 2.0), label_dropout=0.5)
  params = randomised(jax.eval_shape(objective.init, KEY, BATCH)[0])
  loss = quick(lambda params, batch: objective.loss(params, {}, params, CODEC, batch, KEY)[0])
  whole = loss(params, BATCH)
  for part in (0, 1):
    half = jax.tree.map(lambda x, part=part: x[part::2], BATCH)
    np.testing.assert_allclose(loss(params, half), whole[part::2], rtol=1e-4)


def seen(rate: float, keys) -> np.ndarray:
  """The labels that the network meets [N, 8]: where x0 is 0 and predicted, the loss is the output squared."""
  objective = Diffusion(network=Label(), process=Flow(), parametrization=Predict("x0"), label_dropout=rate)
  batch = STILL | {"mean": filled(0)}
  loss = lambda key: objective.loss({}, {}, (), Statistics(0, 1), batch, key)[0]
  return np.sqrt(quick(jax.vmap(loss))(keys)) - 1


@pytest.mark.parametrize("rate, expected", [(0.0, BATCH["label"]), (1.0, np.full(8, -1))])
def test_label_dropout_at_its_ends(rate, expected):
  np.testing.assert_allclose(seen(rate, jax.random.split(KEY, 50)), np.tile(expected, (50, 1)), atol=1e-6)


def test_label_dropout_at_its_rate():
  labels = seen(0.25, jax.random.split(KEY, 400))
  dropped = np.abs(labels - BATCH["label"])[:, BATCH["label"] >= 0] > 0.5
  np.testing.assert_allclose(labels[:, BATCH["label"] >= 0][dropped], -1, atol=1e-6)
  error = np.sqrt(0.25 * 0.75 / 400)
  assert (np.abs(dropped.mean(0) - 0.25) < 5 * error).all(), "every row by itself"
  assert np.abs(np.corrcoef(dropped.T) - np.eye(6)).max() < 5 / np.sqrt(400), "and no two alike"


def test_noise_comes_with_the_row_and_time_with_the_stratum():
  network, whole = Told(), losses(Told())
  for name, other in (("row", BATCH["row"] + 8), ("stratum", BATCH["stratum"] + 1 / 16)):
    assert (np.abs(losses(network, BATCH | {name: other}) - whole) > 1e-6).all()


def test_the_loss_is_its_formula():
  key_x0, key_t, key_eps, _ = jax.random.split(KEY, 4)
  draw = lambda key: np.asarray(normal(row_keys(key, BATCH["row"]), BATCH["mean"]))
  z0 = BATCH["mean"] + np.exp(0.5 * BATCH["log_variance"]) * draw(key_x0)
  x0, eps = (z0 - CODEC.mean) / CODEC.std, draw(key_eps)
  t = np.float64(Uniform()(key_t, BATCH["stratum"]))[:, None, None, None]
  output = np.sin((1 - t) * x0 + t * eps) + t + BATCH["label"][:, None, None, None]
  expected = ((output - (eps - x0)) ** 2).mean((1, 2, 3))
  np.testing.assert_allclose(losses(Told(), process=Flow(), parametrization=Predict("flow")), expected, rtol=1e-4)
