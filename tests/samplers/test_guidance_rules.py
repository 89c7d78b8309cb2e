"""Each rule by its laws, on an arbitrary network in every process; energies on Gaussian data."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jldm.core.shapes import expand
from jldm.core.specs import Output
from jldm.core.trees import traced
from jldm.diffusion.process import EDM, Cosine, Flow, LinearVP
from jldm.diffusion.target import Denoised, Precondition, Predict, denoiser
from jldm.samplers.ddim import DDIM
from jldm.samplers.guidance import (
  APG,
  CFGPlusPlus,
  CFGZero,
  ClassifierFree,
  FirstChannels,
  Interval,
  Rescale,
  autoguided,
  energy_guided,
  guided,
  thresholded,
)
from jldm.samplers.pairs import adjacent_pairs
from jldm.samplers.sample import sample
from tests.compiling import UNOPTIMIZED

PROCESSES = [Cosine(), Flow(), EDM(), LinearVP()]
ROW = Predict("v")
SCALES = jnp.linspace(-0.5, 4, 8)
LABELS, NULL = jnp.arange(8), jnp.full(8, -1)
RULES = {
  "cfg": ClassifierFree(SCALES),
  "interval": Interval(ClassifierFree(SCALES), -2.0, 1.0),
  "rescale": Rescale(ClassifierFree(SCALES), jnp.linspace(0, 1, 8)),
  "apg": APG(SCALES, 0.3, 1.5),
  "cfg_zero": CFGZero(SCALES),
  "cfg_zero from 0.6": CFGZero(SCALES, 0.6),
  "first channel": FirstChannels(ClassifierFree(SCALES), 1),
  "two": Rescale(Interval(APG(SCALES), -6.0, 6.0), 0.5),
}
processes = pytest.mark.parametrize("process", PROCESSES[:3], ids=repr)


def apply(z, level, label):
  """A network whose output depends on everything that it is fed."""
  return jnp.tanh(z @ jnp.array([[1.0, -0.5], [0.3, 2.0]]) + expand(jnp.sin(level) + 0.2 * label, z))


def labelled(process, row):
  """`apply` as denoise(z, t, label, estimate, to), as `guided` takes it."""

  def denoise(z, t, label, estimate=None, to=None):
    return denoiser(process, row, lambda z, level, *_: Output(apply(z, level, label)))(z, t, estimate, to)

  return denoise


@functools.partial(jax.jit, static_argnums=(0, 1), compiler_options=UNOPTIMIZED)
def say(process, row, rule, z, t):
  """What the condition, no condition and the rule say."""
  denoise = labelled(process, row)
  return denoise(z, t, LABELS), denoise(z, t, NULL), guided(process, denoise, (LABELS, NULL), rule)(z, t)


NOISE = np.random.default_rng(0).standard_normal((8, 3, 3, 2), np.float32)


def place(process, t):
  """z [8, 3, 3, 2] of the size that it has at t."""
  t = jnp.float32(t)
  return NOISE * np.hypot(process.alpha(t), process.sigma(t))


def answers(process, rule, t=0.4, row=ROW):
  """The three of `say`; numbers of the rule are spread over the samples, so that a kind of rule is
  compiled once.
  """
  spread = jax.tree.map(lambda leaf: np.broadcast_to(np.asarray(leaf, np.float32), 8), rule)
  return jax.tree.map(np.asarray, say(process, row, spread, place(process, t), np.float32(t)))


def close(a, b, atol=3e-6):
  np.testing.assert_allclose(a.x0, b.x0, rtol=1e-5, atol=atol)
  np.testing.assert_allclose(a.eps, b.eps, rtol=1e-5, atol=atol)


def consistent(process, out, z, t):
  off = process.alpha(t) * out.x0 + process.sigma(t) * out.eps - z
  assert np.isfinite(off).all() and np.abs(off).max() < 2e-6 * max(1, np.abs(out.x0).max()) * max(
    1, np.abs(z).max()
  ), float(t)


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
@pytest.mark.parametrize("name", ["cfg", "rescale", "apg", "cfg_zero from 0.6", "two"])
def test_x0_and_eps_stay_those_of_z_at_all_times(process, name):
  for t in map(jnp.float32, (0.0, 0.02, 0.4, 0.8, 1.0)):
    *_, out = answers(process, RULES[name], t)
    consistent(process, out, place(process, t), t)


@pytest.mark.parametrize("name", ["apg", "cfg_zero"])
def test_they_do_so_whatever_the_network_predicts(name):
  for t in map(jnp.float32, (0.02, 0.8)):
    *_, out = answers(Cosine(), RULES[name], t, Precondition(0.5))
    consistent(Cosine(), out, place(Cosine(), t), t)


@processes
def test_scale_one_is_the_condition_alone_and_zero_none(process):
  for rule in (
    ClassifierFree(1.0),
    APG(1.0),
    CFGZero(1.0),
    Interval(ClassifierFree(1.0)),
    Rescale(APG(1.0), 1.0),
  ):
    condition, _, out = answers(process, rule)
    close(out, condition)
  for rule in (ClassifierFree(0.0), APG(0.0, eta=1.0), CFGPlusPlus(ClassifierFree(0.0))):
    _, null, out = answers(process, rule)
    close(out, null)


@processes
def test_channels_that_are_not_guided_are_those_of_the_condition(process):
  """As DiT's `forward_with_cfg` has it: the rule on the first channels, and the condition on the others."""
  plain = ClassifierFree(3.0)
  (condition, _, whole), (*_, some) = answers(process, plain), answers(process, FirstChannels(plain, 1))
  for part in ("x0", "eps"):
    alone, guided_part, out = (getattr(each, part) for each in (condition, whole, some))
    np.testing.assert_array_equal(out[..., :1], guided_part[..., :1])
    np.testing.assert_array_equal(out[..., 1:], alone[..., 1:])
    assert np.abs(guided_part - alone)[..., 1:].max() > 0.01
  close(answers(process, FirstChannels(plain, 2))[2], whole)


@processes
def test_outside_of_its_interval_the_condition_stands_alone(process):
  plain = ClassifierFree(3.0)
  condition, _, inside = answers(process, plain)
  log_snr = 2 * jnp.log(process.alpha(jnp.float32(0.4)) / process.sigma(jnp.float32(0.4)))
  low = jnp.where(jnp.arange(8) % 2, log_snr + 0.1, log_snr - 0.1)
  for rule in (Interval(plain), Interval(plain, log_snr - 0.1, log_snr + 0.1)):
    close(answers(process, rule)[2], inside)
  for rule in (
    Interval(plain, log_snr + 0.1),
    Interval(plain, log_snr_max=log_snr - 0.1),
    Interval(plain, 1.0, -1.0),
  ):
    close(answers(process, rule)[2], condition)
  mixed = answers(process, Interval(plain, low))[2]
  np.testing.assert_allclose(mixed.x0[1::2], condition.x0[1::2], rtol=1e-5, atol=3e-6)
  np.testing.assert_allclose(mixed.x0[::2], inside.x0[::2], rtol=1e-5, atol=3e-6)


@processes
@pytest.mark.parametrize("t", [0.05, 0.4, 0.9])
def test_rescaling_brings_the_standard_deviation_back(process, t):
  condition, _, plain = answers(process, ClassifierFree(SCALES), t)
  std = lambda e: e.std((1, 2, 3), keepdims=True)
  phi = np.linspace(0, 1, 8, dtype=np.float32)[:, None, None, None]
  expected = plain.x0 * (phi * std(condition.x0) / std(plain.x0) + 1 - phi)
  out = answers(process, Rescale(ClassifierFree(SCALES), phi.ravel()), t)[2]
  np.testing.assert_allclose(out.x0, expected, rtol=1e-4, atol=1e-5)
  close(answers(process, Rescale(ClassifierFree(SCALES), 0.0), t)[2], plain)
  np.testing.assert_allclose(
    std(answers(process, Rescale(ClassifierFree(SCALES), 1.0), t)[2].x0), std(condition.x0), rtol=1e-4
  )


@processes
def test_a_picture_without_spread_is_not_rescaled(process):
  z, t = jnp.ones((2, 3)), jnp.float32(0.4)
  each = Denoised(jnp.ones((2, 2, 3)), jnp.zeros((2, 2, 3)))
  out = Rescale(ClassifierFree(2.0), 1.0)(process, z, t, each)
  np.testing.assert_array_equal(out.x0, jnp.ones((2, 3)))
  np.testing.assert_array_equal(out.eps, jnp.zeros((2, 3)))


@processes
def test_projected_guidance_with_nothing_to_project_or_shorten_is_classifier_free(process):
  close(answers(process, APG(SCALES, 1.0))[2], answers(process, ClassifierFree(SCALES))[2], atol=1e-5)


@processes
def test_projected_guidance_leaves_the_condition_at_right_angles(process):
  condition, _, out = answers(process, APG(SCALES))
  inner, norm = lambda a, b: (a * b).sum((1, 2, 3)), lambda a: np.sqrt((a * a).sum((1, 2, 3)))
  change = out.x0 - condition.x0
  assert (np.abs(inner(change, condition.x0)) < 1e-5 * norm(condition.x0) * (1 + norm(change))).all()
  assert norm(change).max() > 0.1


@processes
def test_projected_guidance_shortens_what_is_longer_than_the_radius(process):
  condition, null, _ = answers(process, APG())
  norm = lambda a: np.sqrt((a * a).sum((1, 2, 3)))
  lengths = norm(condition.x0 - null.x0)
  radius = float(np.median(lengths))
  moved = norm(answers(process, APG(3.0, 1.0, radius))[2].x0 - condition.x0)
  np.testing.assert_allclose(moved, 2 * np.minimum(lengths, radius), rtol=1e-4)
  assert (lengths > 1.01 * radius).any() and (lengths < 0.99 * radius).any()


@pytest.mark.parametrize("t", [0.05, 0.4, 0.9])
def test_the_optimal_scale_is_that_of_the_velocities(t):
  condition, null, out = answers(Flow(), CFGZero(SCALES), t)
  v, v_null, v_out = (said.eps - said.x0 for said in (condition, null, out))
  best = (v * v_null).sum((1, 2, 3), keepdims=True) / (v_null**2).sum((1, 2, 3), keepdims=True)
  w = np.asarray(SCALES)[:, None, None, None]
  np.testing.assert_allclose(v_out, best * v_null + w * (v - best * v_null), rtol=1e-4, atol=1e-5)
  assert np.abs(best - 1).max() > 0.1


@processes
def test_parallel_velocities_need_no_guidance(process):
  """The optimal scale makes of v_null = v / 2 the condition's own v, so that nothing is left to guide by."""
  t = jnp.float32(0.4)
  z = place(process, t)
  rate = lambda f: jax.jvp(f, (t,), (jnp.float32(1),))
  (alpha, d_alpha), (sigma, d_sigma) = rate(process.alpha), rate(process.sigma)
  det, v = alpha * d_sigma - sigma * d_alpha, np.sin(7 * z)
  said = lambda v: Denoised((d_sigma * z - sigma * v) / det, (alpha * v - d_alpha * z) / det)
  each = Denoised(*(jnp.stack(parts, 1) for parts in zip(said(v)[:2], said(v / 2)[:2])))
  out = CFGZero(SCALES)(process, z, t, each)
  np.testing.assert_allclose(out.x0, said(v).x0, rtol=1e-4, atol=1e-5 * float(jnp.abs(z).max()))
  np.testing.assert_allclose(out.eps, said(v).eps, rtol=1e-4, atol=1e-4)


@processes
def test_no_velocity_above_a_time_leaves_z_where_it_is(process):
  """d z / dt = d_alpha x0 + d_sigma eps = 0; below that time nothing changes."""
  z, t = place(process, 0.8), jnp.float32(0.8)
  *_, out = answers(process, CFGZero(SCALES, 0.75), 0.8)
  slope = lambda f: jax.grad(f)(t)
  v = slope(process.alpha) * out.x0 + slope(process.sigma) * out.eps
  assert np.abs(v).max() < 1e-5 * float(slope(process.sigma) + 1) * float(jnp.abs(z).max())
  close(answers(process, CFGZero(SCALES, 0.85), 0.8)[2], answers(process, CFGZero(SCALES), 0.8)[2])
  each = answers(process, CFGZero(SCALES, jnp.where(jnp.arange(8) % 2, 0.75, 0.85)), 0.8)[2]
  np.testing.assert_allclose(each.x0[1::2], out.x0[1::2], rtol=1e-5, atol=1e-5 * float(jnp.abs(z).max()))


@processes
def test_ddim_with_cfg_plus_plus_is_theirs(process):
  """x0 from the guided noise by Tweedie's formula, then the unconditional noise: Chung et al.

  2024 (2406.08070).
  """
  t, s = jnp.float32(0.6), jnp.float32(0.3)
  z, denoise = place(process, t), labelled(process, ROW)
  scale = jnp.linspace(0, 1, 8)
  both = guided(process, denoise, (LABELS, NULL), CFGPlusPlus(ClassifierFree(scale)))
  sampler = DDIM()
  keys = jax.random.split(jax.random.key(0), 8)
  out = sampler.step(process, both, sampler.init(process, z, jnp.stack([t, s])[None]), t, s, keys).z
  c, u = denoise(z, t, LABELS).eps, denoise(z, t, NULL).eps
  x0 = (z - process.sigma(t) * (u + expand(scale, z) * (c - u))) / process.alpha(t)
  np.testing.assert_allclose(out, process.alpha(s) * x0 + process.sigma(s) * u, rtol=1e-4, atol=1e-4)


@processes
def test_a_weaker_network_stands_for_no_condition(process):
  t, denoise = jnp.float32(0.4), labelled(process, ROW)
  z, bound = place(process, t), lambda label: lambda z, t, *_: denoise(z, t, label)
  for rule in (ClassifierFree(SCALES), Rescale(APG(SCALES, 0.5), 0.5)):
    out = autoguided(process, bound(LABELS), bound(NULL), rule)(z, t)
    close(out, guided(process, denoise, (LABELS, NULL), rule)(z, t), atol=2e-5)


def test_the_strong_network_tells_the_variance():
  said = lambda number: lambda z, t, *_: Denoised(z, z, jnp.full_like(z, number))
  out = autoguided(Flow(), said(3.0), said(4.0), ClassifierFree(2.0))(jnp.ones((2, 3)), jnp.float32(0.5))
  np.testing.assert_array_equal(out.variance, jnp.full((2, 3), 3.0))


@processes
def test_thresholding_clips_at_a_quantile_and_divides(process):
  t, denoise = jnp.float32(0.4), lambda z, t, *_: said
  z = place(process, t)
  x0 = 3 * jax.random.normal(jax.random.key(2), z.shape) * jnp.linspace(0.02, 1, 8)[:, None, None, None]
  said = Denoised(x0, (z - process.alpha(t) * x0) / process.sigma(t))
  out = thresholded(process, denoise, 0.9, 1.5)(z, t)
  s = np.maximum(np.quantile(np.abs(x0), 0.9, (1, 2, 3), keepdims=True), 1.5)
  np.testing.assert_allclose(out.x0, np.clip(x0, -s, s) * 1.5 / s, rtol=1e-5)
  consistent(process, out, z, t)
  np.testing.assert_array_equal(out.x0[0], x0[0])
  assert s.max() > 1.6
  each = thresholded(process, denoise, jnp.linspace(0.5, 1, 8), jnp.linspace(0.5, 2, 8))(z, t)
  for b, quantile in ((0, 0.5), (7, 1.0)):
    alone = thresholded(process, denoise, quantile, 0.5 + 1.5 * b / 7)(z, t)
    np.testing.assert_allclose(each.x0[b], alone.x0[b], rtol=1e-5)


def test_thresholding_leaves_clean_data_alone():
  z = jnp.full((2, 4), 5.0)
  out = thresholded(Flow(), lambda z, t, *_: Denoised(z, 0 * z))(z, jnp.float32(0))
  np.testing.assert_array_equal(out.x0, z)
  np.testing.assert_array_equal(out.eps, 0 * z)


@pytest.mark.parametrize("name", RULES)
def test_numbers_for_each_sample_are_those_of_separate_runs(name):
  rule, process, t = RULES[name], Cosine(), jnp.float32(0.6)
  whole = answers(process, rule, t)[2]
  for b in (0, 3, 7):
    single = traced(jax.tree.map(lambda leaf, b=b: leaf[b] if jnp.ndim(leaf) else leaf, rule))
    alone = say(process, ROW, single, place(process, t), t)[2]
    np.testing.assert_allclose(whole.x0[b], alone.x0[b], rtol=1e-4, atol=1e-5)


def test_numbers_compile_nothing():
  traces = []

  @jax.jit
  def run(rule, z, t):
    traces.append(1)
    denoise = labelled(Flow(), ROW)
    return guided(Flow(), denoise, (LABELS, NULL), rule)(z, t).x0

  z, outs = place(Flow(), 0.4), []
  numbers = [(1, 0, 2, -1, 0, 1), (2.0, 0.5, jnp.inf, np.float64(-3), 0.5, 0.3), (3, 1, 1, 9, 1, 2)]
  for scale, eta, radius, low, phi, zero in numbers:
    rule = Rescale(Interval(APG(scale, eta, radius), low), phi)
    outs += [
      run(traced(rule), z, jnp.float32(0.4)),
      run(traced(CFGPlusPlus(CFGZero(scale, zero))), z, jnp.float32(0.4)),
    ]
  assert len(traces) == 2
  assert len({np.asarray(out).tobytes() for out in outs}) == 5, (
    "the first and the last of one kind are the condition alone"
  )


# Energies: data N(m, s^2) with x0 given z Gaussian.  A linear energy c x0 moves it to N(m - c s^2, s^2).
# The quadratic k / 2 (x0 - y)^2 gives it precision 1 / s^2 + k and mean (m / s^2 + k y) / (1 / s^2 + k).
M, S, Y = 0.7, 0.5, 2.0


def gaussian(process):
  def denoise(z, t, estimate=None, to=None):
    alpha, sigma = expand(process.alpha(t), z), expand(process.sigma(t), z)
    off = (z - alpha * M) / (alpha**2 * S**2 + sigma**2)
    return Denoised(M + alpha * S**2 * off, sigma * off)

  return denoise


@functools.partial(jax.jit, static_argnums=(0, 1))
def flow_down(process, energy, z, scale):
  """From where log SNR is -18 to where it is 18, by 1000 steps."""
  times = process.time(jnp.linspace(-18.0, 18.0, 1001).astype(z.dtype))
  steered = energy_guided(process, gaussian(process), energy, scale)
  return sample(
    process,
    steered,
    DDIM(),
    process.sigma(times[0]) * z,
    adjacent_pairs(times),
    jax.random.split(jax.random.key(0), len(z)),
  )


def linear(x0):
  return jnp.sum(1.5 * x0, 1)


def quadratic(x0):
  return jnp.sum(0.5 * (x0 - Y) ** 2, 1)


@processes
def test_a_linear_energy_tilts_gaussian_data_exactly(process):
  with jax.enable_x64(True):
    z, scale = jnp.linspace(-2, 2, 9)[:, None], jnp.linspace(-0.5, 1, 9)
    np.testing.assert_allclose(
      flow_down(process, linear, z, scale), M - 1.5 * S**2 * scale[:, None] + S * z, atol=6e-3
    )


@processes
def test_a_quadratic_energy_tilts_gaussian_data_to_first_order(process):
  """The derivative by k at 0 of the tilted quantiles: S^2 (Y - M) in the mean, -S^3 / 2 in the
  standard deviation.
  """
  with jax.enable_x64(True):
    z, k = jnp.linspace(-2, 2, 9)[:, None], 1e-3
    up, down = (flow_down(process, quadratic, z, jnp.float64(scale)) for scale in (k, -k))
    np.testing.assert_allclose((up - down) / (2 * k), S**2 * (Y - M) - 0.5 * S**3 * z, atol=1e-3)


@processes
def test_an_energy_adds_its_gradient_to_the_score(process):
  t, denoise = jnp.float32(0.4), gaussian(process)
  z = place(process, t).reshape(8, 18)
  out = energy_guided(process, denoise, quadratic, SCALES)(z, t)
  alpha, sigma = process.alpha(t), process.sigma(t)
  # of x0 given z; d x0 / d z = alpha / sigma^2 of it
  variance = S**2 * sigma**2 / (alpha**2 * S**2 + sigma**2)
  slope = SCALES[:, None] * (denoise(z, t).x0 - Y)
  np.testing.assert_allclose(out.x0, denoise(z, t).x0 - variance * slope, rtol=1e-3, atol=1e-4)
  np.testing.assert_allclose(
    out.eps, denoise(z, t).eps + alpha / sigma * variance * slope, rtol=1e-3, atol=1e-4
  )
  consistent(process, out, z, t)


@processes
def test_an_energy_is_finite_at_both_ends_and_silent_outside_its_interval(process):
  for t in (0.0, 1e-3, 0.999, 1.0):
    t = jnp.float32(t)
    z = place(process, t).reshape(8, 18)
    consistent(process, energy_guided(process, gaussian(process), quadratic, 0.1)(z, t), z, t)
  t = jnp.float32(0.4)
  z = place(process, t).reshape(8, 18)
  for low, high in ((40.0, 50.0), (-50.0, -40.0)):
    close(energy_guided(process, gaussian(process), quadratic, 0.5, low, high)(z, t), gaussian(process)(z, t))
  for end in (0.0, 1.0):
    z, end = place(process, end).reshape(8, 18), jnp.float32(end)
    said, out = gaussian(process)(z, end), energy_guided(process, gaussian(process), quadratic)(z, end)
    assert (float(jnp.abs(out.x0 - said.x0).max()) == 0) == (end == 0 or process.alpha(end) == 0)
