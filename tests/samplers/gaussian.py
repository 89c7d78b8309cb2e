"""Networks known in closed form, and the order of a sampler on the first of them.

(1)  data ~ N(MEAN, STD^2) in every place:  z_t ~ N(alpha MEAN, spread^2)
     with spread^2 = alpha^2 STD^2 + sigma^2
(2)  E[x0 | z] = MEAN + alpha STD^2 / spread^2 (z - alpha MEAN)
     E[eps | z] = sigma / spread^2 (z - alpha MEAN)
(3)  the probability flow maps quantiles to quantiles:
     z_s = alpha_s MEAN + spread_s / spread_t (z_t - alpha_t MEAN)
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jldm.core.specs import Output
from jldm.diffusion.process import Cosine, Flow
from jldm.diffusion.target import Denoised, Predict, denoiser
from jldm.samplers.ancestral import Ancestral
from jldm.samplers.churn import Churn
from jldm.samplers.clock import Ratio
from jldm.samplers.consistency import Consistency
from jldm.samplers.ddim import DDIM
from jldm.samplers.deis import DEIS, PNDM
from jldm.samplers.dpm_solver import DPMSolverPP, DPMSolverPPSingle
from jldm.samplers.grid import log_snr_uniform
from jldm.samplers.heun import Heun
from jldm.samplers.pairs import adjacent_pairs
from jldm.samplers.predictor_corrector import PredictorCorrector
from jldm.samplers.resample import Resample
from jldm.samplers.runge_kutta import RK4
from jldm.samplers.sample import sample
from jldm.samplers.unipc import UniPC
from tests.compiling import UNOPTIMIZED

MEAN, STD = 0.7, 0.5
PROCESSES = [Cosine(), Flow()]
FLOWS = [  # samplers of the probability flow
  DDIM(),
  Heun(),
  Heun(Ratio()),
  RK4(),
  DPMSolverPP(),
  DPMSolverPP(3, exact_d2=True),
  DPMSolverPPSingle(3),
  UniPC(3),
  DEIS(),
  PNDM(),
  PNDM("prk"),
]
NOISY = [  # and those that draw noise on the way
  DDIM(1.0),
  Ancestral("fixed_large"),
  DPMSolverPP(3, eta=1.0),
  DPMSolverPPSingle(eta=1.0),
  Churn(gamma=0.3),
  PredictorCorrector(),
  Consistency(),
  Resample(DPMSolverPP()),
]
SAMPLERS = FLOWS + NOISY
# sigma / alpha is their clock: steps near noise are long
IN_RATIO = [Heun(Ratio()), DEIS(), PNDM(), PNDM("prk")]


def gaussian(process):
  """The exact posterior mean (2), finite at both ends."""

  def denoise(z, t, estimate=None, to=None):
    alpha, sigma = process.alpha(t), process.sigma(t)
    off = (z - alpha * MEAN) / (alpha**2 * STD**2 + sigma**2)
    return Denoised(MEAN + alpha * STD**2 * off, sigma * off)

  return denoise


def network(process):
  """An arbitrary smooth network that predicts v: x0 and eps belong to z and to nothing else."""
  return denoiser(
    process, Predict("v"), lambda z, level, estimate, to: Output(jnp.sin(3 * z + level[:, None]))
  )


def point(process):
  """All data is MEAN: the flow is a straight line, and eps at t = 0 is not a number."""

  def denoise(z, t, estimate=None, to=None):
    return Denoised(jnp.full_like(z, MEAN), (z - process.alpha(t) * MEAN) / process.sigma(t))

  return denoise


def flow(process, z, t, s):
  """Equation (3)."""
  spread = lambda u: jnp.sqrt((process.alpha(u) * STD) ** 2 + process.sigma(u) ** 2)
  return process.alpha(s) * MEAN + spread(s) / spread(t) * (z - process.alpha(t) * MEAN)


@functools.partial(jax.jit, static_argnums=(0, 1), compiler_options=UNOPTIMIZED)
def walk(process, make, sampler, z, pairs, keys):
  """`sample` with the denoiser make(process), compiled once a kind of sampler and shape."""
  return sample(process, make(process), sampler, z, pairs, keys)


@functools.partial(jax.jit, static_argnums=(0, 1), compiler_options=UNOPTIMIZED)
def step(process, make, sampler, state, t, s, keys):
  """One step from a state."""
  return sampler.step(process, make(process), state, t, s, keys)


def start(process, sampler, z, t):
  """The state of a sampler at z, before its first step from t."""
  return sampler.init(process, z, jnp.full((1, 2), t))


@functools.partial(jax.jit, static_argnums=(0, 1), compiler_options=UNOPTIMIZED)
def walk_beside(process, make, sampler, exact, times, keys, warm):
  """As `walk` along `times` [N + 1], but the first `warm` steps begin where the flow `exact` [N + 1,
  B, ...] really is.
  """

  def body(state, interval):
    i, t, s, z = interval
    state = state._replace(z=jnp.where(i < warm, z, state.z))
    return sampler.step(process, make(process), state, t, s, keys), None

  intervals = jnp.arange(len(times) - 1), times[:-1], times[1:], exact[:-1]
  return jax.lax.scan(body, sampler.init(process, exact[0], adjacent_pairs(times)), intervals)[0].z


def measured_order(
  process, sampler, low=-4.0, high=4.0, warm=0, steps=(128, 512), make=gaussian, flow=None, z=None
):
  """Slope of log error on log steps, on a grid inside the ends and uniform in log SNR, in float64.

  The flow is the closed form, or `flow`(process, z, times) -> [N + 1, B, ...]; the first `warm`
  steps begin on it.
  """
  with jax.enable_x64(True):
    z = jnp.linspace(-2, 2, 9)[:, None] if z is None else jnp.asarray(z, jnp.float64)
    errors, keys = [], jax.random.split(jax.random.key(0), 9)
    for count in steps:
      times = log_snr_uniform(process, count, low, high)
      exact = paths(process, z, times) if flow is None else flow(process, z, times)
      reached = walk_beside(process, make, sampler, exact, times, keys, warm)
      errors.append(float(jnp.abs(reached - exact[-1]).max()))
  return np.log(errors[0] / errors[-1]) / np.log(steps[-1] / steps[0])


def paths(process, z, times):
  """Equation (3) at every time: z [B, ...] at times[0] -> [N + 1, B, ...]."""
  return jax.vmap(lambda s: flow(process, z, times[0], s))(times)
