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
from jldm.diffusion.process import Cosine
from jldm.diffusion.target import Denoised, Predict, denoiser
from jldm.samplers import guidance
from jldm.samplers.ddim import DDIM
from jldm.samplers.grid import uniform
from jldm.samplers.guidance import ClassifierFree, guided
from jldm.samplers.pairs import adjacent_pairs
from jldm.samplers.sample import draw_samples
from tests.compiling import UNOPTIMIZED

PROCESS = Cosine()
Z = jax.random.normal(jax.random.key(0), (8, 4, 4, 2))
T = jnp.float32(0.4)
LABELS = jnp.arange(8)
NULL = jnp.full(8, -1)
MOVES = ("all-to-all", "all-gather", "collective-permute", "all-reduce", "reduce-scatter")


def apply(z, level, label):
  """A network whose output depends on everything that it is fed."""
  return jnp.tanh(z @ jnp.array([[1.0, -0.5], [0.3, 2.0]]) + expand(level + 0.2 * label, z))


def denoise(z, t, label, estimate=None, to=None):
  """`apply` of a label, as `guided` takes it."""
  return denoiser(PROCESS, Predict("v"), lambda z, level, *_: Output(apply(z, level, label)))(
    z, t, estimate, to
  )


def classifier_free(denoise, condition, null, scale):
  return guided(PROCESS, denoise, (condition, null), ClassifierFree(scale))


def close(a, b, atol=2e-6):
  np.testing.assert_allclose(a.x0, b.x0, rtol=1e-5, atol=atol)
  np.testing.assert_allclose(a.eps, b.eps, rtol=1e-5, atol=atol)


@pytest.mark.parametrize(
  "scale", [0.0, 0.5, 1.0, 3.0, jnp.linspace(-1, 4, 8)], ids=["0", "0.5", "1", "3", "each"]
)
def test_it_is_null_plus_scale_times_the_difference(scale):
  c, u = denoise(Z, T, LABELS), denoise(Z, T, NULL)
  w = expand(jnp.asarray(scale), Z)
  expected = Denoised(u.x0 + w * (c.x0 - u.x0), u.eps + w * (c.eps - u.eps))
  close(classifier_free(denoise, LABELS, NULL, scale)(Z, T), expected, atol=1e-5)


def test_scale_one_is_the_condition_alone_and_zero_the_null():
  close(classifier_free(denoise, LABELS, NULL, 1.0)(Z, T), denoise(Z, T, LABELS))
  close(classifier_free(denoise, LABELS, NULL, 0.0)(Z, T), denoise(Z, T, NULL))


def test_one_pass_with_conditions_beside_their_sample():
  calls = []

  def counted(z, t, label, estimate=None, to=None):
    calls.append((z, t, label))
    return denoise(z, t, label)

  classifier_free(counted, LABELS, NULL, 2.0)(Z, T)
  ((z, t, label),) = calls
  np.testing.assert_array_equal(z, np.repeat(Z, 2, 0))
  np.testing.assert_array_equal(label, np.stack([LABELS, NULL], 1).ravel())
  assert t.shape == ()


@pytest.mark.parametrize(
  "scales",
  [np.array([[2.0], [-1.5]], np.float32), np.linspace(-1, 1, 16, dtype=np.float32).reshape(2, 8)],
  ids=["all", "each"],
)
def test_any_number_of_conditions_as_trees(scales):
  text = np.random.default_rng(0).standard_normal((3, 8, 4, 2), dtype=np.float32)
  conditions = [{"label": label, "text": words} for label, words in zip((LABELS, LABELS[::-1], NULL), text)]
  described = jax.jit(lambda z, t, given, *_: denoise(z + given["text"][:, None], t, given["label"]))
  each = [described(Z, T, condition) for condition in conditions]
  null, w = each[-1], np.broadcast_to(scales, (2, 8))[..., None, None, None]
  mix = lambda field: (
    getattr(null, field) + sum(w[k] * (getattr(each[k], field) - getattr(null, field)) for k in range(2))
  )
  out = guided(PROCESS, described, conditions, ClassifierFree(jnp.asarray(scales)))(Z, T)
  close(out, Denoised(mix("x0"), mix("eps")), atol=1e-5)


@pytest.mark.parametrize("batch", [1, 2, 3])
@pytest.mark.parametrize("count", [2, 3, 4])
def test_scales_of_every_shape_are_the_formula(count, batch):
  """null + sum of scale_k (condition_k - null), also of as many samples as there are scales."""
  rng = np.random.default_rng(0)
  x0, eps = rng.standard_normal((2, batch, count, 5), dtype=np.float32)
  each, z = Denoised(jnp.asarray(x0), jnp.asarray(eps)), jnp.zeros((batch, 5))
  shapes = [(count - 1, batch), (count - 1, 1)] + ([(), (batch,)] if count == 2 else [])
  for shape in shapes:
    scale = rng.standard_normal(shape).astype(np.float32)
    w = np.broadcast_to(scale, (count - 1, batch))
    out = ClassifierFree(jnp.asarray(scale))(PROCESS, z, T, each)
    for mixed, e in ((out.x0, x0), (out.eps, eps)):
      expected = e[:, -1] + sum(w[k][:, None] * (e[:, k] - e[:, -1]) for k in range(count - 1))
      np.testing.assert_allclose(mixed, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
  ("count", "batch", "shape"),
  [
    (3, 4, ()),
    (3, 4, (2,)),
    (3, 2, (2,)),
    (3, 4, (4,)),
    (3, 4, (2, 3)),
    (3, 4, (1, 4)),
    (2, 4, (3,)),
    (2, 4, (1,)),
    (2, 4, (4, 1)),
    (4, 3, (3,)),
  ],
)
def test_scales_of_another_shape_are_refused(count, batch, shape):
  each = Denoised(*jnp.zeros((2, batch, count, 5)))
  with pytest.raises(UserError) as error:
    ClassifierFree(jnp.ones(shape))(PROCESS, jnp.zeros((batch, 5)), T, each)
  assert f"scale of shape {shape}" in str(error.value) and str((count - 1, batch)) in str(error.value)


def test_a_time_for_each_sample():
  t, combined = jnp.linspace(0.1, 0.9, 8), classifier_free(denoise, LABELS, NULL, 2.0)
  out = combined(Z, t)
  for b in (0, 7):
    alone = classifier_free(denoise, LABELS[b : b + 1], NULL[b : b + 1], 2.0)(Z[b : b + 1], t[b])
    close(Denoised(out.x0[b : b + 1], out.eps[b : b + 1]), alone)


def test_the_learned_variance_is_that_of_the_first_condition():
  learned = lambda z, t, label, *_: denoise(z, t, label)._replace(variance=expand(1.0 * label, z) + 0 * z)
  out = classifier_free(learned, LABELS, NULL, 3.0)(Z, T)
  np.testing.assert_array_equal(out.variance, np.broadcast_to(np.arange(8.0)[:, None, None, None], Z.shape))
  assert classifier_free(denoise, LABELS, NULL, 3.0)(Z, T).variance is None


def run(guide, key_data, labels, scale, eta):
  keys = jax.random.wrap_key_data(key_data)
  return draw_samples(
    PROCESS, guide(labels, jnp.full_like(labels, -1), scale), DDIM(eta), Z, adjacent_pairs(uniform(4)), keys
  )


def beside(labels, null, scale):
  return classifier_free(denoise, labels, null, scale)


def everything(labels, null, scale):
  """All rules and wrappers in one, each of their numbers at work."""
  inside = guidance.Interval(guidance.APG(scale, 0.3, 2.0), -4.0, 6.0)
  rules = guidance.Rescale(inside, 0.2 * scale), guidance.CFGPlusPlus(guidance.CFGZero(0.2 * scale, 0.9))
  first, second = (guided(PROCESS, denoise, (labels, null), rule) for rule in rules)
  far = lambda x0: jnp.sum(x0**2, (1, 2, 3))
  steered = guidance.energy_guided(
    PROCESS, lambda z, t, *_: jax.tree.map(jnp.add, first(z, t), second(z, t)), far, 0.01 * scale
  )
  return guidance.thresholded(PROCESS, steered, 0.9, scale)


def behind(labels, null, scale):
  """The usual way: conditions one after the other along the batch."""

  def combined(z, t, estimate=None, to=None):
    each = denoise(jnp.concatenate([z, z]), t, jnp.concatenate([labels, null]))
    mix = lambda e: (lambda c, u: u + scale * (c - u))(*jnp.split(e, 2))
    return Denoised(mix(each.x0), mix(each.eps))

  return combined


@pytest.fixture(scope="module")
def sharded():
  """The arguments of `run`, the batch over eight devices."""
  assert jax.device_count() == 8
  mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
  spread, whole = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("data",), ()))
  key_data = jax.random.key_data(row_keys(jax.random.key(5), jnp.arange(8)))
  return *jax.device_put((key_data, LABELS), spread), *jax.device_put(
    (jnp.float32(3), jnp.float32(0.5)), whole
  )


def compile_for(guide, args):
  spread = args[0].sharding
  return jax.jit(functools.partial(run, guide), out_shardings=spread).lower(*args).compile(UNOPTIMIZED)


@pytest.mark.parametrize("guide", [beside, everything])
def test_a_batch_over_eight_devices_is_the_same_and_never_moves(guide, sharded):
  compiled = compile_for(guide, sharded)
  assert not [move for move in MOVES if move in compiled.as_text()]
  spread = compiled(*sharded)
  assert len(spread.sharding.device_set) == 8
  alone = jax.jit(functools.partial(run, guide), compiler_options=UNOPTIMIZED)(
    *jax.device_put(sharded, jax.devices()[0])
  )
  np.testing.assert_allclose(spread, alone, rtol=1e-4, atol=1e-5)


def test_conditions_behind_one_another_would_move_it(sharded):
  text = compile_for(behind, sharded).as_text()
  assert [move for move in MOVES if move in text], "or the test above sees nothing"


@pytest.mark.parametrize("guide", [beside, everything])
def test_scales_conditions_and_keys_compile_nothing(guide, sharded):
  traces = []

  @functools.partial(jax.jit, compiler_options=UNOPTIMIZED)
  def counted(*args):
    traces.append(1)
    return run(guide, *args)

  key_data, labels, scale, eta = jax.device_put(sharded, jax.devices()[0])
  first = counted(key_data, labels, scale, eta)
  others = [counted(key_data, labels, scale + 1, eta), counted(key_data, labels, scale, eta + 0.5)]
  others += [counted(key_data, labels[::-1], scale, eta), counted(key_data + 1, labels, scale, eta)]
  assert len(traces) == 1
  assert all(float(jnp.abs(other - first).max()) > 1e-3 for other in others)
