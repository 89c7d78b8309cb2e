"""What order each sampler has, and how it is measured: read by the tests and by benchmarks/samplers.py.

Orders above 2 are measured from exact history: the first `warm` steps begin on the exact flow,
since steps of lower order at the beginning would leave an error of lower order.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

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
from jldm.samplers.runge_kutta import RK4
from jldm.samplers.sample import scan_steps
from jldm.samplers.unipc import UniPC
from tests.samplers.gaussian import measured_order
from tests.samplers.mixture import MEANS, STDS, WEIGHTS, data, mixture


class Row(NamedTuple):
  sampler: Any
  order: float
  warm: int = 0
  evaluations: int = 1  # a step


DETERMINISTIC = {
  "DDIM, Euler": Row(DDIM(), 1),
  "Heun": Row(Heun(), 2, evaluations=2),
  "Heun, Karras' clock": Row(Heun(Ratio()), 2, evaluations=2),
  "RK4": Row(RK4(), 4, evaluations=4),
  "DPM-Solver++ 2S": Row(DPMSolverPPSingle(2), 2),
  "DPM-Solver++ 3S": Row(DPMSolverPPSingle(3), 3),
  "DPM-Solver++ 2M": Row(DPMSolverPP(2), 2),
  "DPM-Solver++ 2M, heun": Row(DPMSolverPP(2, solver_type="heun"), 2),
  "DPM-Solver++ 3M, as published": Row(DPMSolverPP(3), 2, 4),
  "DPM-Solver++ 3M, exact D2": Row(DPMSolverPP(3, exact_d2=True), 3, 4),
  "UniPC-1": Row(UniPC(1), 2),
  "UniPC-2": Row(UniPC(2), 3, 4),
  "UniPC-2, bh1": Row(UniPC(2, solver_type="bh1"), 3, 4),
  "UniPC-3": Row(UniPC(3), 4, 4),
  "DEIS-2": Row(DEIS(2), 2),
  "DEIS-3": Row(DEIS(3), 3, 4),
  "DEIS-4, LMS": Row(DEIS(4), 4, 4),
  # of fourth order on steps that are even in sigma / alpha; these are even in log SNR
  "PNDM": Row(PNDM(), 2),
  "iPNDM": Row(PNDM("none"), 2),
}
STOCHASTIC = {  # expected: the error of moments halves with the step
  "DDIM, eta 1; Euler ancestral; DDPM": Row(DDIM(1.0), 1),
  "DDPM, large variance": Row(Ancestral("fixed_large"), 1),
  "SDE-DPM-Solver++ 2M": Row(DPMSolverPP(2, eta=1.0), 1),
  "SDE-DPM-Solver++ 3M": Row(DPMSolverPP(3, eta=1.0), 1),
  "SDE-DPM-Solver++ 2S": Row(DPMSolverPPSingle(2, eta=1.0), 1),
  "Heun with churn": Row(Churn(Heun(), gamma=0.1), 1, evaluations=2),
  "DDIM with Langevin correction": Row(PredictorCorrector(DDIM()), 1, evaluations=2),
  "Consistency": Row(Consistency(), 1),
}


def tolerance(order: float) -> tuple[float, float]:
  """The orders that pass: within 0.15 up to order 2, at least order - 0.25 above."""
  return (order - 0.15, order + 0.15) if order <= 2 else (order - 0.25, np.inf)


def on_gaussian(process: Any, row: Row, **between) -> float:
  return measured_order(process, row.sampler, warm=row.warm, **between)


def on_mixture(process: Any, row: Row) -> float:
  """The flow of the mixture is found by Runge-Kutta with sixteen steps for each."""
  return measured_order(process, row.sampler, warm=row.warm, make=mixture, flow=fine, z=plane())


def plane() -> jax.Array:
  """Nine places [9, 2]."""
  side = jnp.linspace(-1.5, 1.5, 3)
  return jnp.stack(jnp.meshgrid(side, side), -1).reshape(-1, 2)


def fine(process: Any, z: jax.Array, times: jax.Array, parts: int = 16) -> jax.Array:
  """z [B, 2] at times[0] -> the flow at every time [N + 1, B, 2]."""
  low, high = (2 * (jnp.log(process.alpha(u)) - jnp.log(process.sigma(u))) for u in (times[0], times[-1]))
  dense = process.time(jnp.linspace(low, high, parts * (len(times) - 1) + 1))
  keys = jax.random.split(jax.random.key(0), len(z))
  run = jax.jit(
    lambda z, pairs: scan_steps(process, mixture(process), RK4(), z, pairs, keys, keep=lambda state: state.z)[
      1
    ]
  )
  return jnp.concatenate([z[None], run(z, adjacent_pairs(dense))[parts - 1 :: parts]])


def weak_errors(
  process: Any, row: Row, steps: tuple[int, ...], count: int, low: float = -4.0, high: float = 4.0
) -> list[float]:
  """Error of E|z|^2 at the end, relative, of `count` paths on the mixture that begin as the forward
  process has it.
  """
  key_data, key_start, key_path = jax.random.split(jax.random.key(0), 3)
  errors = []
  for number in steps:
    times = log_snr_uniform(process, number, low, high)
    z = process.alpha(times[0]) * data(key_data, count) + process.sigma(times[0]) * jax.random.normal(
      key_start, (count, 2)
    )
    reached = ended(process, row.sampler, z, adjacent_pairs(times), jax.random.split(key_path, count))
    moment = lambda t: sum(
      w * (process.alpha(t) ** 2 * (sum(np.square(m)) + 2 * s**2) + 2 * process.sigma(t) ** 2)
      for w, m, s in zip(WEIGHTS, MEANS, STDS)
    )
    errors.append(float(jnp.mean(jnp.sum(reached**2, 1)) / moment(times[-1]) - 1))
  return errors


@functools.partial(jax.jit, static_argnums=0)
def ended(process, sampler, z, pairs, keys):
  return scan_steps(process, mixture(process), sampler, z, pairs, keys)[0].z
