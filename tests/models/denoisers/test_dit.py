import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jldm.core.trees import count
from jldm.models.conditioners.label import LabelEmbedding
from jldm.models.denoisers.dit import DiT
from jldm.nn.embedding import LevelEmbedding, grid_sinusoids
from jldm.nn.resample import depth_to_space, space_to_depth
from jldm.nn.transformer import ModulatedBlock, modulated
from tests.networks import quick, random_params

RNG = np.random.default_rng(0)
SMALL = DiT(patch=2, width=8, depth=2, heads=2, classes=3)
Z = np.float32(RNG.normal(size=(3, 4, 6, 2)))  # [B, H, W, C], not square
LEVEL = np.array([0.1, 0.5, 0.9], np.float32)
LABELS = np.array([0, 2, -1])


@pytest.fixture(scope="module")
def params():
  return random_params(SMALL, Z, LEVEL, LABELS)


apply = functools.partial(quick, static_argnums=0)(lambda network, params, *x: network.apply({"params": params}, *x))


@pytest.mark.parametrize("patch, height, width, channels, classes, dtype", [
  (1, 3, 5, 4, 0, "float32"), (2, 4, 6, 1, 3, "bfloat16"), (4, 8, 4, 3, 3, "float32"), (2, 2, 2, 4, 0, "bfloat16"),
])
def test_shapes_and_dtypes(patch, height, width, channels, classes, dtype):
  network = DiT(patch=patch, width=8, depth=2, heads=2, classes=classes, dtype=dtype)
  z = jnp.zeros((3, height, width, channels))
  out, params = jax.eval_shape(network.init_with_output, jax.random.key(0), z, LEVEL, LABELS)
  assert out.shape == z.shape
  assert {leaf.dtype for leaf in jax.tree.leaves((out, params))} == {jnp.dtype("float32")}
  assert {leaf.shape[0] for leaf in jax.tree.leaves(params["params"]["blocks"])} == {2}, "a leading axis of depth"


@pytest.mark.parametrize("shape", [(3, 4, 7, 2), (3, 5, 6, 2)])
def test_sizes_that_do_not_fit_are_refused(shape):
  with pytest.raises(ValueError, match=f"latents of {shape[1]}x{shape[2]}; expected sides divisible by patch=2"):
    random_params(SMALL, jnp.zeros(shape), LEVEL, LABELS)


def test_it_starts_by_saying_zero():
  out, _ = quick(SMALL.init_with_output)(jax.random.key(0), Z, LEVEL, LABELS)
  assert not np.asarray(out).any()


def test_it_is_its_layers_one_after_another(params):
  at = lambda module, name, *x: module.apply({"params": params[name]}, *x)
  dense = lambda layer, x: x @ layer["kernel"] + layer["bias"]

  @quick
  def by_hand(params):
    condition = at(LevelEmbedding(8), "level", LEVEL) + at(LabelEmbedding(3, 8), "label", LABELS)
    x = dense(params["in"], space_to_depth(Z, 2).reshape(3, 6, 8)) + grid_sinusoids(2, 3, 8)
    for i in range(2):
      block = jax.tree.map(lambda leaf, i=i: leaf[i], params["blocks"])
      x = ModulatedBlock(2).apply({"params": block}, x, condition)
    shift, scale = jnp.split(dense(params["modulation"]["dense"], jax.nn.silu(condition))[:, None], 2, -1)
    return depth_to_space(dense(params["out"], modulated(x, shift, scale)).reshape(3, 2, 3, 8), 2)

  np.testing.assert_allclose(apply(SMALL, params, Z, LEVEL, LABELS), by_hand(params), atol=1e-4)


def test_what_every_input_changes(params):
  """The unknown class differs from every class, and a sample sees its own level and label alone."""
  out = np.asarray(apply(SMALL, params, Z, LEVEL, LABELS))
  differs = lambda other: np.abs(np.asarray(other) - out).max((1, 2, 3)) > 1e-3
  for label in (0, 1, 2):
    labels = np.array([0, 2, label])
    np.testing.assert_array_equal(differs(apply(SMALL, params, Z, LEVEL, labels)), [False, False, True])
  np.testing.assert_array_equal(differs(apply(SMALL, params, Z, LEVEL + [0.2, 0, 0], LABELS)), [True, False, False])
  turned = Z.copy()
  turned[1] = Z[1, ::-1, ::-1]
  np.testing.assert_array_equal(differs(apply(SMALL, params, turned, LEVEL, LABELS)), [False, True, False])


def test_places_matter(params):
  swapped = np.concatenate([Z[:, 2:], Z[:, :2]], 1)  # two rows of patches
  back = np.asarray(apply(SMALL, params, swapped, LEVEL, LABELS))
  out = np.concatenate([back[:, 2:], back[:, :2]], 1)
  assert np.abs(out - apply(SMALL, params, Z, LEVEL, LABELS)).max() > 1e-2


def test_without_classes_labels_do_nothing(params):
  network, params = SMALL.clone(classes=0), {name: part for name, part in params.items() if name != "label"}
  assert jax.tree.structure(random_params(network, Z, LEVEL, LABELS)) == jax.tree.structure(params)
  out = apply(network, params, Z, LEVEL, LABELS)
  np.testing.assert_array_equal(out, apply(network, params, Z, LEVEL, np.array([1, 1, 1])))


def test_remat_and_unrolling_change_nothing_forward_or_backward(params):
  @functools.partial(quick, static_argnums=0)
  def both(network, params):
    return jax.value_and_grad(lambda params: jnp.sin(network.apply({"params": params}, Z, LEVEL, LABELS)).sum())(params)

  kept, recomputed = (jax.device_get(both(network, params)) for network in (SMALL, SMALL.clone(remat=True, unroll=2)))
  assert all(leaf.any() for leaf in jax.tree.leaves(kept))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(b).max()), kept, recomputed)


def test_bfloat16_is_near_and_comes_back_whole(params):
  half, whole = (apply(SMALL.clone(dtype=dtype), params, Z, LEVEL, LABELS) for dtype in ("bfloat16", "float32"))
  assert half.dtype == jnp.float32
  assert 0 < np.abs(half - whole).max() < 0.05 * np.abs(whole).max()


def test_parameters_of_dit_xl_2():
  """Sizes of table 1 of 2212.09748; 4 output channels: the paper's 675M has 8, and counts a fixed table of places."""
  width, depth, patch, channels, classes, frequencies, mlp = 1152, 28, 2, 4, 1000, 256, 4 * 1152
  dense = lambda a, b: a * b + b
  attention = dense(width, 3 * width) + dense(width, width)
  block = attention + dense(width, mlp) + dense(mlp, width) + dense(width, 6 * width)
  level, label = dense(frequencies, width) + dense(width, width), (classes + 1) * width
  ends = dense(patch**2 * channels, width) + dense(width, patch**2 * channels) + dense(width, 2 * width)
  network = DiT(patch=patch, width=width, depth=depth, heads=16, classes=classes)
  z = jnp.zeros((1, 32, 32, channels))
  shapes = jax.eval_shape(network.init, jax.random.key(0), z, jnp.zeros(1), jnp.zeros(1, int))
  assert count(shapes) == depth * block + level + label + ends
