import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jldm.diffusion.process import Cosine, Flow, half_log_snr, rates

PROCESSES = [Cosine(), Flow()]
INSIDE = np.linspace(0.01, 0.99, 99)

pytestmark = pytest.mark.parametrize("process", PROCESSES, ids=repr)


def test_both_ends_are_exact_in_float32(process):
  ends = jnp.array([0.0, 1.0])
  for way in (lambda f: f, jax.jit):  # a compiler may fuse rounding away, and with it exactness
    np.testing.assert_array_equal(way(process.alpha)(ends), [1, 0])
    np.testing.assert_array_equal(way(process.sigma)(ends), [0, 1])


def test_rates_are_finite_monotone_and_not_negative_in_float32(process):
  near = np.logspace(-30, -1, 200)
  t = jnp.asarray(np.sort(np.concatenate([[0.0], near, np.linspace(0.1, 0.9, 200), 1 - near, [1.0]])), jnp.float32)
  alpha, sigma = np.asarray(process.alpha(t)), np.asarray(process.sigma(t))
  assert alpha.dtype == sigma.dtype == np.float32
  for rate in (alpha, sigma):
    assert np.isfinite(rate).all() and (rate >= 0).all() and (rate <= 1).all()
  assert (np.diff(alpha) <= 0).all() and (np.diff(sigma) >= 0).all()
  assert (alpha + sigma > 0.99).all(), "never both nothing"


def test_rates_are_the_paper_s(process):
  t = INSIDE
  alpha, sigma = (1 - t, t) if isinstance(process, Flow) else (np.cos(np.pi * t / 2), np.sin(np.pi * t / 2))
  np.testing.assert_allclose(process.alpha(jnp.asarray(t)), alpha, atol=2e-7)
  np.testing.assert_allclose(process.sigma(jnp.asarray(t)), sigma, atol=2e-7)


def test_time_inverts_log_snr(process):
  with jax.enable_x64(True):
    t = jnp.asarray(INSIDE)
    np.testing.assert_allclose(process.time(2 * half_log_snr(process, t)), t, rtol=1e-12)
    log_snr = jnp.linspace(-20, 20, 81)
    np.testing.assert_allclose(2 * half_log_snr(process, process.time(log_snr)), log_snr, atol=1e-6)
  t = jnp.asarray(INSIDE, jnp.float32)
  np.testing.assert_allclose(process.time(2 * half_log_snr(process, t)), t, atol=1e-6)


def test_infinite_log_snr_is_an_end(process):
  np.testing.assert_array_equal(2 * half_log_snr(process, jnp.array([0.0, 1.0])), [np.inf, -np.inf])
  np.testing.assert_array_equal(process.time(jnp.array([np.inf, -np.inf])), [0, 1])


def test_derivatives_are_finite_differences(process):
  with jax.enable_x64(True):
    t, h = jnp.asarray(INSIDE), 1e-6
    r = rates(process, t, t)
    for rate, derivative, f in ((r.alpha, r.d_alpha, process.alpha), (r.sigma, r.d_sigma, process.sigma)):
      np.testing.assert_array_equal(rate, f(t))
      np.testing.assert_allclose(derivative, (f(t + h) - f(t - h)) / (2 * h), rtol=1e-7, atol=1e-9)


def test_derivatives_are_finite_at_both_ends(process):
  r = rates(process, jnp.array([0.0, 1.0]), jnp.zeros(2))
  assert np.isfinite(r.d_alpha).all() and np.isfinite(r.d_sigma).all()


@pytest.mark.parametrize(("t", "shape"), [(0.3, ()), (np.array([0.3, 0.3, 0.3]), (3, 1, 1))], ids=["one", "each"])
def test_rates_broadcast_against_data(process, t, shape):
  r = rates(process, jnp.asarray(t, jnp.float32), jnp.zeros((3, 2, 5)))
  assert [rate.shape for rate in r] == [shape] * 4
  assert {rate.dtype for rate in r} == {jnp.dtype(jnp.float32)}


def test_a_process_is_a_static_argument(process):
  traces = []

  def alpha(process, t):
    traces.append(1)
    return process.alpha(t)

  compiled = jax.jit(alpha, static_argnums=0)
  compiled(process, 0.5), compiled(type(process)(), 0.25)
  assert len(traces) == 1
