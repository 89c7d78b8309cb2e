import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jldm.core.errors import UserError
from jldm.core.trees import count
from jldm.models.denoisers.dit import DiT, dit
from jldm.models.denoisers.log_variance import LogVariance
from jldm.nn.embedding import LabelEmbedding, LevelEmbedding, grid_angles, grid_sinusoids
from jldm.nn.norm import layer_norm, rms_norm
from jldm.nn.resample import depth_to_space, space_to_depth
from jldm.nn.transformer import ModulatedBlock, PlainBlock, modulated
from tests.marks import slow_after
from tests.networks import quick, random_params

RNG = np.random.default_rng(0)
SMALL = DiT(ModulatedBlock(heads=2), patch=2, width=8, depth=2, classes=3)
IN_CONTEXT = SMALL.clone(block=PlainBlock(heads=2, rms_norm=True, swiglu=True), in_context=True, rotary=True)
Z = np.float32(RNG.normal(size=(3, 4, 6, 2)))  # [B, H, W, C], not square
LEVEL = np.array([0.1, 0.5, 0.9], np.float32)
LABELS = np.array([0, 2, -1])
INPUTS = {"label": LABELS}


@pytest.fixture(scope="module")
def params():
  return random_params(SMALL, Z, LEVEL, INPUTS)


outputs = functools.partial(quick, static_argnums=0)(
  lambda network, params, *x: network.apply({"params": params}, *x)
)
apply = lambda network, params, *x: outputs(network, params, *x).value
labelled = lambda *labels: {"label": np.array(labels)}


@pytest.mark.parametrize(
  "patch, height, width, channels, classes, dtype",
  [
    (1, 3, 5, 4, 0, "float32"),
    (2, 4, 6, 1, 3, "bfloat16"),
    (4, 8, 4, 3, 3, "float32"),
    (2, 2, 2, 4, 0, "bfloat16"),
  ],
)
def test_shapes_and_dtypes(patch, height, width, channels, classes, dtype):
  network = DiT(ModulatedBlock(heads=2), patch=patch, width=8, depth=2, classes=classes, dtype=dtype)
  z = jnp.zeros((3, height, width, channels))
  out, params = jax.eval_shape(network.init_with_output, jax.random.key(0), z, LEVEL, INPUTS)
  assert out.log_variance is None and out.variance is None
  assert out.value.shape == z.shape
  assert {leaf.dtype for leaf in jax.tree.leaves((out, params))} == {jnp.dtype("float32")}
  assert {leaf.shape[0] for leaf in jax.tree.leaves(params["params"]["blocks"])} == {2}, (
    "a leading axis of depth"
  )


@pytest.mark.parametrize("shape", [(3, 4, 7, 2), (3, 5, 6, 2)])
def test_sizes_that_do_not_fit_are_refused(shape):
  with pytest.raises(
    ValueError, match=f"latents of {shape[1]}x{shape[2]}; expected sides divisible by patch=2"
  ):
    random_params(SMALL, jnp.zeros(shape), LEVEL, INPUTS)


def test_it_starts_by_saying_zero():
  out, _ = quick(SMALL.init_with_output)(jax.random.key(0), Z, LEVEL, INPUTS)
  assert not np.asarray(out.value).any()


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
    return depth_to_space(dense(params["out"], modulated(layer_norm(x), shift, scale)).reshape(3, 2, 3, 8), 2)

  np.testing.assert_allclose(apply(SMALL, params, Z, LEVEL, INPUTS), by_hand(params), atol=1e-4)


def test_what_every_input_changes(params):
  """The unknown class differs from every class, and a sample sees its own level and label alone."""
  out = np.asarray(apply(SMALL, params, Z, LEVEL, INPUTS))
  differs = lambda other: np.abs(np.asarray(other) - out).max((1, 2, 3)) > 1e-3
  for label in (0, 1, 2):
    inputs = labelled(0, 2, label)
    np.testing.assert_array_equal(differs(apply(SMALL, params, Z, LEVEL, inputs)), [False, False, True])
  np.testing.assert_array_equal(
    differs(apply(SMALL, params, Z, LEVEL + [0.2, 0, 0], INPUTS)), [True, False, False]
  )
  turned = Z.copy()
  turned[1] = Z[1, ::-1, ::-1]
  np.testing.assert_array_equal(differs(apply(SMALL, params, turned, LEVEL, INPUTS)), [False, True, False])


def test_places_matter(params):
  swapped = np.concatenate([Z[:, 2:], Z[:, :2]], 1)  # two rows of patches
  back = np.asarray(apply(SMALL, params, swapped, LEVEL, INPUTS))
  out = np.concatenate([back[:, 2:], back[:, :2]], 1)
  assert np.abs(out - apply(SMALL, params, Z, LEVEL, INPUTS)).max() > 1e-2


def test_without_classes_labels_do_nothing(params):
  network, params = SMALL.clone(classes=0), {name: part for name, part in params.items() if name != "label"}
  assert jax.tree.structure(random_params(network, Z, LEVEL, INPUTS)) == jax.tree.structure(params)
  out = apply(network, params, Z, LEVEL, INPUTS)
  np.testing.assert_array_equal(out, apply(network, params, Z, LEVEL, labelled(1, 1, 1)))


VARIANTS = [
  SMALL,
  IN_CONTEXT,
  SMALL.clone(block=ModulatedBlock(heads=2, rms_norm=True, swiglu=True, qk_norm=True), rotary=True),
]


@pytest.mark.parametrize("network", slow_after(1, VARIANTS))
def test_remat_and_unrolling_change_nothing_forward_or_backward(network):
  params = random_params(network, Z, LEVEL, INPUTS)

  @functools.partial(quick, static_argnums=0)
  def both(network, params):
    return jax.value_and_grad(
      lambda params: jnp.sin(network.apply({"params": params}, Z, LEVEL, INPUTS).value).sum()
    )(params)

  kept, recomputed = (
    jax.device_get(both(other, params)) for other in (network, network.clone(remat="full", unroll=2))
  )
  assert all(leaf.any() for leaf in jax.tree.leaves(kept)), "every parameter learns"
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(b).max()), kept, recomputed)


def test_bfloat16_is_near_and_comes_back_whole(params):
  half, whole = (
    apply(SMALL.clone(dtype=dtype), params, Z, LEVEL, INPUTS) for dtype in ("bfloat16", "float32")
  )
  assert half.dtype == jnp.float32
  assert 0 < np.abs(half - whole).max() < 0.05 * np.abs(whole).max()


def test_in_context_it_is_its_layers_one_after_another():
  """Time and class are two tokens before the patches, rotated by nothing, and dropped at the end."""
  params = random_params(IN_CONTEXT, Z, LEVEL, INPUTS)
  at = lambda module, name, *x: module.apply({"params": params[name]}, *x)
  dense = lambda layer, x: x @ layer["kernel"] + layer["bias"]

  @quick
  def by_hand(params):
    x = dense(params["in"], space_to_depth(Z, 2).reshape(3, 6, 8)) + grid_sinusoids(2, 3, 8)
    first = [at(LevelEmbedding(8), "level", LEVEL), at(LabelEmbedding(3, 8), "label", LABELS)]
    x = jnp.concatenate([*(token[:, None] for token in first), x], 1)
    for i in range(2):
      block = jax.tree.map(lambda leaf, i=i: leaf[i], params["blocks"])
      x = IN_CONTEXT.block.apply({"params": block}, x, None, grid_angles(2, 3, 4, leading=2))
    x = rms_norm(x[:, 2:]) * params["norm"]["scale"]
    return depth_to_space(dense(params["out"], x).reshape(3, 2, 3, 8), 2)

  assert "modulation" not in params
  np.testing.assert_allclose(apply(IN_CONTEXT, params, Z, LEVEL, INPUTS), by_hand(params), atol=1e-4)


@pytest.mark.parametrize("block", [PlainBlock(heads=2), ModulatedBlock(heads=2)])
def test_tokens_in_context_matter(block):
  network = IN_CONTEXT.clone(block=block)
  params = random_params(network, Z, LEVEL, INPUTS)
  out = np.asarray(apply(network, params, Z, LEVEL, INPUTS))
  differs = lambda other: np.abs(np.asarray(other) - out).max((1, 2, 3)) > 1e-3
  np.testing.assert_array_equal(
    differs(apply(network, params, Z, LEVEL, labelled(0, 2, 1))), [False, False, True]
  )
  np.testing.assert_array_equal(
    differs(apply(network, params, Z, LEVEL + [0.2, 0, 0], INPUTS)), [True, False, False]
  )


def test_in_context_without_classes_there_is_one_token():
  network = IN_CONTEXT.clone(classes=0)
  params = random_params(network, Z, LEVEL, INPUTS)
  out = apply(network, params, Z, LEVEL, INPUTS)
  np.testing.assert_array_equal(out, apply(network, params, Z, LEVEL, labelled(1, 1, 1)))
  assert (np.abs(apply(network, params, Z, LEVEL + 0.1, INPUTS) - out).max((1, 2, 3)) > 1e-3).all()


def test_rotary_embeddings_need_no_parameters_and_change_the_output(params):
  assert jax.tree.map(np.shape, random_params(SMALL.clone(rotary=True), Z, LEVEL, INPUTS)) == jax.tree.map(
    np.shape, params
  )
  out, rotated = (apply(SMALL.clone(rotary=rotary), params, Z, LEVEL, INPUTS) for rotary in (False, True))
  assert np.abs(out - rotated).max() > 1e-2


def test_self_conditioning():
  """No estimate is an estimate of zeros, and another estimate changes its own sample alone."""
  network, estimate = SMALL.clone(self_conditioning=True), np.float32(RNG.normal(size=Z.shape))
  params = random_params(network, Z, LEVEL, INPUTS)
  assert params["in"]["kernel"].shape == (2 * 2 * 2 * 2, 8) and params["out"]["kernel"].shape == (
    8,
    2 * 2 * 2,
  )
  none, zeros, some = (
    apply(network, params, Z, LEVEL, INPUTS, e) for e in (None, 0 * Z, estimate * [[[[0]]], [[[1]]], [[[0]]]])
  )
  np.testing.assert_array_equal(none, zeros)
  np.testing.assert_array_equal(np.abs(some - none).max((1, 2, 3)) > 1e-3, [False, True, False])


def test_without_self_conditioning_an_estimate_does_nothing(params):
  out = apply(SMALL, params, Z, LEVEL, INPUTS)
  np.testing.assert_array_equal(apply(SMALL, params, Z, LEVEL, INPUTS, Z), out)


def test_log_variance_is_of_the_level_alone(params):
  network = SMALL.clone(log_variance=True)
  both = params | {"log_variance": random_params(LogVariance(), LEVEL)}
  out, log_variance, variance = outputs(network, both, Z, LEVEL, INPUTS)
  assert variance is None and outputs(SMALL, params, Z, LEVEL, INPUTS).log_variance is None
  assert log_variance.shape == (3,) and log_variance.dtype == jnp.float32
  np.testing.assert_allclose(out, apply(SMALL, params, Z, LEVEL, INPUTS), atol=1e-5)
  np.testing.assert_array_equal(
    outputs(network, both, -Z, LEVEL, labelled(1, 1, 1)).log_variance, log_variance
  )
  assert (np.abs(outputs(network, both, Z, LEVEL + 0.05, INPUTS).log_variance - log_variance) > 1e-3).all()


def test_twice_the_channels_are_value_and_variance():
  network, dtype = SMALL.clone(out_channels=4), jnp.dtype("float32")
  params = random_params(network, Z, LEVEL, INPUTS)
  out, log_variance, variance = outputs(network, params, Z, LEVEL, INPUTS)
  assert (
    log_variance is None and out.shape == variance.shape == Z.shape and out.dtype == variance.dtype == dtype
  )
  half = lambda start: (
    params
    | {
      "out": {
        name: leaf.reshape(-1, 4, 4)[..., start : start + 2].reshape(*leaf.shape[:-1], 8)
        for name, leaf in params["out"].items()
      }
    }
  )
  np.testing.assert_allclose(out, apply(SMALL, half(0), Z, LEVEL, INPUTS), atol=1e-5)
  np.testing.assert_allclose(variance, apply(SMALL, half(2), Z, LEVEL, INPUTS), atol=1e-5)
  np.testing.assert_array_equal(
    *(apply(SMALL.clone(out_channels=channels), half(0), Z, LEVEL, INPUTS) for channels in (0, 2))
  )


@pytest.mark.parametrize(
  "fields, message",
  [
    ({"out_channels": 3}, "out_channels=3; expected 0, or 2 or 4 for z of 2"),
    (
      {"out_channels": 4, "log_variance": True},
      "log_variance=True and out_channels=4 learn it twice; expected one of them",
    ),
    ({"block": PlainBlock(heads=2)}, "PlainBlock does not see the noise level; expected in_context=True"),
    ({"block": ModulatedBlock(heads=3)}, "heads=3 does not divide a width of 8"),
  ],
)
def test_fields_that_contradict_each_other_are_refused(fields, message):
  with pytest.raises(UserError) as error:
    random_params(SMALL.clone(**fields), Z, LEVEL, INPUTS)
  assert str(error.value) == message


def test_networks_are_values_and_the_blocks_dtype_is_the_networks(params):
  """Equal networks are one program; running one changes neither it nor its block."""
  same, before = DiT(ModulatedBlock(heads=2), patch=2, width=8, depth=2, classes=3), hash(SMALL)
  traces = []
  traced = jax.jit(lambda network, z: traces.append(network) or z, static_argnums=0)
  apply(SMALL, params, Z, LEVEL, INPUTS)
  traced(SMALL, Z), traced(same, Z)
  assert same == SMALL and hash(same) == hash(SMALL) == before and len(traces) == 1
  assert dataclasses.replace(SMALL, block=ModulatedBlock(heads=4)) != SMALL
  half = SMALL.clone(dtype="bfloat16")
  blocks = (ModulatedBlock(heads=2, dtype=dtype) for dtype in ("float32", "bfloat16"))
  np.testing.assert_array_equal(
    *(apply(half.clone(block=block), params, Z, LEVEL, INPUTS) for block in blocks)
  )


def parameters(network, channels=4):
  shapes = jax.eval_shape(
    network.init, jax.random.key(0), jnp.zeros((1, 32, 32, channels)), jnp.zeros(1), labelled(0)
  )
  return count(shapes)


@pytest.mark.parametrize("size, millions", [("S", 33), ("B", 130), ("L", 458), ("XL", 675)])
def test_published_sizes(size, millions):
  """Table 1 of 2212.09748."""
  assert round(parameters(dit(size, patch=2, classes=1000, out_channels=8)) / 1e6) == millions


def test_the_exact_size_of_the_reference_implementation():
  """It counts the fixed places of 16 x 16 patches as parameters."""
  assert parameters(dit("XL", patch=2, classes=1000, out_channels=8)) + 16 * 16 * 1152 == 675_129_632


def test_a_size_takes_a_block_and_sets_its_heads():
  network = dit("B", ModulatedBlock(swiglu=True), classes=10)
  assert network == DiT(ModulatedBlock(heads=12, swiglu=True), width=768, depth=12, classes=10)
  assert dit("S") == DiT()
  with pytest.raises(UserError, match="size='M'; expected one of"):
    dit("M")


def test_parameters_of_dit_xl_2():
  """Layer by layer, with as many output channels as z has."""
  width, depth, patch, channels, classes, frequencies, mlp = 1152, 28, 2, 4, 1000, 256, 4 * 1152
  dense = lambda a, b: a * b + b
  attention = dense(width, 3 * width) + dense(width, width)
  block = attention + dense(width, mlp) + dense(mlp, width) + dense(width, 6 * width)
  level, label = dense(frequencies, width) + dense(width, width), (classes + 1) * width
  ends = dense(patch**2 * channels, width) + dense(width, patch**2 * channels) + dense(width, 2 * width)
  assert parameters(dit("XL", classes=classes)) == depth * block + level + label + ends


INTERMEDIATES = [SMALL, SMALL.clone(remat="full"), SMALL.clone(unroll=2), IN_CONTEXT.clone(token_width=5)]


@pytest.mark.parametrize("network", INTERMEDIATES)
def test_intermediates_of_the_blocks_come_out_stacked(network):
  """One entry [depth, ...] per layer: the first block's output is the second's input, and the last is
  the stack's.
  """
  inputs = INPUTS | {"tokens": np.float32(RNG.normal(size=(3, 4, 5)))}
  params = random_params(network, Z, LEVEL, inputs)
  run = quick(lambda params: network.apply({"params": params}, Z, LEVEL, inputs, capture_intermediates=True))
  out, captured = run(params)
  blocks, length = captured["intermediates"]["blocks"], 6 + (2 if network.in_context else 0)
  (each,), (attention,) = blocks["__call__"], blocks["attention"]["__call__"]
  assert each.shape == attention.shape == (2, 3, length, 8)
  assert np.abs(each[0] - each[1]).max() > 1e-3
  first = network.clone(depth=1)
  cut = {
    name: jax.tree.map(lambda leaf: leaf[:1], part) if name == "blocks" else part
    for name, part in params.items()
  }
  (alone,) = quick(
    lambda params: first.apply({"params": params}, Z, LEVEL, inputs, capture_intermediates=True)
  )(cut)[1]["intermediates"]["blocks"]["__call__"]
  np.testing.assert_allclose(each[:1], alone, atol=1e-5)
  np.testing.assert_allclose(out.value, apply(network, params, Z, LEVEL, inputs), atol=1e-6)


class Sowing(PlainBlock):
  """A block that shows the norm of its output."""

  def __call__(self, *args):
    out = super().__call__(*args)
    self.sow("intermediates", "size", jnp.linalg.norm(out, axis=-1))
    return out


@pytest.mark.slow
def test_what_a_block_sows_comes_out_and_costs_nothing_otherwise():
  """Without a collection to sow into the program is that of the block that sows nothing, forward and
  backward.
  """
  sowing, silent = (IN_CONTEXT.clone(block=block(heads=2)) for block in (Sowing, PlainBlock))
  params = random_params(silent, Z, LEVEL, INPUTS)
  _, state = sowing.apply({"params": params}, Z, LEVEL, INPUTS, mutable="intermediates")
  assert state["intermediates"]["blocks"]["size"][0].shape == (2, 3, 8)
  loss = lambda network: jax.grad(
    lambda params: jnp.sin(network.apply({"params": params}, Z, LEVEL, INPUTS).value).sum()
  )
  program = lambda network: jax.jit(loss(network)).lower(params).as_text()
  plain, with_norms = program(silent), program(sowing)
  assert plain.count("stablehlo.while") == with_norms.count("stablehlo.while") == 2
  jax.tree.map(np.testing.assert_array_equal, quick(loss(sowing))(params), quick(loss(silent))(params))


@pytest.mark.parametrize("network", [SMALL, IN_CONTEXT])
def test_tokens_do_nothing_at_first_and_without_a_width(network):
  inputs = INPUTS | {"tokens": np.float32(RNG.normal(size=(3, 4, 5)))}
  with_tokens = network.clone(token_width=5)
  params = random_params(network, Z, LEVEL, INPUTS)
  out = apply(network, params, Z, LEVEL, INPUTS)
  np.testing.assert_array_equal(apply(network, params, Z, LEVEL, inputs), out)
  fresh = quick(with_tokens.init)(jax.random.key(0), Z, LEVEL, inputs)["params"]["blocks"]
  assert fresh.keys() == params["blocks"].keys() | {"norm_cross", "cross_attention"}
  params["blocks"] = fresh | params["blocks"]
  np.testing.assert_allclose(apply(with_tokens, params, Z, LEVEL, inputs), out, atol=1e-5)


CONCAT = np.float32(np.random.default_rng(1).normal(size=(*Z.shape[:3], 5)))


def with_concat(network):
  return random_params(network, Z, LEVEL, INPUTS | {"concat": CONCAT})


def test_concat_changes_its_own_sample_alone():
  params, turned = with_concat(SMALL), CONCAT * [[[[1]]], [[[-1]]], [[[1]]]]
  out, other = (apply(SMALL, params, Z, LEVEL, INPUTS | {"concat": concat}) for concat in (CONCAT, turned))
  assert out.shape == Z.shape
  np.testing.assert_array_equal(np.abs(out - other).max((1, 2, 3)) > 1e-3, [False, True, False])


def test_only_the_first_layer_knows_of_concat():
  """Without one the tree is as it was; with one the first kernel has rows more, behind those of z (and
  of an estimate).
  """
  for network in (SMALL, SMALL.clone(self_conditioning=True)):
    plain, more = random_params(network, Z, LEVEL, INPUTS), with_concat(network)
    differ = [
      path
      for (path, a), (_, b) in zip(
        *(jax.tree_util.tree_leaves_with_path(p) for p in (plain, more)), strict=True
      )
      if a.shape != b.shape
    ]
    assert [jax.tree_util.keystr(path) for path in differ] == ["['in']['kernel']"]
  assert with_concat(SMALL)["in"]["kernel"].shape == (2 * 2 * (2 + 5), 8)


def test_gradients_reach_concat():
  params = with_concat(SMALL)
  value = lambda concat: SMALL.apply({"params": params}, Z, LEVEL, INPUTS | {"concat": concat}).value
  slope = quick(jax.grad(lambda concat: jnp.sin(value(concat)).sum()))(CONCAT)
  assert (np.abs(slope).max((1, 2)) > 1e-4).all(), "every channel of every sample"
