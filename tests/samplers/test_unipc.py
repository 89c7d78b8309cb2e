import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jldm.core.errors import UserError
from jldm.diffusion.process import Cosine, Flow, half_log_snr
from jldm.samplers.ddim import DDIM
from jldm.samplers.sample import replace_z
from jldm.samplers.unipc import UniPC
from tests.samplers.gaussian import gaussian, network, start, step, walk

Z = jax.random.normal(jax.random.key(0), (8, 3))
KEYS = jax.random.split(jax.random.key(1), 8)


def test_order_one_is_the_paper_s_predictor_and_corrector():
  """Both in data prediction with p = 1: DDIM, then the last step again with B(h) / 2 times the change."""
  process = Cosine()
  with jax.enable_x64(True):
    lam, denoise, solver = lambda u: half_log_snr(process, u), network(process), UniPC(1)
    z, times, last = jnp.asarray(Z, jnp.float64), jnp.array([0.9, 0.7, 0.4, 0.1]), None
    state = start(process, solver, z, times[0])
    for t, s in itertools.pairwise(times):
      x0 = denoise(z, t).x0
      if last is not None:  # of the place before: (z, x0, time)
        z_r, x0_r, r = last
        grown = -jnp.expm1(lam(r) - lam(t)) * process.alpha(t)
        z = process.sigma(t) / process.sigma(r) * z_r + grown * x0_r + grown / 2 * (x0 - x0_r)
      last = (z, x0, t)
      z = process.sigma(s) / process.sigma(t) * z - jnp.expm1(lam(t) - lam(s)) * process.alpha(s) * x0
      state = step(process, network, solver, state, t, s, KEYS)
      np.testing.assert_allclose(state.z, z, rtol=1e-10, atol=1e-12)


def test_a_state_that_was_moved_is_not_corrected():
  process, solver = Flow(), UniPC(2)
  state = start(process, solver, Z, 0.9)
  for pair in ((0.9, 0.7), (0.7, 0.5)):
    state = step(process, network, solver, state, *jnp.float32(pair), KEYS)
  t, s = jnp.float32(0.5), jnp.float32(0.3)
  after = step(process, network, solver, replace_z(state, Z), t, s, KEYS).z
  np.testing.assert_allclose(
    after, step(process, network, solver, start(process, solver, Z, 0.5), t, s, KEYS).z, atol=1e-6
  )


def test_nothing_is_corrected_where_pairs_do_not_adjoin():
  """z of another noise level would be moved to this one."""
  process, solver, ddim = Flow(), UniPC(1), DDIM()
  pairs = jnp.float32([[0.9, 0.6], [0.5, 0.2]])
  np.testing.assert_allclose(
    walk(process, network, solver, Z, pairs, KEYS),
    walk(process, network, ddim, Z, pairs, KEYS),
    rtol=1e-5,
    atol=1e-5,
  )


def test_one_evaluation_a_step():
  calls = []
  denoise = lambda z, t, estimate=None, to=None: calls.append(1) or gaussian(Flow())(z, t)
  UniPC(3).step(Flow(), denoise, start(Flow(), UniPC(3), Z, 0.5), jnp.float32(0.5), jnp.float32(0.25), KEYS)
  assert len(calls) == 1


def test_mistakes():
  with pytest.raises(UserError, match=r"^order=4; expected 1 to 3$"):
    UniPC(4)
  with pytest.raises(UserError, match=r"^solver_type='bh3'; expected one of \['bh1', 'bh2'\]$"):
    UniPC(solver_type="bh3")
