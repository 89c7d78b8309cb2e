import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jldm.core.errors import UserError
from jldm.core.specs import Output
from jldm.diffusion.process import EDM, Cosine, Discrete, Flow, LinearVP, rates
from jldm.diffusion.target import (
  TARGETS,
  Precondition,
  Predict,
  combine,
  decode,
  denoiser,
  determinant,
  refuse_singular,
  reweight,
)

PROCESSES = [Cosine(), Flow()]
SHAPE = (3, 4, 2, 2)
TIMES = [0.1, 0.5, 0.9]

both = pytest.mark.parametrize("process", PROCESSES, ids=repr)


@pytest.fixture
def x64():
  with jax.enable_x64(True):
    yield


def parts(dtype=np.float64):
  """x0 and eps [B, ...]."""
  return jnp.asarray(np.random.default_rng(0).standard_normal((2, *SHAPE)), dtype)


@both
@pytest.mark.parametrize("kind", TARGETS)
def test_every_target_round_trips(process, kind, x64):
  x0, eps = parts()
  r = rates(process, jnp.asarray(TIMES), x0)
  row = Predict(kind).row(r)
  back = decode(row, r, r.alpha * x0 + r.sigma * eps, combine(row, x0, eps))
  np.testing.assert_allclose(back.x0, x0, atol=1e-12)
  np.testing.assert_allclose(back.eps, eps, atol=1e-12)
  assert back.variance is None


@both
@pytest.mark.parametrize(
  ("kind", "times"),
  [("v", (0, 0.5, 1)), ("flow", (0, 0.5, 1)), ("eps", (0, 0.1, 0.5)), ("x0", (0.5, 0.9, 1))],
)
def test_round_trips_reach_the_ends_in_float32(process, kind, times):
  x0, eps = parts(np.float32)
  r = rates(process, jnp.asarray(times, jnp.float32), x0)
  row = Predict(kind).row(r)
  back = decode(row, r, r.alpha * x0 + r.sigma * eps, combine(row, x0, eps))
  assert back.x0.dtype == back.eps.dtype == jnp.float32
  np.testing.assert_allclose(back.x0, x0, atol=5e-6)
  np.testing.assert_allclose(back.eps, eps, atol=5e-6)


@both
@pytest.mark.parametrize(("kind", "other"), itertools.product(TARGETS, TARGETS))
def test_a_loss_is_converted_to_that_of_any_other_target(process, kind, other, x64):
  x0, eps = parts()
  r = rates(process, jnp.asarray(TIMES), x0)
  row, to = Predict(kind).row(r), Predict(other).row(r)
  error = 0.1 * jnp.asarray(np.random.default_rng(1).standard_normal(SHAPE))
  wrong = decode(row, r, r.alpha * x0 + r.sigma * eps, combine(row, x0, eps) + error)
  in_other = combine(to, wrong.x0, wrong.eps) - combine(to, x0, eps)
  np.testing.assert_allclose(reweight(row, to, r) * error**2, in_other**2, rtol=1e-9, atol=1e-14)


def test_time_may_run_from_noise_to_data():
  """Its flow is then the derivative by that time, and the network gets 1 - t on its own scale."""
  z = jnp.ones((2, 3))
  t = jnp.float32([0.25, 0.75])
  for prediction_type in TARGETS:
    plain, reverse = Predict(prediction_type), Predict(prediction_type, reverse_time=True, time_scale=0.001)
    r = rates(Flow(), t, z)
    sign = -1 if prediction_type == "flow" else 1
    assert all(np.array_equal(a, sign * b) for a, b in zip(reverse.row(r), plain.row(r)))
    np.testing.assert_allclose(reverse.c_noise(Flow(), t), [0.00075, 0.00025], rtol=1e-6)
    np.testing.assert_array_equal(plain.c_noise(Flow(), t), t)


@both
def test_known_conversions(process, x64):
  """Salimans & Ho 2022 (2202.00512), section 4: losses in x0 and eps differ by the SNR, and v lies between
  them.
  """
  t = jnp.asarray(TIMES)
  r = rates(process, t, t)
  row = {kind: Predict(kind).row(r) for kind in TARGETS}
  np.testing.assert_allclose(reweight(row["x0"], row["eps"], r), (r.alpha / r.sigma) ** 2)
  if isinstance(process, Cosine):
    np.testing.assert_allclose(reweight(row["v"], row["eps"], r), r.alpha**2)
    np.testing.assert_allclose(reweight(row["v"], row["x0"], r), r.sigma**2)
  else:
    np.testing.assert_allclose(reweight(row["flow"], row["x0"], r), t**2)


@both
def test_flow_is_the_velocity_of_z(process, x64):
  x0, eps = parts()
  t, h = jnp.asarray(TIMES), 1e-6
  at = lambda t: (lambda r: r.alpha * x0 + r.sigma * eps)(rates(process, t, x0))
  velocity = combine(Predict("flow").row(rates(process, t, x0)), x0, eps)
  np.testing.assert_allclose(velocity, (at(t + h) - at(t - h)) / (2 * h), atol=1e-8)
  if isinstance(process, Flow):
    np.testing.assert_allclose(velocity, eps - x0, atol=1e-12)


def test_v_is_a_rotation_on_a_variance_preserving_process(x64):
  x0, eps = parts()
  r = rates(Cosine(), jnp.asarray(TIMES), x0)
  z, v = r.alpha * x0 + r.sigma * eps, combine(Predict("v").row(r), x0, eps)
  np.testing.assert_allclose(v, r.alpha * eps - r.sigma * x0, atol=1e-12)
  np.testing.assert_allclose(r.alpha * z - r.sigma * v, x0, atol=1e-12)


@both
@pytest.mark.parametrize("kind", TARGETS)
@pytest.mark.parametrize("times", [np.asarray(TIMES), 0.5], ids=["each", "one"])
def test_a_perfect_network_is_decoded_into_its_parts(process, kind, times):
  x0, eps = parts(np.float32)
  t = jnp.asarray(times, jnp.float32)
  r = rates(process, t, x0)
  seen = []

  def apply(z, level, estimate, to):
    seen.append((z, level, estimate, to))
    return Output(combine(Predict(kind).row(r), x0, eps))

  z = r.alpha * x0 + r.sigma * eps
  denoised = denoiser(process, Predict(kind), apply)(z, t)
  np.testing.assert_allclose(denoised.x0, x0, atol=1e-5)
  np.testing.assert_allclose(denoised.eps, eps, atol=1e-5)
  np.testing.assert_array_equal(seen[0][0], z)
  np.testing.assert_array_equal(seen[0][1], np.broadcast_to(np.float32(times), (3,)))
  assert seen[0][2:] == (None, None)


@pytest.mark.parametrize("to", [np.array([0.05, 0.2, 0.4]), 0.2], ids=["each", "one"])
def test_an_estimate_arrives_as_it_is_and_a_target_time_as_its_noise_level(to):
  x0, eps = parts(np.float32)
  seen = []

  def apply(z, level, estimate, to):
    seen.append((level, estimate, to))
    return Output(z)

  denoiser(EDM(), Precondition(), apply)(
    eps, jnp.asarray(TIMES, jnp.float32), x0, jnp.asarray(to, jnp.float32)
  )
  denoiser(EDM(), Precondition(), apply)(
    eps, jnp.asarray(TIMES, jnp.float32), to=jnp.asarray(to, jnp.float32)
  )
  (level, estimate, noise_level), (*_, alone) = seen
  c_noise = lambda t: np.log(80 * np.broadcast_to(t, (3,)) ** 7) / 4
  np.testing.assert_allclose(level, c_noise(TIMES), rtol=1e-5)
  np.testing.assert_allclose(noise_level, c_noise(to), rtol=1e-5)
  np.testing.assert_array_equal(alone, noise_level)
  np.testing.assert_array_equal(estimate, x0)


def test_only_the_network_computes_in_its_own_dtype():
  z = parts(np.float32)[0]
  denoised = denoiser(Flow(), Predict("flow"), lambda z, *_: Output(z.astype(jnp.bfloat16)))(
    z, jnp.float32(0.3)
  )
  assert denoised.x0.dtype == denoised.eps.dtype == jnp.float32


@pytest.mark.parametrize("kind", ["epps", "", None, "V"])
def test_an_unknown_target_is_refused(kind):
  with pytest.raises(UserError) as error:
    Predict(kind)
  assert str(error.value) == f"prediction_type={kind!r}; expected one of ['eps', 'flow', 'v', 'x0']"


@both
@pytest.mark.parametrize(
  ("kind", "times", "named"), [("eps", [1.0, 0.5, 0.25], "1"), ("x0", [0.5, 0.0], "0")]
)
def test_a_time_at_which_the_target_says_nothing_is_refused(process, kind, times, named):
  with pytest.raises(UserError) as error:
    refuse_singular(process, Predict(kind), np.array(times))
  message = str(error.value)
  assert f"t = {named} " in message and kind in message and repr(process) in message
  assert "use Predict('v') or Predict('flow'), or" in message and "\n" not in message


@both
@pytest.mark.parametrize(
  ("kind", "times"),
  [("v", [0, 0.5, 1]), ("flow", [0, 0.5, 1]), ("eps", [0, 0.5, 0.999]), ("x0", [0.001, 0.5, 1])],
)
def test_regular_times_pass(process, kind, times):
  times = np.asarray(times, np.float32)
  refuse_singular(process, Predict(kind), times)
  r = rates(process, jnp.asarray(times), jnp.asarray(times))
  assert (np.abs(determinant(Predict(kind).row(r), r)) > 1e-4).all()


def test_only_rows_that_work_are_recommended():
  both = r"Predict\('v'\) or Predict\('flow'\)"
  with pytest.raises(
    UserError, match=rf"Precondition\(sigma_data=1.0\) .* t = 1 of Flow\(\); use {both}, or"
  ):
    refuse_singular(Flow(), Precondition(), np.array([1.0, 0.5]))
  with pytest.raises(UserError, match=r"t = 0 of EDM\(.*\); use Predict\('v'\), or keep"):
    refuse_singular(EDM(), Predict("x0"), np.array([1.0, 0.0]))
  with pytest.raises(UserError, match=r"t = 0 of LinearVP\(.*\); use Predict\('v'\), or keep"):
    refuse_singular(LinearVP(), Predict("x0"), np.array([1.0, 0.0]))  # whose velocity at 0 is infinite


@pytest.mark.parametrize(
  ("process", "row"),
  [
    (LinearVP(), Predict("eps")),
    (Discrete(), Predict("eps")),
    (EDM(), Precondition()),
    (EDM(), Predict("eps")),
  ],
)
def test_eps_may_start_where_some_signal_is_left(process, row):
  refuse_singular(process, row, np.linspace(1, 0.05, 20))


@pytest.mark.parametrize("sigma_data", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("sigma", [1e-6, 0.002, 0.7, 80.0])
def test_preconditioning_is_the_paper_s(sigma_data, sigma, x64):
  """Karras et al. 2022 (2206.00364), eq. 7 and table 1, with D = c_skip z + c_out F(c_in z, c_noise)."""
  process, p = EDM(), Precondition(sigma_data)
  s2 = sigma**2 + sigma_data**2
  c_skip, c_out = sigma_data**2 / s2, sigma * sigma_data / np.sqrt(s2)
  x0, eps = parts()
  t = process.time(-2 * jnp.log(jnp.full(3, sigma)))
  r = rates(process, t, x0)
  z = x0 + r.sigma * eps
  np.testing.assert_allclose(p.c_in(r), np.full((3, 1, 1, 1), s2**-0.5), rtol=1e-9)
  np.testing.assert_allclose(p.c_noise(process, t), np.log(sigma) / 4, rtol=1e-9)
  output = jnp.sin(z)
  np.testing.assert_allclose(
    decode(p.row(r), r, z, output).x0, c_skip * z + c_out * output, rtol=1e-7, atol=1e-9
  )
  np.testing.assert_allclose(
    combine(p.row(r), x0, eps), (x0 - c_skip * z) / c_out, rtol=1e-6, atol=1e-9 / sigma
  )


def test_preconditioning_of_unit_variance_is_minus_v(x64):
  r = rates(Cosine(), jnp.asarray(TIMES), parts()[0])
  for ours, v in zip(Precondition().row(r), Predict("v").row(r)):
    np.testing.assert_allclose(ours, -v, atol=1e-12)


def test_a_preconditioned_output_has_unit_variance_as_input_and_target():
  """What the coefficients were made for: eq. 114 to 117 of the paper."""
  x0, eps = np.random.default_rng(0).standard_normal((2, 3, 20_000)).astype(np.float32) * [[[0.7]], [[1.0]]]
  r = rates(EDM(), jnp.asarray([0.1, 0.5, 1.0]), jnp.asarray(x0))
  p = Precondition(0.7)
  np.testing.assert_allclose(np.std(p.c_in(r) * (x0 + r.sigma * eps), 1), 1, atol=0.02)
  np.testing.assert_allclose(np.std(combine(p.row(r), x0, eps), 1), 1, atol=0.02)


def test_a_chain_of_betas_tells_its_network_i_over_t():
  i = np.array([0, 500, 999])
  np.testing.assert_allclose(
    1000 * Predict("eps").c_noise(Discrete(), jnp.asarray((i + 1) / 1000, jnp.float32)), i, atol=1e-4
  )


@pytest.mark.parametrize("kind", TARGETS)
def test_reweighting_to_itself_is_one_even_where_it_says_nothing(kind):
  r = rates(Cosine(), jnp.array([0.0, 0.3, 1.0]), jnp.zeros(3))
  row = Predict(kind).row(r)
  np.testing.assert_array_equal(reweight(row, row, r), 1)


def test_a_variance_passes_through_and_the_log_variance_of_the_loss_does_not():
  x0, eps = parts(np.float32)
  learned = denoiser(Flow(), Predict("flow"), lambda z, *_: Output(z, jnp.ones(3), eps))(x0, jnp.float32(0.3))
  plain = denoiser(Flow(), Predict("flow"), lambda z, *_: Output(z, jnp.ones(3)))(x0, jnp.float32(0.3))
  np.testing.assert_array_equal(learned.variance, eps)
  np.testing.assert_array_equal(learned.x0, plain.x0)
  assert plain.variance is None
