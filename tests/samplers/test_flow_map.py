"""Networks with the time that a step ends at; that time and the last estimate pass every wrapper.

The average velocity of the closed-form flow (3) of tests.samplers.gaussian, (z_s - z_t) / (s - t),
takes z_t to z_s in one step, whatever t and s: Boffi et al. 2024 (2406.07507); Geng et al. 2025
(2505.13447), eq. 3.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jldm.core.keys import row_keys
from jldm.core.shapes import expand
from jldm.core.specs import Output
from jldm.core.trees import pytree
from jldm.diffusion.process import Cosine, Flow
from jldm.diffusion.target import Denoised, Predict, denoiser
from jldm.editing.restore import condition_on_measurement
from jldm.samplers.consistency import with_boundary
from jldm.samplers.ddim import DDIM
from jldm.samplers.grid import uniform
from jldm.samplers.guidance import ClassifierFree, autoguided, energy_guided, guided, thresholded
from jldm.samplers.pairs import adjacent_pairs, pad_pairs
from jldm.samplers.sample import State, sample

STD = 0.5
KEYS = row_keys(jax.random.key(1), jnp.arange(4))
Z = jax.random.normal(jax.random.key(0), (4, 3))
T, TO = jnp.float32([0.9, 0.7, 0.5, 0.3]), jnp.float32([0.5, 0.1, 0.4, 0.0])


@pytree
@dataclasses.dataclass(frozen=True)
class FlowMap:
  """One call a step, with the time that it ends at; on Flow a straight line along the average velocity."""

  def init(self, process, z, pairs):
    return State(z, jnp.zeros_like(z))

  def step(self, process, denoise, state, t, s, keys):
    x0, eps, _ = denoise(state.z, t, to=s)
    return State(process.alpha(s) * x0 + process.sigma(s) * eps, x0)


def flow(mean, z, t, s):
  """The flow of N(mean, STD^2) on the process Flow from t to s."""
  spread = lambda u: jnp.hypot((1 - u) * STD, u)
  return (1 - s) * mean + spread(s) / spread(t) * (z - (1 - t) * mean)


def average_velocity(z, t, mean, estimate=None, to=None):
  """A network that predicts it, of data N(mean [B], STD^2), with `guided`'s arguments."""

  def apply(z, level, estimate, to):
    t, s, m = expand(level, z), expand(to, z), expand(mean, z)
    return Output((flow(m, z, t, s) - z) / (s - t))

  return denoiser(Flow(), Predict("flow"), apply)(z, t, estimate, to)


PATHS = {
  "one step": jnp.array([[1.0, 0.0]]),
  "three": adjacent_pairs(uniform(3)),
  "inside": jnp.array([[0.9, 0.2]]),
  "per sample": pad_pairs([adjacent_pairs(uniform(n)) for n in (1, 3, 2, 4)]),
}


@pytest.mark.parametrize("name", PATHS)
def test_a_flow_map_is_exact_in_any_number_of_steps_under_guidance_and_thresholding(name):
  """Guidance of means is guidance of velocities, since the flow is affine in them; the threshold is
  out of reach.
  """
  pairs = PATHS[name]
  mean, null, scale = jnp.float32([0.7, -0.3, 0.2, 1.0]), jnp.zeros(4), 1.5
  both = guided(Flow(), average_velocity, (mean, null), ClassifierFree(scale))
  denoise = thresholded(Flow(), both, 1.0, 100.0)
  reached = jax.jit(lambda z: sample(Flow(), denoise, FlowMap(), z, pairs, KEYS))(Z)
  first, last = pairs[..., 0, 0], (0.2 if name == "inside" else 0.0)
  expected = flow(scale * mean[:, None], Z, expand(first, Z), last)
  np.testing.assert_allclose(reached, expected, rtol=1e-5, atol=1e-5)


def test_without_its_target_time_the_same_network_is_not_exact():
  instant = lambda z, t, estimate=None, to=None: average_velocity(z, t, jnp.full(4, 0.7), estimate, t - 1e-3)
  reached = sample(Flow(), instant, DDIM(), Z, PATHS["one step"], KEYS)
  assert np.abs(reached - flow(0.7, Z, 1.0, 0.0)).max() > 0.1


def spy(seen):
  """A denoiser that keeps what it was called with."""

  def denoise(z, t, estimate=None, to=None):
    seen.append((estimate, to))
    return Denoised(0.5 * z, 0.25 * z)

  return denoise


WRAPPERS = {
  "guided": lambda d: guided(
    Cosine(), lambda z, t, label, e=None, to=None: d(z, t, e, to), (Z, Z), ClassifierFree(2.0)
  ),
  "autoguided": lambda d: autoguided(Cosine(), d, d, ClassifierFree(2.0)),
  "thresholded": lambda d: thresholded(Cosine(), d),
  "energy_guided": lambda d: energy_guided(Cosine(), d, lambda x0: jnp.sum(x0, 1)),
  "boundary": lambda d: with_boundary(Cosine(), d),
  "informed": lambda d: condition_on_measurement(Cosine(), d, lambda x: x, Z, jnp.float32(1), 1, 2),
}


@pytest.mark.parametrize("to", [TO, TO[0], None], ids=["each", "one", "none"])
@pytest.mark.parametrize("name", WRAPPERS)
def test_the_estimate_and_the_target_time_arrive_through_every_wrapper(name, to):
  seen, estimate = [], 3 * Z
  with jax.disable_jit():
    WRAPPERS[name](spy(seen))(Z, T, estimate, to)
    WRAPPERS[name](spy(seen))(Z, T, estimate=estimate, to=to)
  copies = 2 if name == "guided" else 1
  assert len(seen) == (4 if name == "autoguided" else 2)
  for estimate_seen, to_seen in seen:
    np.testing.assert_array_equal(estimate_seen, np.repeat(estimate, copies, 0))
    if to is None:
      assert to_seen is None
    else:
      np.testing.assert_array_equal(to_seen, np.repeat(to, copies) if jnp.ndim(to) else to)


@pytest.mark.parametrize("per_sample", [False, True], ids=["one path", "per sample"])
def test_the_driver_passes_the_last_estimate_through_all_wrappers_and_zeros_first(per_sample):
  """A network that returns (estimate + 1) as x0: after n steps x0 = n, if each is given the one before."""

  def counting(z, t, estimate=None, to=None):
    x0 = estimate + 1
    return Denoised(x0, (z - expand(1 - t, z) * x0) / expand(t, z))

  labelled = lambda z, t, label, estimate=None, to=None: counting(z, t, estimate, to)
  denoise = guided(Flow(), labelled, (Z, Z), ClassifierFree(2.0))
  denoise = thresholded(Flow(), autoguided(Flow(), denoise, counting, ClassifierFree(1.0)), 1.0, 100.0)
  counts = [3, 1, 4, 2] if per_sample else [3] * 4
  pairs = (
    pad_pairs([adjacent_pairs(uniform(n)) for n in counts]) if per_sample else adjacent_pairs(uniform(3))
  )
  for sampler in (DDIM(), FlowMap()):
    reached = sample(Flow(), denoise, sampler, Z, pairs, KEYS)
    np.testing.assert_allclose(reached, np.repeat(np.float32(counts)[:, None], 3, 1), rtol=1e-5)
