"""What is known stays, bit for bit, under every sampler; RePaint draws the rest from what it should be given
it.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jldm.core.errors import UserError
from jldm.core.keys import row_keys, split_each
from jldm.core.specs import Output
from jldm.diffusion.process import Cosine, Flow
from jldm.diffusion.target import Denoised, Predict, denoiser
from jldm.editing.inpaint import InpaintingSampler, inpaint_latents, repaint_pairs
from jldm.samplers.ddim import DDIM
from jldm.samplers.dpm_solver import DPMSolverPP
from jldm.samplers.grid import uniform
from jldm.samplers.pairs import adjacent_pairs
from jldm.samplers.resample import Resample
from jldm.samplers.sample import renoise, sample
from tests.editing.samplers import A_FEW
from tests.networks import quick

KEYS = row_keys(jax.random.key(1), jnp.arange(4))
X0 = jax.random.normal(jax.random.key(0), (4, 2, 3, 2))
HALF = jnp.zeros((4, 2, 3, 1)).at[:, :, :2].set(1)
PAIRS = adjacent_pairs(uniform(4))


def network(process):
  """An arbitrary smooth one, of latents."""
  return denoiser(
    process, Predict("v"), lambda z, level, *_: Output(jnp.sin(3 * z + level[:, None, None, None]))
  )


@pytest.mark.parametrize("sampler", A_FEW, ids=repr)
def test_what_is_known_stays_under_every_sampler(sampler):
  process = Flow()
  edit = quick(lambda known: inpaint_latents(process, network(process), sampler, X0, known, PAIRS, KEYS))
  np.testing.assert_array_equal(edit(jnp.ones_like(HALF)), X0)
  half = np.asarray(edit(HALF))
  np.testing.assert_array_equal(half[:, :, :2], X0[:, :, :2])
  assert np.isfinite(half).all() and np.abs(half - X0)[:, :, 2].max() > 0.1


def test_with_nothing_known_it_is_the_sampler_and_x0_is_not_seen():
  process = Cosine()
  edit = quick(
    lambda x0: inpaint_latents(process, network(process), DDIM(), x0, jnp.zeros_like(HALF), PAIRS, KEYS)
  )
  np.testing.assert_array_equal(edit(X0), edit(X0 + 1))
  z = renoise(process, jnp.zeros_like(X0), jnp.float32(0), jnp.float32(1), split_each(KEYS)[0])
  alone = quick(lambda: sample(process, network(process), DDIM(), z, PAIRS, KEYS))()
  np.testing.assert_allclose(edit(X0), alone, rtol=1e-4, atol=1e-5)


def test_a_multistep_history_begins_anew_and_the_estimate_is_masked_too():
  process = Cosine()
  edit = lambda sampler: quick(
    lambda: inpaint_latents(process, network(process), sampler, X0, HALF, PAIRS, KEYS)
  )()
  np.testing.assert_allclose(edit(DPMSolverPP()), edit(DDIM()), rtol=1e-4, atol=1e-5)
  blended = InpaintingSampler(DPMSolverPP(), X0, HALF)
  state = blended.init(process, X0, PAIRS)
  state = blended.step(process, network(process), state, jnp.float32(0.8), jnp.float32(0.5), KEYS)
  assert int(state.count) == 0
  np.testing.assert_array_equal(state.x0[:, :, :2], X0[:, :, :2])


def pair_of_normals(process, correlation):
  """The exact denoiser of two standard normal numbers, correlated: z [B, 1, 2, 1], covariance alpha^2
  C + sigma^2.
  """
  covariance = jnp.array([[1, correlation], [correlation, 1]])

  def denoise(z, t, estimate=None, to=None):
    alpha, sigma = process.alpha(t), process.sigma(t)
    solved = jnp.linalg.solve(alpha**2 * covariance + sigma**2 * jnp.eye(2), z[:, 0, :, 0].T)
    shape = lambda x: x.T[:, None, :, None]
    return Denoised(shape(alpha * covariance @ solved), shape(sigma * solved))

  return denoise


@pytest.mark.slow
def test_repaint_draws_from_the_conditional_and_plain_replacement_does_not():
  process, rho, seen, count = Flow(), 0.9, 1.5, 4096
  x0 = jnp.full((count, 1, 2, 1), seen)
  known = jnp.zeros_like(x0).at[:, :, 0].set(1)
  keys = row_keys(jax.random.key(3), jnp.arange(count))
  errors = {}
  for name, sampler, pairs in (
    ("plain", DDIM(1.0), adjacent_pairs(uniform(20))),
    ("repaint", Resample(DDIM(1.0)), repaint_pairs(adjacent_pairs(uniform(20)), 1, 10)),
  ):
    run = functools.partial(inpaint_latents, process, pair_of_normals(process, rho), sampler)
    drawn = np.asarray(quick(run)(x0, known, pairs, keys))[:, 0, 1, 0]
    errors[name] = abs(drawn.mean() - rho * seen), abs(drawn.std() - (1 - rho**2) ** 0.5)
  assert errors["plain"][0] > 0.15 and errors["repaint"][0] < 0.4 * errors["plain"][0], errors


def test_a_grid_with_gaps_is_not_gone_over_again():
  with pytest.raises(UserError, match="repeats=2 with a grid that has gaps"):
    repaint_pairs(jnp.array([[1.0, 0.6], [0.5, 0.0]]), 1, 2)


def test_a_jump_that_is_left_out_leaves_something_to_repeat():
  """Ten steps, the paper's, or all but one; what is given leaves a stretch, or is refused."""
  for steps in (2, 5, 10, 11, 30):
    pairs = adjacent_pairs(uniform(steps))
    jump = min(10, steps - 1)
    np.testing.assert_array_equal(repaint_pairs(pairs, None, 3), repaint_pairs(pairs, jump, 3))
    assert len(repaint_pairs(pairs, None, 3)) >= steps + 2 * (jump + 1)
  for steps, jump, repeats, message in (
    (5, 5, 3, "jump=5 of 5 steps; expected 1 to 4"),
    (5, 0, 3, "jump=0 of 5 steps; expected 1 to 4"),
    (1, None, 3, "repeats=3 of 1 step; there is nothing to go back over"),
    (5, 2, 10**9, "repeats=1000000000 and jump=2 of 5 steps are"),
  ):
    with pytest.raises(UserError, match=message):
      repaint_pairs(adjacent_pairs(uniform(steps)), jump, repeats)
