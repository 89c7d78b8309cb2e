import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jldm.nn.attention import CrossAttention, SelfAttention
from jldm.nn.embedding import grid_angles
from jldm.nn.mlp import GEGLU, Mlp, SwiGLU
from jldm.nn.transformer import (
  CrossBlock,
  JointBlock,
  ModulatedBlock,
  Modulation,
  PlainBlock,
  SpatialTransformer,
  modulated,
)
from tests.networks import quick, random_params

RNG = np.random.default_rng(0)
X = np.float32(RNG.normal(size=(2, 6, 8)))  # [B, L, C]
CONDITION = np.float32(RNG.normal(size=(2, 6)))
ANGLES = grid_angles(2, 3, 4)
CONTEXT = np.float32(RNG.normal(size=(2, 3, 5)))
IMAGE = np.float32(RNG.normal(size=(2, 2, 3, 8)))
BLOCK = ModulatedBlock(heads=2, mlp_ratio=2.0)
VARIANTS = [{}, {"rms_norm": True, "swiglu": True, "qk_norm": True}]


def layer_norm(x, epsilon=1e-6):
  x = np.float64(x) - np.float64(x).mean(-1, keepdims=True)
  return x / np.sqrt((x**2).mean(-1, keepdims=True) + epsilon)


def rms_norm(x):
  return np.float64(x) / np.sqrt((np.float64(x) ** 2).mean(-1, keepdims=True) + 1e-6)


def norm(block, params, name, x):
  """The block's own choice: RMS norm has a scale, layer norm a scale and a bias if nothing modulates it."""
  if block.rms_norm:
    return rms_norm(x) * params[name]["scale"]
  return layer_norm(x) * params[name]["scale"] + params[name]["bias"] if name in params else layer_norm(x)


def layers(block, params):
  """Attention and MLP of a block, by themselves."""
  # 10 = int(2/3 16)
  attention, mlp = (SelfAttention(2, block.qk_norm), SwiGLU(10) if block.swiglu else Mlp(16))
  return (
    lambda x: attention.apply({"params": params["attention"]}, np.float32(x), ANGLES),
    lambda x: mlp.apply({"params": params["mlp"]}, np.float32(x)),
  )


def modulation(params, condition):
  h = condition / (1 + np.exp(-np.float64(condition)))
  return np.split((h @ params["kernel"] + params["bias"])[:, None], 6, -1)


def test_modulation_starts_at_zero_and_is_its_formula():
  module = Modulation(6, 8)
  assert not any(leaf.any() for leaf in jax.tree.leaves(module.init(jax.random.key(0), CONDITION)))
  params = random_params(module, CONDITION)
  out = module.apply({"params": params}, CONDITION)
  for ours, expected in zip(out, modulation(params["dense"], CONDITION), strict=True):
    assert ours.shape == (2, 1, 8)
    np.testing.assert_allclose(ours, expected, atol=1e-5)


def test_modulated():
  shift, scale = (np.float32(RNG.normal(size=(2, 1, 8))) for _ in range(2))
  np.testing.assert_allclose(modulated(X, shift, scale), X * (1 + scale) + shift, atol=1e-5)
  assert not np.abs(modulated(X, 0 * shift, 0 * scale) - X).any()


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_modulated_block_starts_as_the_identity(variant):
  out, _ = quick(BLOCK.clone(**variant).init_with_output)(jax.random.key(0), X, CONDITION, ANGLES)
  np.testing.assert_array_equal(out, X)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_modulated_block_is_its_formula(variant):
  block = BLOCK.clone(**variant)
  params = random_params(block, X, CONDITION, ANGLES)
  shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = modulation(params["modulation"]["dense"], CONDITION)
  attention, mlp = layers(block, params)
  x = X + gate_a * attention(norm(block, params, "norm1", X) * (1 + scale_a) + shift_a)
  x = x + gate_m * mlp(norm(block, params, "norm2", x) * (1 + scale_m) + shift_m)
  np.testing.assert_allclose(quick(block.apply)({"params": params}, X, CONDITION, ANGLES), x, atol=1e-4)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_plain_block_is_its_formula_whatever_the_condition(variant):
  block = PlainBlock(heads=2, mlp_ratio=2.0, **variant)
  params = random_params(block, X, CONDITION, ANGLES)
  assert set(params) == {"norm1", "attention", "norm2", "mlp"}
  attention, mlp = layers(block, params)
  x = X + attention(norm(block, params, "norm1", X))
  x = x + mlp(norm(block, params, "norm2", x))
  apply = quick(lambda condition: block.apply({"params": params}, X, condition, ANGLES))
  np.testing.assert_allclose(apply(CONDITION), x, atol=1e-4)
  np.testing.assert_array_equal(apply(CONDITION), apply(-CONDITION))


BLOCKS = [
  block.clone(**variant) for block in (BLOCK, PlainBlock(heads=2, mlp_ratio=2.0)) for variant in VARIANTS
]
MASK = np.array([[True, False, True], [False, False, False]])


@pytest.mark.parametrize("block", BLOCKS)
def test_attention_to_tokens_stands_between_attention_and_mlp(block):
  params = random_params(block, X, CONDITION, ANGLES, CONTEXT)
  assert params.keys() == random_params(block, X, CONDITION, ANGLES).keys() | {
    "norm_cross",
    "cross_attention",
  }
  attention, mlp = layers(block, params)
  shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = (
    modulation(params["modulation"]["dense"], CONDITION) if block.modulates else (0, 0, 1) * 2
  )
  x = X + gate_a * attention(norm(block, params, "norm1", X) * (1 + scale_a) + shift_a)
  h = np.float32(norm(block, params, "norm_cross", x))
  x = x + CrossAttention(2).apply({"params": params["cross_attention"]}, h, CONTEXT, MASK)
  x = x + gate_m * mlp(norm(block, params, "norm2", x) * (1 + scale_m) + shift_m)
  out = quick(block.apply)({"params": params}, X, CONDITION, ANGLES, CONTEXT, MASK)
  np.testing.assert_allclose(out, x, atol=1e-4)


@pytest.mark.parametrize("block", BLOCKS)
def test_attention_to_tokens_starts_as_the_identity(block):
  """Of a block that is trained otherwise: the output is what it is without tokens."""
  params = random_params(block, X, CONDITION, ANGLES)
  fresh = quick(block.init)(jax.random.key(0), X, CONDITION, ANGLES, CONTEXT)["params"]
  params |= {name: fresh[name] for name in ("norm_cross", "cross_attention")}
  apply = quick(lambda *tokens: block.apply({"params": params}, X, CONDITION, ANGLES, *tokens))
  np.testing.assert_allclose(apply(CONTEXT), apply(), atol=1e-5)  # rounded otherwise within another program


TOKENS = np.float32(RNG.normal(size=(2, 3, 8)))  # [B, M, C]


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_joint_block_without_tokens_is_a_modulated_block(variant):
  """All tokens are hidden: the latents pass the layers of `ModulatedBlock`, whose names they have."""
  block = JointBlock(heads=2, mlp_ratio=2.0, **variant)
  params = random_params(block, (X, TOKENS), CONDITION, ANGLES)
  plain = BLOCK.clone(**variant)
  names = jax.eval_shape(plain.init, jax.random.key(0), X, CONDITION, ANGLES)["params"]
  own = {name: params[name] for name in names}
  own["attention"] = {name: params["attention"][name] for name in names["attention"]}
  hidden = np.zeros(TOKENS.shape[:2], bool)
  out, _ = quick(block.apply)({"params": params}, (X, TOKENS), CONDITION, ANGLES, None, hidden)
  np.testing.assert_allclose(out, quick(plain.apply)({"params": own}, X, CONDITION, ANGLES), atol=1e-5)


def test_streams_of_a_joint_block_trade_places_with_their_layers():
  """Without rotary embeddings neither is first: layers and streams exchanged give outputs exchanged."""
  block = JointBlock(heads=2)
  params = random_params(block, (X, TOKENS), CONDITION)

  def exchanged(tree):
    other = lambda name: name.removesuffix("_tokens") if name.endswith("_tokens") else f"{name}_tokens"
    return {other(name): value for name, value in tree.items()}

  swapped = exchanged({name: value for name, value in params.items() if name != "attention"})
  swapped["attention"] = exchanged(params["attention"])
  apply = quick(lambda params, streams: block.apply({"params": params}, streams, CONDITION))
  for one, other in zip(apply(params, (X, TOKENS)), apply(swapped, (TOKENS, X))[::-1]):
    np.testing.assert_allclose(one, other, atol=1e-5)


def test_a_joint_block_starts_as_the_identity_and_hides_what_is_masked():
  block, mask = JointBlock(heads=2), np.array([[True, False, True]] * 2)
  out, _ = quick(block.init_with_output)(jax.random.key(0), (X, TOKENS), CONDITION, ANGLES)
  for one, other in zip(out, (X, TOKENS)):
    np.testing.assert_array_equal(one, other)
  params = random_params(block, (X, TOKENS), CONDITION, ANGLES)
  apply = quick(lambda t, *mask: block.apply({"params": params}, (X, t), CONDITION, ANGLES, None, *mask)[0])
  masked = apply(TOKENS, mask)
  np.testing.assert_allclose(masked, apply(TOKENS[:, [0, 2]]), atol=1e-5)
  assert np.abs(masked - apply(TOKENS)).max() > 1e-3


def test_the_published_hidden_width_of_swiglu():
  """LightningDiT-XL (2501.01423): 2/3 of 4 x 1152 is 3072, beside gates of as many."""
  x, condition = np.zeros((1, 1, 1152), np.float32), np.zeros((1, 1), np.float32)
  shapes = jax.eval_shape(ModulatedBlock(heads=16, swiglu=True).init, jax.random.key(0), x, condition)[
    "params"
  ]["mlp"]
  assert shapes["in"]["kernel"].shape == (1152, 2 * 3072) and shapes["out"]["kernel"].shape == (3072, 1152)


def test_blocks_are_values():
  assert PlainBlock(heads=2) == PlainBlock(heads=2) != ModulatedBlock(heads=2) != ModulatedBlock(heads=4)
  assert hash(PlainBlock(heads=2)) == hash(PlainBlock(heads=2))


def test_a_cross_block_is_its_formula():
  block = CrossBlock(heads=2)
  params = random_params(block, X, CONTEXT)
  at = lambda module, name, *x: np.asarray(module.apply({"params": params[name]}, *map(np.float32, x)))
  norm = lambda name, x: layer_norm(x, 1e-5) * params[name]["scale"] + params[name]["bias"]
  x = X + at(CrossAttention(2), "self_attention", norm("norm1", X), norm("norm1", X))
  x = x + at(CrossAttention(2), "cross_attention", norm("norm2", x), CONTEXT)
  x = x + at(GEGLU(32), "mlp", norm("norm3", x))
  np.testing.assert_allclose(quick(block.apply)({"params": params}, X, CONTEXT), x, atol=1e-4)


def test_a_spatial_transformer_starts_as_the_identity():
  out, _ = quick(SpatialTransformer(2, groups=4).init_with_output)(jax.random.key(0), IMAGE, CONTEXT)
  np.testing.assert_array_equal(out, IMAGE)


def test_a_spatial_transformer_knows_its_own_context_and_no_places():
  module = SpatialTransformer(2, groups=4)
  params = random_params(module, IMAGE, CONTEXT)
  apply = quick(lambda x, context: module.apply({"params": params}, x, context))
  out = np.asarray(apply(IMAGE, CONTEXT))
  np.testing.assert_allclose(apply(IMAGE[:, ::-1, ::-1], CONTEXT)[:, ::-1, ::-1], out, atol=1e-5)
  other = CONTEXT.copy()
  other[1] *= -1
  np.testing.assert_array_equal(np.abs(apply(IMAGE, other) - out).max((1, 2, 3)) > 1e-3, [False, True])


def test_a_spatial_transformer_does_not_see_what_is_masked():
  module = SpatialTransformer(2, groups=4)
  params = random_params(module, IMAGE, CONTEXT)
  apply = quick(lambda context, *mask: module.apply({"params": params}, IMAGE, context, *mask))
  keep = np.array([[True, False, True]] * 2)
  masked = apply(CONTEXT, keep)
  np.testing.assert_allclose(masked, apply(CONTEXT[:, [0, 2]]), atol=1e-4)
  assert np.abs(masked - apply(CONTEXT)).max() > 1e-3


@pytest.mark.parametrize(
  "block, inputs",
  [
    (BLOCK, (X, CONDITION, ANGLES)),
    (BLOCK.clone(**VARIANTS[1]), (X, CONDITION, ANGLES)),
    (PlainBlock(heads=2, **VARIANTS[1]), (X, CONDITION, ANGLES)),
    (BLOCK, (X, CONDITION, ANGLES, CONTEXT)),
    (PlainBlock(heads=2, **VARIANTS[1]), (X, CONDITION, ANGLES, CONTEXT)),
    (CrossBlock(heads=2), (X, CONTEXT)),
    (SpatialTransformer(heads=2, groups=4), (IMAGE, CONTEXT)),
  ],
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_dtype_stays(block, inputs, dtype):
  inputs = jax.tree.map(functools.partial(jnp.asarray, dtype=dtype), inputs)
  block = block.clone(dtype=dtype)
  params = jax.eval_shape(block.init, jax.random.key(0), *inputs)
  assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
  assert jax.eval_shape(block.apply, params, *inputs).dtype == dtype
