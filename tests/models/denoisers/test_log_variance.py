import jax
import jax.numpy as jnp
import numpy as np

from jldm.models.denoisers.log_variance import LogVariance
from tests.networks import quick

LEVEL = np.linspace(0, 1, 64, dtype=np.float32)


def test_it_starts_at_zero_one_number_a_sample():
  out, params = quick(LogVariance().init_with_output)(jax.random.key(0), LEVEL)
  assert out.shape == (64,) and out.dtype == jnp.float32 and not out.any()
  assert params["params"]["dense"]["kernel"].shape == (128, 1)


def test_it_can_be_any_smooth_curve():
  """The layer is linear: its features fit, by least squares, a curve of the level."""
  column = lambda kernel: LogVariance().apply(
    {"params": {"dense": {"kernel": kernel[:, None], "bias": jnp.zeros(1)}}}, LEVEL
  )
  features = np.float64(quick(jax.vmap(column))(jnp.eye(128))).reshape(128, 64).T
  curve = np.cos(3 * LEVEL) - 2 * LEVEL**2
  weights = np.linalg.lstsq(features, curve, rcond=1e-6)[0]
  assert np.abs(features @ weights - curve).max() < 1e-2
