"""Samplers against the schedulers of diffusers 0.42, whose paths are kept in tests/parity/schedulers.npz.

Theirs in z / alpha (Euler, Heun, LMS) are ours divided by alpha.  A state is compared with theirs
by max|difference| / max|theirs|, at every end of a step, so that neither a scale nor the noisy end
hides anything.  Where theirs go wrong, OTHERWISE, a test has their path with the mistake made, and
ours without.
"""

import dataclasses
import functools
import importlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jldm.core.trees import pytree
from jldm.diffusion.process import EDM, Betas, CosineBetas, Discrete, Flow, LinearBetas, Rates
from jldm.diffusion.target import Precondition, Predict, decode
from jldm.samplers import grid
from jldm.samplers.ancestral import Ancestral
from jldm.samplers.churn import Churn, karras_gamma
from jldm.samplers.clock import Ratio
from jldm.samplers.consistency import Consistency, with_boundary
from jldm.samplers.ddim import DDIM
from jldm.samplers.deis import DEIS, PNDM
from jldm.samplers.dpm_solver import DPMSolverPP, DPMSolverPPSingle
from jldm.samplers.exponential import exponential_moments, lagrange_weights
from jldm.samplers.heun import Heun
from jldm.samplers.pairs import adjacent_pairs
from jldm.samplers.unipc import UniPC
from tests.compiling import UNOPTIMIZED
from tests.parity.schedulers import CASES, STEPS, network

FIXTURE = dict(np.load(Path(__file__).parents[1] / "parity" / "schedulers.npz"))
TOLERANCE = {"float64": 1e-6, "float32": 2e-5}
KINDS = {"epsilon": "eps", "v_prediction": "v", "sample": "x0"}
DRAWS = ("ancestral", "ddim", "exponential", "consistency", "sample")  # the modules that draw
NO_SIGMAS = ("DDPM", "DDIM", "PNDM", "LCM")
OTHERWISE = (
  "ddpm_large_trailing",
  "pndm_plms_v",
  "pndm_prk_v",
  "euler_churn",
  "dpm_sde_3",
  "single_sde_3_heun",
)


class Once(Discrete):
  """A chain whose rates are traced once, and not at every place where a sampler asks."""

  def alpha(self, t):
    return rate(self, "alpha", t)

  def sigma(self, t):
    return rate(self, "sigma", t)


@functools.partial(jax.jit, static_argnums=(0, 1))
def rate(process, name, t):
  return getattr(Discrete, name)(process, t)


def almost_zero_snr():
  """Where diffusers needs a finite ratio it has alpha^2 = 2^-24 in place of the last 0."""
  alphas = np.cos(Discrete(rescale_betas_zero_snr=True).angles()[0][1:] * np.pi / 2) ** 2
  alphas[-1] = 2.0**-24
  return Once(Betas(tuple(1 - alphas / np.concatenate([[1.0], alphas[:-1]]))))


def process_of(case):
  if case.scheduler.startswith("EDM"):
    return EDM()
  if case.scheduler.startswith("Flow"):
    return Flow()
  if case.config.get("rescale_betas_zero_snr"):
    exact = case.scheduler in ("DDPM", "DDIM", "LCM")
    return Once(rescale_betas_zero_snr=True) if exact else almost_zero_snr()
  return {"linear": Once(LinearBetas()), "squaredcos_cap_v2": Once(CosineBetas())}.get(
    case.config.get("beta_schedule"), Once()
  )


def times_of(case, process, steps):
  """Pairs [N, 2]."""
  config = case.config
  if case.scheduler.startswith("Flow"):
    return adjacent_pairs(flow_times(config.get("shift", 1.0), steps))
  if case.scheduler.startswith("EDM"):
    made = getattr(grid, config.get("sigma_schedule", "karras"))
    return adjacent_pairs(made(process, steps, 0.002, 80.0))
  if case.scheduler == "LCM":
    return adjacent_pairs(grid.lcm(process, steps))
  for name, made in {"karras": grid.karras, "exponential": grid.exponential, "beta": grid.beta_ratio}.items():
    if config.get(f"use_{name}_sigmas"):
      return adjacent_pairs(made(process, steps))
  times = spaced(case, process, steps)
  if case.scheduler in ("DDIM", "PNDM"):
    return grid.strided(
      process,
      times,
      0.0 if config.get("set_alpha_to_one", case.scheduler == "DDIM") else 1 / process.num_train_timesteps,
    )
  if config.get("final_sigmas_type") == "sigma_min":
    times = times.at[-1].set(1 / process.num_train_timesteps)
  return adjacent_pairs(times)


def spaced(case, process, steps):
  """Times [N + 1]."""
  spacing, spare = (
    case.config.get("timestep_spacing", "linspace"),
    int(case.scheduler.startswith(("DPM", "UniPC"))),
  )
  if spacing == "leading":
    return grid.leading(process, steps, case.config.get("steps_offset", 0), spare)
  if spacing == "trailing":
    return grid.trailing(process, steps)
  return grid.linspace(
    process, steps, spare, rounded=case.scheduler not in ("Euler", "EulerAncestral", "Heun", "LMS")
  )


def flow_times(shift, steps, count=1000):
  return grid.shifted(steps, shift, shift / count / (1 + (shift - 1) / count))


def sampler_of(case, steps):
  config = case.config
  order, solver_type = config.get("solver_order"), config.get("solver_type", "midpoint")
  eta = float(config.get("algorithm_type") == "sde-dpmsolver++")
  return {
    "DDPM": lambda: Ancestral(config.get("variance_type", "fixed_small")),
    "DDIM": lambda: DDIM(case.step.get("eta", 0.0)),
    "PNDM": lambda: PNDM("plms" if config.get("skip_prk_steps") else "prk"),
    "Euler": lambda: churned(case.step, steps) if case.step else DDIM(),
    "EDMEuler": DDIM,
    "FlowMatchEuler": lambda: Consistency() if config.get("stochastic_sampling") else DDIM(),
    "EulerAncestral": lambda: DDIM(1.0),
    "Heun": lambda: Heun(Ratio()),
    "LMS": lambda: DEIS(case.step.get("order", 4)),
    "DPMSolverMultistep": lambda: DPMSolverPP(order, eta, solver_type, lower_order_final=steps < 15),
    "EDMDPMSolverMultistep": lambda: DPMSolverPP(order, eta, solver_type, lower_order_final=steps < 15),
    "DPMSolverSinglestep": lambda: DPMSolverPPSingle(order, eta, solver_type),
    "UniPCMultistep": lambda: UniPC(
      order, config.get("solver_type", "bh2"), config.get("lower_order_final", True)
    ),
    "LCM": Consistency,
  }[case.scheduler]()


def churned(arguments, steps):
  gamma = karras_gamma(arguments["s_churn"], steps)
  return Churn(DDIM(), gamma, arguments["s_tmin"], arguments["s_tmax"], arguments["s_noise"])


def denoiser(process, kind, scale):
  """The fixture's network; kind [3] is 1 where it predicts x0, eps or v, and scale that of LCM's
  boundary, or None.
  """

  def denoise(z, t, estimate=None, to=None):
    alpha, sigma = process.alpha(t), process.sigma(t)
    r = Rates(alpha, sigma, -1, 1)  # derivatives of Flow, where alone they matter
    row, c_in = (kind[0] - kind[2] * sigma, kind[1] + kind[2] * alpha), 1
    if not isinstance(process, Discrete):
      parametrization = Predict("flow") if isinstance(process, Flow) else Precondition(0.5)
      row, c_in = parametrization.row(r), parametrization.c_in(r)
    weights = (FIXTURE[name].astype(z.dtype) for name in ("weight", "bias"))
    output, variance = network(jnp, c_in * z, jnp.arctan2(sigma, alpha), *weights)
    return decode(row, r, z, output)._replace(variance=variance)

  return denoise if scale is None else with_boundary(process, denoise, 0.5, scale)


@functools.partial(jax.jit, static_argnums=(0, 1), compiler_options=UNOPTIMIZED)
def step(process, scale, sampler, state, t, s, noise, kind):
  return sampler.step(process, denoiser(process, kind, scale), state, t, s, noise)


def path(case, steps, dtype, sampler=None):
  """Ours [N + 1, ...] in their scale, over the same noise."""
  process = process_of(case)
  pairs = times_of(case, process, steps)
  scaled = case.scheduler in ("Euler", "EulerAncestral", "Heun", "LMS")
  alpha = np.asarray(process.alpha(jnp.append(pairs[:, 0], pairs[-1, 1]))) if scaled else np.ones(steps + 1)
  z = jnp.asarray(theirs(case, steps)[0] * alpha[0], dtype)
  predicted = KINDS[case.config.get("prediction_type", "epsilon")]
  kind = jnp.asarray([predicted == each for each in ("x0", "eps", "v")], dtype)
  scale = case.config.get("timestep_scaling", 10.0) * 1000 if case.scheduler == "LCM" else None
  sampler = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), sampler or sampler_of(case, steps))
  state, ours = sampler.init(process, z, pairs), [z]
  for t, s, noise in zip(*np.asarray(pairs.T), FIXTURE["noises"].astype(dtype)):
    state = step(process, scale, sampler, state, t, s, noise, kind)
    ours.append(state.z)
  return np.stack(ours) / alpha[:, None, None, None]


def theirs(case, steps):
  return FIXTURE[f"paths.{steps}"][list(CASES.values()).index(case)].astype(np.float64)


def apart(ours, theirs):
  assert ours.shape == theirs.shape
  return max(np.abs(a - b).max() / np.abs(b).max() for a, b in zip(ours, theirs, strict=True))


def measured(name, dtype="float64", make=lambda case, steps: None):
  """The most that ours are apart from theirs, of 7, 20 and 50 steps."""
  case = CASES[name]
  with jax.enable_x64(dtype == "float64"):
    return max(apart(path(case, steps, dtype, make(case, steps)), theirs(case, steps)) for steps in STEPS)


@pytest.fixture(autouse=True)
def noise_for_keys(monkeypatch):
  """Samplers draw what they are handed in place of keys."""
  for name in DRAWS:
    monkeypatch.setattr(
      importlib.import_module(f"jldm.samplers.{name}"), "normal_like", lambda keys, like: keys
    )
  monkeypatch.setattr(importlib.import_module("jldm.samplers.churn"), "split_each", lambda keys: (keys, keys))


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.scheduler not in NO_SIGMAS])
def test_every_level_is_theirs(name):
  """Their table of sigmas is that of sigma / alpha, or t of a flow."""
  case, process = CASES[name], process_of(CASES[name])
  for steps in STEPS:
    with jax.enable_x64(True):
      pairs = times_of(case, process, steps)
      times = np.append(pairs[:, 0], pairs[-1, 1])
      ours = times if isinstance(process, Flow) else grid.sigma_ratio(process, times)
    np.testing.assert_allclose(ours, FIXTURE[f"sigmas.{steps}"][list(CASES).index(name)], rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float64", pytest.param("float32", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", [name for name in CASES if name not in OTHERWISE])
def test_every_state_is_theirs(name, dtype):
  assert measured(name, dtype) < TOLERANCE[dtype]


@pytest.mark.parametrize(
  "name, other",
  [
    ("ddpm_small", Ancestral("fixed_large")),
    ("ddim_half", DDIM(0.51)),
    ("pndm_plms", PNDM("prk")),
    ("heun", Heun()),
    ("lms", DEIS(3)),
    ("dpm_2", DPMSolverPP(2, solver_type="heun")),
    ("dpm_3", DPMSolverPP(3, exact_d2=True)),
    ("single_3", DPMSolverPPSingle(3, solver_type="heun")),
    ("unipc_2", UniPC(2, "bh1")),
    ("unipc_3_whole", UniPC(3, lower_order_final=True)),
  ],
  ids=lambda value: value if isinstance(value, str) else "",
)
def test_its_nearest_relative_is_not_theirs(name, other):
  with jax.enable_x64(True):
    assert apart(path(CASES[name], 50, "float64", other), theirs(CASES[name], 50)) > 10 * TOLERANCE["float64"]


def test_ddpm_of_large_variance_adds_noise_to_the_data():
  """Theirs leave the last noise out at timestep 0 alone, where trailing timesteps never come."""
  case = CASES["ddpm_large_trailing"]
  with jax.enable_x64(True):
    for steps in STEPS:
      ours, wrong = path(case, steps, "float64"), theirs(case, steps)
      last = grid.trailing(process_of(case), steps)[-2]
      assert apart(ours[:-1], wrong[:-1]) < TOLERANCE["float64"]
      noisy = ours[-1] + process_of(case).sigma(last) * FIXTURE["noises"][steps - 1]
      assert apart(noisy[None], wrong[-1:]) < TOLERANCE["float64"] and apart(ours[-1:], wrong[-1:]) > 0.1


@pytree
@dataclasses.dataclass(frozen=True)
class WrongSign(DPMSolverPP):
  """Minus where plus belongs in (1 - exp(-2h) - 2h) / (2h)^2 + 1/2, the weight of D2."""

  def table(self, kappa, r):
    _, m1, m2 = exponential_moments(kappa, 2)
    return [*super().table(kappa, r)[:2], lagrange_weights(r, [m1, 0.5 * m2 - 1])]


@pytree
@dataclasses.dataclass(frozen=True)
class WrongSignSingle(DPMSolverPPSingle):
  """The same, where their D2 is twice the divided difference."""

  def table(self, kappa, r):
    _, m1, m2 = exponential_moments(kappa, 2)
    return [*super().table(kappa, r)[:2], lagrange_weights(r, [m1, m2 - 2])]


@pytest.mark.parametrize(
  "name, wrong",
  [
    ("dpm_sde_3", lambda case, steps: WrongSign(3, 1.0, lower_order_final=steps < 15)),
    ("single_sde_3_heun", lambda case, steps: WrongSignSingle(3, 1.0, solver_type="heun")),
  ],
)
def test_the_third_order_with_noise_has_a_sign_wrong(name, wrong):
  assert measured(name, make=wrong) < TOLERANCE["float64"]
  assert measured(name) > 0.1


def rates(case, t):
  """alpha and sigma at t [], on the host."""
  process = process_of(case)
  return float(process.alpha(t)), float(process.sigma(t))


def output(z, ratio):
  """The fixture's network at z as it is fed, on the host."""
  return network(np, z, np.arctan(ratio), FIXTURE["weight"], FIXTURE["bias"])[0]


def pndm(case, steps, late):
  """PNDM of a network that predicts v.  `late`: outputs are averaged before eps is made of them."""
  z = theirs(case, steps)[0]
  past, walked, is_plms = [], [z], case.config.get("skip_prk_steps", False)

  def actual(z, t):
    alpha, sigma = rates(case, t)
    v = output(z, sigma / alpha)
    return v if late else alpha * v + sigma * z

  def moved(t, s, prediction):
    (alpha, sigma), (alpha_s, sigma_s) = rates(case, t), rates(case, s)
    eps = alpha * prediction + sigma * z if late else prediction
    return alpha_s * (z - sigma * eps) / alpha + sigma_s * eps

  for k, (t, s) in enumerate(np.asarray(times_of(case, process_of(case), steps))):
    past = [actual(z, t), *past][:4]
    if k == 0 and is_plms:
      prediction = (past[0] + actual(moved(t, s, past[0]), s)) / 2
    elif k < 3 and not is_plms:
      middle = (t + s) / 2
      second = actual(moved(t, middle, past[0]), middle)
      third = actual(moved(t, middle, second), middle)
      prediction = (past[0] + 2 * second + 2 * third + actual(moved(t, s, third), s)) / 6
    else:
      weights = {2: (3 / 2, -1 / 2), 3: (23 / 12, -16 / 12, 5 / 12), 4: (55 / 24, -59 / 24, 37 / 24, -9 / 24)}
      prediction = sum(weight * each for weight, each in zip(weights[len(past)], past))
    z = moved(t, s, prediction)
    walked.append(z)
  return np.stack(walked)


@pytest.mark.parametrize("name", ["pndm_plms_v", "pndm_prk_v"])
def test_pndm_averages_v_as_if_it_were_eps(name):
  """v of different times, of which eps is then made with the rates and the z of one."""
  case = CASES[name]
  with jax.enable_x64(True):
    for steps in STEPS[:2]:
      ours, wrong = path(case, steps, "float64"), theirs(case, steps)
      assert apart(pndm(case, steps, late=False), ours) < TOLERANCE["float64"]
      assert apart(pndm(case, steps, late=True), wrong) < TOLERANCE["float64"]
      assert apart(ours, wrong) > 0.01


def euler(case, steps, late):
  """Euler in z / alpha of a network that predicts eps, with churn.  `late`: noise is added after the
  evaluation.
  """
  y = theirs(case, steps)[0]
  times = times_of(case, process_of(case), steps)
  ratios = [sigma / alpha for alpha, sigma in (rates(case, t) for t in [*times[:, 0], times[-1, 1]])]
  walked, gamma = [y], karras_gamma(case.step["s_churn"], steps)
  for ratio, after, noise in zip(ratios, ratios[1:], FIXTURE["noises"]):
    up = ratio * (1 + gamma) if case.step["s_tmin"] <= ratio <= case.step["s_tmax"] else ratio
    noisy = y + np.sqrt(up**2 - ratio**2) * case.step["s_noise"] * noise
    eps = output(y / np.hypot(1, ratio), ratio) if late else output(noisy / np.hypot(1, up), up)
    y = noisy + (after - up) * eps
    walked.append(y)
  return np.stack(walked)


def test_churn_comes_after_the_evaluation():
  """Their caller has asked the network before `step` adds noise, so that it never sees it."""
  case = CASES["euler_churn"]
  with jax.enable_x64(True):
    for steps in STEPS:
      ours, wrong = path(case, steps, "float64"), theirs(case, steps)
      assert apart(euler(case, steps, late=False), ours) < TOLERANCE["float64"]
      assert apart(euler(case, steps, late=True), wrong) < TOLERANCE["float64"]
      assert apart(ours, wrong) > 0.01
