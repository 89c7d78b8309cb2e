import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jldm.core.keys import row_keys
from jldm.models.autoencoders.kl import KLAutoencoder
from jldm.objectives.autoencoder import Reconstruction
from tests.networks import quick, randomised

NETWORK = KLAutoencoder(channels=1, latent_channels=2, widths=(4,), resnets=0, groups=2, patch=2)
OBJECTIVE = Reconstruction(network=NETWORK, l1=0.7, l2=0.4, kl_weight=0.1)
KEY = jax.random.key(0)
BATCH = {
  "image": np.random.default_rng(0).integers(0, 256, (8, 4, 6, 1), np.uint8),
  "row": np.arange(8),
  "stratum": np.float32(np.arange(8) / 8),
}


@pytest.fixture(scope="module")
def params():
  return randomised(jax.eval_shape(OBJECTIVE.init, KEY, BATCH)[0])


loss = quick(lambda params, batch, key: OBJECTIVE.loss(params, {}, params, (), batch, key))


def test_it_is_its_formula(params):
  values, aux = loss(params, BATCH, KEY)
  x = BATCH["image"] / 127.5 - 1
  back, posterior = quick(NETWORK.apply)({"params": params}, np.float32(x), row_keys(KEY, jnp.arange(8)))
  error, mean, log_variance = np.float64(x - back), *np.float64(posterior)
  kl = 0.5 * (mean**2 + np.exp(log_variance) - 1 - log_variance).sum((1, 2, 3))  # nats an image
  expected = (0.7 * np.abs(error) + 0.4 * error**2).mean((1, 2, 3)) + 0.1 * kl / 24
  assert values.shape == (8,) and values.dtype == jnp.float32
  np.testing.assert_allclose(values, expected, rtol=1e-5)
  np.testing.assert_allclose(aux.metrics["kl"], (kl / 24).mean(), rtol=1e-5)
  np.testing.assert_allclose(aux.metrics["psnr"], (10 * np.log10(4 / (error**2).mean((1, 2, 3)))).mean(), rtol=1e-5)
  assert aux.extra == {}


def test_how_the_batch_is_split_changes_nothing(params):
  whole, _ = loss(params, BATCH, KEY)
  halves = [jax.tree.map(lambda x, part=part: x[part], BATCH) for part in (slice(0, 8, 2), slice(1, 8, 2))]
  for part, half in enumerate(halves):
    np.testing.assert_allclose(loss(params, half, KEY)[0], whole[part::2], rtol=1e-5)
  moved = halves[0] | {"row": halves[1]["row"]}
  assert np.abs(loss(params, moved, KEY)[0] - whole[::2]).max() > 1e-4, "noise comes with the row"


def test_init_is_of_the_network_and_has_no_extra_state():
  params, extra = jax.eval_shape(OBJECTIVE.init, KEY, BATCH)
  keys = jax.random.split(KEY, 8)
  expected = jax.eval_shape(NETWORK.init, KEY, jnp.zeros((8, 4, 6, 1)), keys)["params"]
  assert extra == {} and jax.tree.map(lambda x: x.shape, params) == jax.tree.map(lambda x: x.shape, expected)
