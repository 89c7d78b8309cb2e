import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jldm.core.errors import UserError
from jldm.diffusion.process import EDM, Cosine
from jldm.samplers.deis import DEIS, PNDM
from jldm.samplers.pairs import adjacent_pairs
from jldm.samplers.sample import sample
from tests.samplers.gaussian import flow, gaussian, measured_order, network, start, step, walk

Z = jax.random.normal(jax.random.key(0), (8, 3))
KEYS = jax.random.split(jax.random.key(1), 8)


def test_order_two_is_the_integral_of_the_line_through_two_estimates():
  process = EDM()
  with jax.enable_x64(True):
    z, denoise, times, last = (
      jnp.asarray(Z, jnp.float64),
      network(process),
      jnp.array([0.6, 0.5, 0.45, 0.3]),
      None,
    )
    state = start(process, DEIS(2), z, times[0])
    for t, s in itertools.pairwise(times):
      eps, rho_t, rho_s = denoise(z, t).eps, process.sigma(t), process.sigma(s)
      slope = 0.0 if last is None else (eps - last[0]) / (rho_t - last[1])
      z, last = z + (rho_s - rho_t) * eps + (rho_s - rho_t) ** 2 / 2 * slope, (eps, rho_t)
      state = step(process, network, DEIS(2), state, t, s, KEYS)
      np.testing.assert_allclose(state.z, z, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("sampler", [PNDM(), PNDM("prk"), PNDM("none")], ids=repr)
def test_the_fourth_step_has_the_weights_of_the_paper(sampler):
  process, times = EDM(), jnp.float32([0.6, 0.55, 0.5, 0.45, 0.4])
  state = start(process, sampler, Z, times[0])
  eps = []
  for t, s in itertools.pairwise(times):
    eps.insert(0, network(process)(state.z, t).eps)
    before, state = state.z, step(process, network, sampler, state, t, s, KEYS)
  mixed = (55 * eps[0] - 59 * eps[1] + 37 * eps[2] - 9 * eps[3]) / 24
  np.testing.assert_allclose(
    state.z, before + (process.sigma(s) - process.sigma(t)) * mixed, rtol=1e-4, atol=1e-4
  )


@pytest.mark.parametrize(
  ("sampler", "evaluations"), [(DEIS(4), 6), (PNDM("none"), 6), (PNDM(), 7), (PNDM("prk"), 15)], ids=repr
)
def test_evaluations_of_six_steps(sampler, evaluations):
  calls = []

  def denoise(z, t, estimate=None, to=None):
    jax.debug.callback(lambda: calls.append(1))
    return network(Cosine())(z, t)

  times = jnp.linspace(0.9, 0.3, 7)
  jax.block_until_ready(sample(Cosine(), denoise, sampler, Z, jnp.stack([times[:-1], times[1:]], 1), KEYS))
  jax.effects_barrier()
  assert len(calls) == evaluations


@pytest.mark.parametrize(
  ("sampler", "least"), [(PNDM(), 3.5), (PNDM("prk"), 3.5), (PNDM("none"), 1.75)], ids=repr
)
def test_order_on_steps_even_in_sigma(sampler, least):
  process, errors = EDM(), []
  with jax.enable_x64(True):
    z, keys = jnp.linspace(-2, 2, 9)[:, None], jax.random.split(jax.random.key(0), 9)
    for steps in (128, 512):
      times = process.time(-2 * jnp.log(jnp.linspace(2.0, 0.2, steps + 1)))
      reached = walk(process, gaussian, sampler, z, adjacent_pairs(times), keys)
      errors.append(float(jnp.abs(reached - flow(process, z, times[0], times[-1])).max()))
  assert np.log(errors[0] / errors[1]) / np.log(4) > least


def test_orders_without_exact_history_are_those_of_the_beginning():
  assert abs(measured_order(Cosine(), PNDM("prk")) - 2) < 0.15, (
    "of second order on steps that are not even in sigma / alpha"
  )


def test_mistakes():
  with pytest.raises(UserError, match=r"^order=5; expected 1 to 4$"):
    DEIS(5)
  with pytest.raises(UserError, match=r"^warmup='hot'; expected one of \['none', 'plms', 'prk'\]$"):
    PNDM("hot")
