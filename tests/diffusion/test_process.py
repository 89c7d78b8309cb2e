import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate

from jldm.core.errors import UserError
from jldm.diffusion.process import (
  EDM,
  Betas,
  Cosine,
  CosineBetas,
  Discrete,
  Flow,
  LinearBetas,
  LinearVP,
  ScaledLinearBetas,
  Shifted,
  dimension_shift,
  half_log_snr,
  rates,
  timestep,
)

# alpha(1) = 0
TO_NOTHING = [
  Cosine(),
  Flow(),
  Shifted(Flow(), 3.0),
  Shifted(Cosine(), 0.5),
  Discrete(rescale_betas_zero_snr=True),
]
PRESERVING = [
  Cosine(),
  LinearVP(),
  Discrete(),
  Discrete(LinearBetas()),
  Discrete(CosineBetas(num_train_timesteps=50)),
]
# something is left
TO_NOISE = [LinearVP(), Discrete(LinearBetas()), Discrete(CosineBetas()), Discrete(Betas((0.1, 0.3, 0.9)))]
CLOSED = [Cosine(), Flow()]  # a line of arithmetic each
ALL = [*TO_NOTHING, *TO_NOISE, EDM(), EDM(20.0, 3.0)]
INSIDE = np.linspace(0.01, 0.99, 99)

every = pytest.mark.parametrize("process", ALL, ids=repr)


@pytest.mark.parametrize("process", TO_NOTHING, ids=repr)
def test_both_ends_are_exact_in_float32(process):
  ends = jnp.array([0.0, 1.0])
  for way in (lambda f: f, jax.jit):  # a compiler may fuse rounding away, and with it exactness
    np.testing.assert_array_equal(way(process.alpha)(ends), [1, 0])
    np.testing.assert_array_equal(way(process.sigma)(ends), [0, 1])


@every
def test_the_clean_end_is_exact_in_float32(process):
  for way in (lambda f: f, jax.jit):
    assert way(process.alpha)(jnp.float32(0)) == 1 and way(process.sigma)(jnp.float32(0)) == 0


@every
def test_rates_are_finite_monotone_and_not_negative_in_float32(process):
  near = np.logspace(-30, -1, 200)
  t = jnp.asarray(
    np.sort(np.concatenate([[0.0], near, np.linspace(0.1, 0.9, 200), 1 - near, [1.0]])), jnp.float32
  )
  alpha, sigma = np.asarray(process.alpha(t)), np.asarray(process.sigma(t))
  assert alpha.dtype == sigma.dtype == np.float32
  for rate in (alpha, sigma):
    assert np.isfinite(rate).all() and (rate >= 0).all()
  rounding = 0 if process in CLOSED else 2 * np.finfo(np.float32).eps
  assert (
    (alpha <= 1).all()
    and (np.diff(alpha) <= rounding).all()
    and (np.diff(sigma) >= -rounding * sigma.max()).all()
  )
  assert (alpha + sigma > 0.99).all(), "never both nothing"


@every
def test_time_inverts_log_snr(process):
  with jax.enable_x64(True):
    t = jnp.asarray(INSIDE)
    np.testing.assert_allclose(
      process.time(2 * half_log_snr(process, t)), t, rtol=1e-12 if process in CLOSED else 1e-9
    )
    within = 2 * half_log_snr(process, jnp.linspace(0.999, 0.001, 81))
    log_snr = jnp.linspace(-20, 20, 81) if process in CLOSED else within
    np.testing.assert_allclose(2 * half_log_snr(process, process.time(log_snr)), log_snr, atol=1e-6)
  t = jnp.asarray(INSIDE, jnp.float32)
  np.testing.assert_allclose(
    process.time(2 * half_log_snr(process, t)), t, atol=1e-6 if process in CLOSED else 3e-6
  )


@pytest.mark.parametrize("process", TO_NOTHING, ids=repr)
def test_infinite_log_snr_is_an_end(process):
  np.testing.assert_array_equal(2 * half_log_snr(process, jnp.array([0.0, 1.0])), [np.inf, -np.inf])
  np.testing.assert_array_equal(process.time(jnp.array([np.inf, -np.inf])), [0, 1])


@every
def test_derivatives_are_finite_differences(process):
  between_knots = INSIDE + 1e-4  # a chain of betas has corners at its knots
  with jax.enable_x64(True):
    t, h = jnp.asarray(between_knots), 1e-6
    r = rates(process, t, t)
    for rate, derivative, f in ((r.alpha, r.d_alpha, process.alpha), (r.sigma, r.d_sigma, process.sigma)):
      np.testing.assert_array_equal(rate, f(t))
      rtol, atol = (1e-7, 1e-9) if process in CLOSED else (1e-6, 1e-8)
      np.testing.assert_allclose(derivative, (f(t + h) - f(t - h)) / (2 * h), rtol, atol)


@pytest.mark.parametrize("process", [*TO_NOTHING, EDM()], ids=repr)
def test_derivatives_are_finite_at_both_ends(process):
  r = rates(process, jnp.array([0.0, 1.0]), jnp.zeros(2))
  assert np.isfinite(r.d_alpha).all() and np.isfinite(r.d_sigma).all()


@pytest.mark.parametrize("process", PRESERVING, ids=repr)
def test_variance_is_preserved(process):
  with jax.enable_x64(True):
    t = jnp.linspace(0, 1, 301)
    np.testing.assert_allclose(process.alpha(t) ** 2 + process.sigma(t) ** 2, 1, rtol=1e-12)


@pytest.mark.parametrize(
  ("process", "t", "alpha", "sigma"),
  [
    (Flow(), 0.25, 0.75, 0.25),
    (Cosine(), 1 / 3, 3**0.5 / 2, 0.5),
    (Cosine(), 0.5, 0.5**0.5, 0.5**0.5),
    (EDM(), 0.5, 1, 0.625),
    (EDM(), 1.0, 1, 80),
    (EDM(20.0, 3.0), 0.5, 1, 2.5),
  ],
)
def test_rates_are_the_paper_s(process, t, alpha, sigma):
  np.testing.assert_allclose(process.alpha(jnp.float32(t)), alpha, rtol=1e-6)
  np.testing.assert_allclose(process.sigma(jnp.float32(t)), sigma, rtol=2e-6)


def test_linear_vp_is_the_integral_of_its_beta():
  """Song et al. 2021 (2011.13456), eq. 33: alpha^2 = exp(-integral of beta)."""
  for t in (0.1, 0.5, 1.0):
    area, _ = integrate.quad(lambda t: 0.1 + t * (20 - 0.1), 0, t)
    np.testing.assert_allclose(LinearVP().alpha(jnp.float32(t)), np.exp(-area / 2), rtol=1e-5)


def test_linear_vp_keeps_its_smallest_noise_in_float32():
  np.testing.assert_allclose(LinearVP().sigma(jnp.float32(1e-9)), np.sqrt(-np.expm1(-1e-10)), rtol=1e-5)


def test_even_times_of_edm_are_its_grid():
  """Karras et al. 2022 (2206.00364), eq. 5, at sigma_min = 0: even in sigma^(1/7), between 80 and 0."""
  with jax.enable_x64(True):
    sigma = np.asarray(EDM().sigma(jnp.linspace(1, 0, 19)))
  np.testing.assert_allclose(np.diff(sigma ** (1 / 7), 2), 0, atol=1e-12)
  np.testing.assert_allclose(sigma[[0, -1]], [80, 0], rtol=1e-12)


SCHEDULES = [
  LinearBetas(),
  ScaledLinearBetas(),
  CosineBetas(),
  LinearBetas(num_train_timesteps=10),
  Betas((0.1, 0.3, 0.9)),
]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_from_knot_to_knot_a_beta_of_the_variance_is_lost(schedule):
  betas, process = schedule.betas(), Discrete(schedule)
  with jax.enable_x64(True):
    kept = np.asarray(process.alpha(jnp.arange(len(betas) + 1) / len(betas))) ** 2
  np.testing.assert_allclose(1 - kept[1:] / kept[:-1], betas, rtol=1e-6)
  assert process.num_train_timesteps == len(betas)


def test_betas_are_the_papers():
  """The ends of Ho et al. 2020, section 4, and of Stable Diffusion's v1-inference.yaml; the cosine's are
  those of diffusers, as tests/samplers/test_parity.py compares them.
  """
  np.testing.assert_allclose(LinearBetas().betas()[[0, -1]], [1e-4, 0.02])
  np.testing.assert_allclose(ScaledLinearBetas().betas()[[0, -1]], [0.00085, 0.012])
  np.testing.assert_allclose(np.diff(np.sqrt(ScaledLinearBetas().betas()), 2), 0, atol=1e-12)
  cosine = CosineBetas().betas()
  np.testing.assert_allclose(cosine[[0, -1]], [4.1284e-5, 0.999], rtol=1e-4)
  assert (np.diff(cosine) >= 0).all() and 0.48 < np.prod(1 - cosine[:500]) < 0.5


def test_zero_terminal_snr_keeps_the_first_step_and_loses_the_last():
  """Lin et al. 2024 (2305.08891), algorithm 1: alphas are shifted to end at 0, scaled to start as before."""
  old, new = Discrete(), Discrete(rescale_betas_zero_snr=True)
  t = jnp.asarray((np.arange(1000) + 1) / 1000, jnp.float32)
  a, b = np.float64(old.alpha(t)), np.float64(new.alpha(t))
  np.testing.assert_allclose(b[0], a[0], rtol=1e-6)
  assert b[-1] == 0 and new.sigma(t[-1]) == 1
  np.testing.assert_allclose((b - b[-1]) / (b[0] - b[-1]), (a - a[-1]) / (a[0] - a[-1]), atol=3e-7)


@pytest.mark.parametrize("values", [(), (0.1, 0.0), (0.1, 1.5), (-0.1,)])
def test_illegal_betas_are_refused(values):
  with pytest.raises(UserError, match="expected at least one, each above 0 and at most 1"):
    Betas(values)
  assert len(repr(Betas((0.1,) * 1000))) < 30, "or a line that names the process is not one line"


def test_one_beta_cannot_be_scaled_to_nothing():
  with pytest.raises(UserError, match="rescale_betas_zero_snr of 1 betas; expected at least 2"):
    Discrete(Betas((0.1,)), rescale_betas_zero_snr=True)


def test_a_network_is_reported_the_time_that_it_knows():
  t = jnp.linspace(0, 1, 5)
  np.testing.assert_array_equal(timestep(Flow(), t), t)
  np.testing.assert_allclose(timestep(Shifted(Flow(), 3.0), t), [0, 0.5, 0.75, 0.9, 1], rtol=1e-6)
  knots = jnp.array([0.4, 1.0])  # which the shift takes to 2/3 and 1, and the last is knot 999
  np.testing.assert_allclose(1000 * timestep(Shifted(Discrete(), 3.0), knots), [2000 / 3 - 1, 999], atol=1e-3)


@pytest.mark.parametrize("shift", [0.5, 1.0, 3.0])
def test_a_shifted_flow_has_its_snr_divided(shift):
  """Esser et al. 2024 (2403.03206), eq. 23: log SNR less 2 log shift."""
  t = jnp.asarray(INSIDE, jnp.float32)
  less = half_log_snr(Flow(), t) - half_log_snr(Shifted(Flow(), shift), t)
  np.testing.assert_allclose(less, np.log(shift), atol=2e-5)


def test_the_shift_grows_with_the_root_of_the_dimension():
  assert (
    dimension_shift(4096) == 1
    and dimension_shift(16 * 16 * 32) == np.sqrt(2)
    and dimension_shift(1024) == 0.5
  )


@every
@pytest.mark.parametrize(
  ("t", "shape"), [(0.3, ()), (np.array([0.3, 0.3, 0.3]), (3, 1, 1))], ids=["one", "each"]
)
def test_rates_broadcast_against_data(process, t, shape):
  r = rates(process, jnp.asarray(t, jnp.float32), jnp.zeros((3, 2, 5)))
  assert [rate.shape for rate in r] == [shape] * 4
  assert {rate.dtype for rate in r} == {jnp.dtype(jnp.float32)}


@every
def test_a_process_is_a_static_argument(process):
  traces = []

  def alpha(process, t):
    traces.append(1)
    return process.alpha(t)

  compiled = jax.jit(alpha, static_argnums=0)
  other = type(process)(**vars(process))
  compiled(process, 0.5), compiled(other, 0.25)
  assert len(traces) == 1
