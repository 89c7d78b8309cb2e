import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jldm.core.errors import UserError
from jldm.diffusion.process import EDM, Cosine, Discrete, Flow, LinearVP, Rates, half_log_snr, rates
from jldm.diffusion.target import TARGETS, Precondition, Predict, reweight
from jldm.diffusion.weighting import EDMWeighting, MinSNR, Sigmoid, TargetWeighting, Unweighted

# The weight of |error in `target`|^2 in `measure`, by the log SNR, as each paper has it.
STATED = {
  MinSNR(): ("x0", "t", lambda x: np.minimum(np.exp(x), 5)),
  MinSNR(1.0): ("x0", "t", lambda x: np.minimum(np.exp(x), 1)),
  EDMWeighting(): ("x0", "t", lambda x: (np.exp(-x) + 1) / np.exp(-x)),  # (s^2 + d^2) / (s d)^2
  EDMWeighting(0.5): ("x0", "t", lambda x: (np.exp(-x) + 0.25) / (np.exp(-x) * 0.25)),
  Sigmoid(): ("eps", "log_snr", lambda x: 0.5 / (1 + np.exp(x + 1))),
  Sigmoid(2.0): ("eps", "log_snr", lambda x: 0.5 / (1 + np.exp(x - 2))),
  **{TargetWeighting(kind): (kind, "t", np.ones_like) for kind in TARGETS},
}
ROWS = [*map(Predict, TARGETS), Precondition(), Precondition(0.5)]
PROCESSES = [Cosine(), Flow(), LinearVP(), EDM(), Discrete()]

weighting = pytest.mark.parametrize("weighting", STATED, ids=repr)
row = pytest.mark.parametrize("row", ROWS, ids=repr)


@pytest.fixture
def x64():
  with jax.enable_x64(True):
    yield


def rates_at(alpha: float, sigma: float) -> Rates:
  """With a velocity that turns about the origin, so that det_flow is alpha^2 + sigma^2."""
  return Rates(*map(jnp.float32, (alpha, sigma, -sigma, alpha)))


@weighting
@pytest.mark.parametrize(("process", "row"), zip(itertools.cycle(PROCESSES), ROWS), ids=repr)
def test_the_factor_is_the_stated_weight_in_the_network_s_row(process, row, weighting, x64):
  target, measure, weight = STATED[weighting]
  assert (weighting.target, weighting.measure) == (target, measure)
  t = jnp.linspace(0.0103, 0.97, 60)
  r = rates(process, t, t)
  log_snr, slope = jax.jvp(lambda t: 2 * half_log_snr(process, t), (t,), (jnp.ones_like(t),))
  expected = (
    weight(log_snr) * reweight(row.row(r), TARGETS[target](r), r) * (-slope if measure == "log_snr" else 1)
  )
  np.testing.assert_allclose(weighting.factor(row.row(r), r), expected, rtol=1e-9)


@weighting
@pytest.mark.parametrize(("alpha", "sigma"), [(0, 1), (1, 0)], ids=["SNR 0", "SNR inf"])
def test_both_ends_are_limits(weighting, alpha, sigma):
  """Never 0 / 0; infinite only where the weight in a row has no bound."""
  for row in ROWS:
    check_end(row, weighting, alpha, sigma)


def check_end(row, weighting, alpha, sigma):
  end = np.asarray(weighting.factor(row.row(rates_at(alpha, sigma)), rates_at(alpha, sigma)))
  near = [
    np.asarray(weighting.factor(row.row(r), r))
    for h in (1e-3, 1e-4)
    for r in [rates_at(abs(alpha - h), abs(sigma - h))]
  ]
  assert not np.isnan(end)
  if np.isinf(end):
    assert near[1] > 5 * near[0]
  else:
    np.testing.assert_allclose(near[1], end, rtol=1e-2, atol=1e-3)


def test_min_snr_is_what_is_written_for_eps_and_v():
  """Hang et al. 2023 (2303.09556), section 3.4: min(SNR, 5) / SNR for eps, min(SNR, 5) / (SNR + 1) for v."""
  for alpha, eps, v in ((0.0, 1, 0), (0.6, 1, 0.36), (0.99, 5 / (0.9801 / 0.0199), 5 * 0.0199), (1.0, 0, 0)):
    r = rates_at(alpha, np.sqrt(1 - alpha**2))
    np.testing.assert_allclose(MinSNR().factor(Predict("eps").row(r), r), eps, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(MinSNR().factor(Predict("v").row(r), r), v, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("sigma_data", [0.5, 1.0])
def test_edm_s_weight_is_one_in_its_own_row(sigma_data):
  t = jnp.linspace(0.01, 1, 20)
  r = rates(EDM(), t, t)
  np.testing.assert_allclose(
    EDMWeighting(sigma_data).factor(Precondition(sigma_data).row(r), r), 1, rtol=1e-5
  )


def test_jit_s_loss_in_v_is_bounded():
  """Li & He 2025 (2511.13720): x0 is predicted, and its error divided by max(t, 0.05)."""
  t = jnp.array([0.0, 0.01, 0.05, 0.1, 0.5, 1.0])
  r = rates(Flow(), t, t)
  expected = 1 / np.maximum(np.asarray(t), 0.05) ** 2
  np.testing.assert_allclose(
    TargetWeighting("flow", 400.0).factor(Predict("x0").row(r), r), expected, rtol=1e-5
  )


def test_an_unknown_target_is_refused():
  with pytest.raises(UserError, match=r"target='w'; expected one of \['eps', 'flow', 'v', 'x0'\]"):
    TargetWeighting("w")


@row
def test_one_s_own_error_is_as_it_is(row):
  r = rates_at(np.float32([0, 0.6, 1]), np.float32([1, 0.8, 0]))
  np.testing.assert_array_equal(Unweighted().factor(row.row(r), r), [1, 1, 1])
