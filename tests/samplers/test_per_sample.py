"""Paths of each sample's own: one batch holds requests of other step counts, grids, numbers and first times.

Bits are compared op by op, without jit, on Flow: XLA's fusions contract products and sums otherwise
for other shapes, as they do for other batch sizes, and logarithms round by their place in a vector.
"""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec
import numpy as np
import pytest

from jldm.core.errors import UserError
from jldm.core.keys import row_keys
from jldm.core.shapes import expand
from jldm.core.specs import Output
from jldm.core.trees import traced
from jldm.diffusion.process import Cosine, Flow
from jldm.diffusion.target import Predict, denoiser
from jldm.editing.edict import EDICT
from jldm.editing.image_to_image import shorten_pairs, vary_latents
from jldm.editing.inpaint import inpaint_latents
from jldm.editing.invert import invert_latents, revert_latents
from jldm.editing.restore import restore_latents
from jldm.samplers.ancestral import Ancestral
from jldm.samplers.churn import Churn
from jldm.samplers.consistency import with_boundary
from jldm.samplers.ddim import DDIM
from jldm.samplers.deis import PNDM
from jldm.samplers.dpm_solver import DPMSolverPP
from jldm.samplers.grid import karras, uniform
from jldm.samplers.guidance import (
  APG,
  CFGZero,
  ClassifierFree,
  Interval,
  Rescale,
  autoguided,
  energy_guided,
  guided,
  thresholded,
)
from jldm.samplers.heun import Heun
from jldm.samplers.pairs import adjacent_pairs, pad_pairs
from jldm.samplers.predictor_corrector import PredictorCorrector
from jldm.samplers.sample import draw_samples, sample, scan_steps, trajectory
from tests.compiling import UNOPTIMIZED
from tests.samplers.gaussian import SAMPLERS

KEYS = row_keys(jax.random.key(1), jnp.arange(4))
LIKE = jnp.zeros((4, 3))
REQUESTS = [
  adjacent_pairs(uniform(3)),
  adjacent_pairs(uniform(1)),
  adjacent_pairs(karras(Flow(), 5)),
  adjacent_pairs(uniform(2, 0.8, 0.1)),
]
MAIN = [DDIM(), DPMSolverPP(), Heun()]
OTHERS = [sampler for sampler in SAMPLERS if sampler not in MAIN]
COMPILED = [Ancestral(), Heun(), PredictorCorrector(), PNDM("prk")]
LABELS = jnp.arange(4)
MOVES = ("all-to-all", "all-gather", "collective-permute", "all-reduce", "reduce-scatter")


def elementwise(process):
  """A network whose every place depends on itself alone, on the noise level and on the last estimate."""
  return denoiser(
    process,
    Predict("v"),
    lambda z, level, estimate, to: Output(0.25 * z + 0.125 * level[:, None] + 0.25 * estimate),
  )


def rows(values, b):
  return jax.tree.map(lambda x: x[b : b + 1], values)


def alone(run, *batched):
  """What `run`(pairs, keys, ...) gives for each request by itself, with pairs [N, 2]."""
  return np.concatenate([run(pairs, *rows((KEYS, *batched), b)) for b, pairs in enumerate(REQUESTS)])


@pytest.mark.parametrize(
  "sampler", MAIN + [pytest.param(s, marks=pytest.mark.slow) for s in OTHERS], ids=repr
)
def test_each_request_of_a_batch_is_the_request_alone_to_the_bit(sampler):
  run = lambda pairs, keys: draw_samples(Flow(), elementwise(Flow()), sampler, LIKE[: len(keys)], pairs, keys)
  with jax.disable_jit():
    np.testing.assert_array_equal(run(pad_pairs(REQUESTS), KEYS), alone(run))


@functools.partial(jax.jit, static_argnums=0, compiler_options=UNOPTIMIZED)
def drawn(process, sampler, pairs, keys):
  return draw_samples(process, elementwise(process), sampler, LIKE[: len(keys)], pairs, keys)


@pytest.mark.parametrize(
  "sampler", [DPMSolverPP(), *(pytest.param(s, marks=pytest.mark.slow) for s in COMPILED)], ids=repr
)
@pytest.mark.parametrize("process", [Cosine(), pytest.param(Flow(), marks=pytest.mark.slow)], ids=repr)
def test_and_up_to_rounding_when_it_is_compiled(process, sampler):
  run = functools.partial(drawn, process, traced(sampler))
  np.testing.assert_allclose(run(pad_pairs(REQUESTS), KEYS), alone(run), rtol=5e-6, atol=5e-6)


@pytest.mark.slow
def test_each_sample_has_its_own_numbers_of_a_sampler():
  numbers = {"eta": jnp.array([0.0, 1.0, 0.3, 0.6]), "gamma": jnp.array([0.1, 0.0, 0.4, 0.2])}
  for make in (
    lambda eta, gamma: DDIM(eta),
    lambda eta, gamma: DPMSolverPP(eta=eta),
    lambda eta, gamma: Churn(DDIM(eta), gamma),
  ):
    together = drawn(Flow(), make(**numbers), pad_pairs(REQUESTS), KEYS)
    for b, pairs in enumerate(REQUESTS):
      own = make(**{name: number[b] for name, number in numbers.items()})
      expected = drawn(Flow(), own, pairs, KEYS[b : b + 1])
      np.testing.assert_allclose(together[b : b + 1], expected, rtol=5e-6, atol=5e-6)


def test_other_steps_grids_and_numbers_compile_nothing():
  traces = []

  @functools.partial(jax.jit, compiler_options=UNOPTIMIZED)
  def run(sampler, pairs):
    traces.append(1)
    return draw_samples(Flow(), elementwise(Flow()), sampler, LIKE, pairs, KEYS)

  outs = [
    run(DDIM(jnp.float32([0, 0.5, 1, 0])), pad_pairs(REQUESTS)),
    run(DDIM(jnp.zeros(4)), pad_pairs(REQUESTS[::-1])),
  ]
  assert len(traces) == 1 and np.abs(outs[0] - outs[1]).max() > 1e-3


@pytest.mark.parametrize(
  ("sampler", "calls"),
  [(DDIM(1.0), 5), (DPMSolverPP(), 5), (Heun(), 10), (PredictorCorrector(), 10)],
  ids=repr,
)
def test_the_denoiser_is_called_once_on_the_whole_batch(sampler, calls):
  """Of Heun and of corrections the evaluation that some samples need is made of all."""
  shapes, counted = [], []

  def denoise(z, t, estimate=None, to=None):
    shapes.append((z.shape, t.shape, estimate.shape, to))
    jax.debug.callback(lambda: counted.append(1))
    return elementwise(Flow())(z, t, estimate, to)

  pairs = pad_pairs(REQUESTS)
  jax.block_until_ready(jax.jit(lambda: draw_samples(Flow(), denoise, sampler, LIKE, pairs, KEYS))())
  jax.effects_barrier()
  assert set(shapes) == {((4, 3), (4,), (4, 3), None)} and len(counted) == calls


def test_of_one_path_for_all_the_denoiser_gets_one_time():
  times = []

  def denoise(z, t, estimate=None, to=None):
    times.append(t.shape)
    return elementwise(Flow())(z, t, estimate, to)

  draw_samples(Flow(), denoise, Heun(), LIKE, REQUESTS[0], KEYS)
  assert set(times) == {()}


def wrapped(process, name, conditions):
  """A denoiser under one of the wrappers, of conditions [B]."""

  def labelled(z, t, label, estimate=None, to=None):
    apply = lambda z, level, estimate, to: Output(
      jnp.sin(2 * z + expand(level + 0.5 * label, z)) + 0.25 * estimate
    )
    return denoiser(process, Predict("v"), apply)(z, t, estimate, to)

  bound = lambda label: lambda z, t, estimate=None, to=None: labelled(z, t, label, estimate, to)
  under = lambda rule: guided(process, labelled, (conditions, 0 * conditions - 1), rule)
  plain = bound(conditions)
  return {
    "guided": lambda: under(ClassifierFree(1 + conditions)),
    "interval, rescale": lambda: under(Rescale(Interval(APG(2.0, 0.3, 2.0), -2.0, 2.0), 0.7)),
    "zero": lambda: under(CFGZero(2.0, 0.7)),
    "autoguided": lambda: autoguided(process, plain, bound(-conditions), ClassifierFree(1.5)),
    "thresholded": lambda: thresholded(process, plain, 0.8, 0.5),
    "energy": lambda: energy_guided(process, plain, lambda x0: jnp.sum(x0**2, 1), 0.2, -3.0, 3.0),
    "boundary": lambda: with_boundary(process, plain, 0.5, 3.0),
    "everything": lambda: thresholded(
      process, energy_guided(process, under(CFGZero(2.0, 0.7)), lambda x: x.sum(1), 0.1), 0.9
    ),
  }[name]()


WRAPPERS = ("interval, rescale", "zero", "autoguided", "thresholded", "energy")  # besides those of seconds


@pytest.mark.parametrize(
  "name",
  [*("guided", "boundary", "everything"), *(pytest.param(name, marks=pytest.mark.slow) for name in WRAPPERS)],
)
def test_wrappers_take_a_time_for_each_sample(name):
  @functools.partial(jax.jit, compiler_options=UNOPTIMIZED)
  def run(pairs, keys, conditions):
    return draw_samples(
      Cosine(), wrapped(Cosine(), name, conditions), DPMSolverPP(), LIKE[: len(keys)], pairs, keys
    )

  np.testing.assert_allclose(run(pad_pairs(REQUESTS), KEYS, LABELS), alone(run, LABELS), rtol=2e-5, atol=2e-5)


@pytest.mark.slow
def test_edits_take_a_path_for_each_sample():
  x0 = jax.random.normal(jax.random.key(2), (4, 3, 2))
  known = jnp.zeros((4, 3, 1)).at[:, :2].set(1)
  process = Cosine()
  network = denoiser(process, Predict("v"), lambda z, level, *_: Output(jnp.sin(3 * z + expand(level, z))))
  edits = {
    "image to image": lambda pairs, keys, x0, known: vary_latents(
      process, network, DPMSolverPP(), x0, shorten_pairs(pairs, jnp.float32(0.7)), keys
    ),
    "inpaint": lambda pairs, keys, x0, known: inpaint_latents(
      process, network, DPMSolverPP(), x0, known, pairs, keys
    ),
    "restore": lambda pairs, keys, x0, known: restore_latents(
      process, network, DDIM(), x0, lambda z: z.sum(1), 0 * x0[:, 0] + 1, jnp.full(len(x0), 0.5), pairs, keys
    ),
  }
  for name, edit in edits.items():
    run = jax.jit(edit, compiler_options=UNOPTIMIZED)
    np.testing.assert_allclose(
      run(pad_pairs(REQUESTS), KEYS, x0, known), alone(run, x0, known), rtol=2e-5, atol=2e-5, err_msg=name
    )


@pytest.mark.parametrize("sampler", [EDICT(), DDIM()], ids=repr)
def test_inversion_takes_a_path_for_each_sample(sampler):
  x0 = jax.random.normal(jax.random.key(2), (4, 3))

  @functools.partial(jax.jit, compiler_options=UNOPTIMIZED)
  def run(pairs, keys, x0):
    z = invert_latents(Flow(), elementwise(Flow()), sampler, x0, pairs, keys)
    return jnp.concatenate([z, revert_latents(Flow(), elementwise(Flow()), sampler, z, pairs, keys)], -1)

  np.testing.assert_allclose(run(pad_pairs(REQUESTS), KEYS, x0), alone(run, x0), rtol=1e-5, atol=1e-5)


def test_estimates_and_states_come_with_the_batch_first():
  pairs = pad_pairs(REQUESTS)
  z, x0 = trajectory(Flow(), elementwise(Flow()), DPMSolverPP(), LIKE, pairs, KEYS)
  assert z.shape == (4, 3) and x0.shape == (5, 4, 3)
  np.testing.assert_array_equal(x0[1:, 1], x0[:1, 1].repeat(4, 0), "after its last step an estimate stays")
  state, _ = scan_steps(Flow(), elementwise(Flow()), DPMSolverPP(), z, pairs, KEYS)
  assert state.z.shape == state.x0.shape == (4, 3) and state.left.shape == (4,)
  np.testing.assert_array_equal(state.left, 0)


def test_a_batch_over_eight_devices_never_moves():
  mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
  spread, whole = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("data",), ()))
  key_data = jax.random.key_data(row_keys(jax.random.key(5), jnp.arange(8)))
  args = (
    *jax.device_put((key_data, pad_pairs(REQUESTS * 2), jnp.arange(8)), spread),
    jax.device_put(jnp.ones((3, 3)), whole),
  )

  def run(key_data, pairs, labels, weights):
    def labelled(z, t, label, estimate=None, to=None):
      apply = lambda z, level, *_: Output(jnp.tanh(z @ weights + expand(level + label, z)))
      return denoiser(Flow(), Predict("v"), apply)(z, t)

    denoise = thresholded(Flow(), guided(Flow(), labelled, (labels, -labels), ClassifierFree(2.0)))
    keys = jax.random.wrap_key_data(key_data)
    return draw_samples(Flow(), denoise, PredictorCorrector(Heun()), jnp.zeros((8, 3)), pairs, keys)

  text = jax.jit(run, out_shardings=spread).lower(*args).compile().as_text()
  assert not [move for move in MOVES if move in text]


def test_parameters_are_not_copied_for_each_sample():
  def run(weights, sampler, z):
    denoise = denoiser(Flow(), Predict("v"), lambda z, *_: Output(jnp.sin(z @ weights)[:, :3]))
    return draw_samples(Flow(), denoise, sampler, z, pad_pairs(REQUESTS), KEYS)

  for sampler in (Heun(), PredictorCorrector(correct_steps=3)):
    text = jax.jit(run).lower(jnp.ones((3, 211)), sampler, LIKE).compile().as_text()
    assert "[3,211]" in text and "[4,3,211]" not in text


def test_shorter_paths_are_padded_at_the_end():
  pairs = pad_pairs(REQUESTS)
  assert pairs.shape == (4, 5, 2)
  for row, own in zip(pairs, REQUESTS):
    np.testing.assert_array_equal(row[: len(own)], own)
    np.testing.assert_array_equal(row[len(own) :], 0)


@pytest.mark.parametrize(
  "pairs", [[], [jnp.zeros((3, 2)), jnp.zeros(3)], [jnp.zeros((3, 3))]], ids=["none", "times", "triples"]
)
def test_what_is_no_path_is_not_padded(pairs):
  with pytest.raises(UserError, match=r"pairs of shapes \[.*\]; expected at least one array, each \[N, 2\]"):
    pad_pairs(pairs)


@pytest.mark.parametrize("shape", [(5,), (5, 3), (3, 5, 2), (4, 5, 1), (1, 4, 5, 2)])
def test_pairs_of_another_shape_are_refused(shape):
  with pytest.raises(UserError) as error:
    sample(Flow(), elementwise(Flow()), DDIM(), LIKE, jnp.zeros(shape), KEYS)
  assert str(shape) in str(error.value) and "[N, 2], or [4, N, 2]" in str(error.value)
