import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jldm.core.errors import UserError
from jldm.nn.attention import CrossAttention, SelfAttention, attend, fused, late_normalised
from jldm.nn.embedding import grid_angles
from tests.networks import quick, random_params

RNG = np.random.default_rng(0)
Q = np.float32(RNG.normal(size=(2, 5, 3, 4)))  # [B, L, N, D]
K, V = (np.float32(RNG.normal(size=(2, 7, 3, 4))) for _ in range(2))
WEIGHTS = np.float32(RNG.normal(size=Q.shape))


def exact(q, k, v):
  """softmax(q k^T / sqrt(D)) v in float64, one head of one sample at a time."""
  out = np.zeros(q.shape)
  for b, n in np.ndindex(q.shape[0], q.shape[2]):
    logits = np.float64(q[b, :, n]) @ np.float64(k[b, :, n]).T / np.sqrt(q.shape[-1])
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    out[b, :, n] = weights / weights.sum(-1, keepdims=True) @ np.float64(v[b, :, n])
  return out


@functools.partial(quick, static_argnums=0)
def with_gradients(kernel, q, k, v):
  return kernel(q, k, v), jax.grad(lambda *qkv: (WEIGHTS * kernel(*qkv)).sum(), (0, 1, 2))(q, k, v)


@pytest.mark.parametrize("kernel", [late_normalised, attend])
def test_kernels_agree_forward_and_backward(kernel):
  out, gradients = with_gradients(kernel, Q, K, V)
  reference, reference_gradients = with_gradients(jax.nn.dot_product_attention, Q, K, V)
  np.testing.assert_allclose(out, exact(Q, K, V), atol=1e-5)
  np.testing.assert_allclose(out, reference, atol=1e-5)
  for ours, theirs in zip(gradients, reference_gradients, strict=True):
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize("size", [1e3, -1e3])
def test_large_logits_are_finite_and_exact(size):
  out, gradients = with_gradients(late_normalised, size * Q, K, V)
  np.testing.assert_allclose(out, exact(size * Q, K, V), atol=1e-4)
  assert all(np.isfinite(gradient).all() for gradient in gradients)


def test_bfloat16_keeps_its_dtype_and_the_value():
  half = [jnp.asarray(x, jnp.bfloat16) for x in (Q, K, V)]
  out, gradients = with_gradients(late_normalised, *half)
  assert out.dtype == jnp.bfloat16 and all(gradient.dtype == jnp.bfloat16 for gradient in gradients)
  np.testing.assert_allclose(np.float32(out), exact(*map(np.float32, half)), atol=0.03)


def test_self_attention_is_its_formula():
  x = np.float32(RNG.normal(size=(2, 5, 6)))
  module = SelfAttention(heads=2)
  params = random_params(module, x)
  qkv = x @ params["qkv"]["kernel"] + params["qkv"]["bias"]
  q, k, v = (part.reshape(2, 5, 2, 3) for part in np.split(qkv, 3, -1))
  expected = exact(q, k, v).reshape(x.shape) @ params["out"]["kernel"] + params["out"]["bias"]
  np.testing.assert_allclose(module.apply({"params": params}, x), expected, atol=1e-5)


def test_the_kernel_is_an_argument():
  module = SelfAttention(heads=1, kernel=lambda q, k, v, mask: jnp.zeros_like(q))
  x = np.float32(RNG.normal(size=(1, 2, 4)))
  params = random_params(module, x)
  np.testing.assert_allclose(
    module.apply({"params": params}, x), np.broadcast_to(params["out"]["bias"], x.shape)
  )


def parts(module, params, x):
  """Queries, keys and values [B, L, N, D] of a self-attention."""
  qkv = x @ np.float64(params["qkv"]["kernel"]) + params["qkv"]["bias"]
  return (part.reshape(*x.shape[:2], module.heads, -1) for part in np.split(qkv, 3, -1))


def test_queries_and_keys_are_normalised_by_head():
  x = np.float32(RNG.normal(size=(2, 5, 8)))
  module = SelfAttention(heads=2, qk_norm=True)
  params = random_params(module, x)
  q, k, v = parts(module, params, x)
  norm = lambda name, h: h / np.sqrt((h**2).mean(-1, keepdims=True) + 1e-6) * params[name]["scale"]
  expected = (
    exact(norm("norm_q", q), norm("norm_k", k), v).reshape(x.shape) @ params["out"]["kernel"]
    + params["out"]["bias"]
  )
  np.testing.assert_allclose(module.apply({"params": params}, x), expected, atol=1e-5)


@pytest.mark.parametrize("qk_norm", [True, False])
def test_only_with_qk_norm_the_scale_of_queries_does_not_matter(qk_norm):
  x = np.float32(RNG.normal(size=(2, 5, 8)))
  module = SelfAttention(heads=2, qk_norm=qk_norm)
  params = random_params(module, x)
  larger = params | {"qkv": {name: leaf * np.repeat([50, 20, 1], 8) for name, leaf in params["qkv"].items()}}
  difference = np.abs(module.apply({"params": larger}, x) - module.apply({"params": params}, x)).max()
  assert (difference < 1e-3) == qk_norm


def test_rotary_self_attention_knows_relative_places_alone():
  """Moved as a whole over a larger grid the tokens see the same; moved among themselves they do not."""
  x = np.float32(RNG.normal(size=(2, 4, 8)))
  module = SelfAttention(heads=2)
  params = random_params(module, x)
  grid = grid_angles(4, 4, 4).reshape(4, 4, 2)
  apply = quick(lambda x, angles: module.apply({"params": params}, x, angles))
  window = lambda row, column: grid[row : row + 2, column : column + 2].reshape(4, 2)
  still = np.asarray(apply(x, window(0, 0)))
  np.testing.assert_allclose(apply(x, window(2, 1)), still, atol=1e-5)
  np.testing.assert_allclose(apply(x, 0 * window(0, 0)), module.apply({"params": params}, x), atol=1e-5)
  assert np.abs(np.asarray(apply(x[:, ::-1], window(0, 0)))[:, ::-1] - still).max() > 1e-3


def test_cross_attention_is_its_formula():
  x, context = np.float32(RNG.normal(size=(2, 5, 6))), np.float32(RNG.normal(size=(2, 7, 4)))
  module = CrossAttention(heads=2)
  params = random_params(module, x, context)
  assert [name for name, layer in params.items() if "bias" in layer] == ["out"]
  heads = lambda h: h.reshape(*h.shape[:2], 2, 3)
  q, k, v = (heads(h @ params[name]["kernel"]) for name, h in (("q", x), ("k", context), ("v", context)))
  expected = exact(q, k, v).reshape(x.shape) @ params["out"]["kernel"] + params["out"]["bias"]
  np.testing.assert_allclose(module.apply({"params": params}, x, context), expected, atol=1e-5)


def test_the_order_of_a_context_does_not_matter():
  x, context = np.float32(RNG.normal(size=(1, 5, 6))), np.float32(RNG.normal(size=(1, 7, 4)))
  params = random_params(CrossAttention(heads=2), x, context)
  apply = quick(lambda context: CrossAttention(heads=2).apply({"params": params}, x, context))
  np.testing.assert_allclose(apply(context[:, ::-1]), apply(context), atol=1e-5)


@pytest.mark.parametrize("module", [SelfAttention(heads=3), CrossAttention(heads=3)])
def test_heads_that_do_not_divide_are_refused(module):
  x = np.zeros((1, 2, 8), np.float32)
  with pytest.raises(UserError, match="heads=3 does not divide a width of 8"):
    random_params(module, *[x] * (1 + isinstance(module, CrossAttention)))


KERNELS = [late_normalised, fused, attend]
MASK = np.array([[1, 1, 0, 1, 0, 0, 1], [0, 0, 0, 1, 0, 0, 0]], bool)  # [B, M]
EACH = RNG.random((2, 1, 5, 7)) < 0.5  # [B, 1, L, M]
EACH[:, 0, 0] = MASK
EACH[1, 0, 2] = False  # one query that may attend to nothing
NOTHING = np.array([[1, 0, 1, 0, 1, 0, 1], [0] * 7], bool)  # [B, M]; one sample that may attend to nothing
MASKS = {"keys": MASK, "queries and keys": EACH, "no keys": NOTHING, "no keys at all": np.zeros((2, 7), bool)}


def exact_masked(q, k, v, mask):
  """`exact` of the keys that each query may attend to; zeros if there are none."""
  mask, out = np.broadcast_to(mask.reshape(2, -1, 7), (2, 5, 7)), np.zeros(q.shape)
  for b, row in np.argwhere(mask.any(-1)):
    some = mask[b, row]
    out[b, row] = exact(q[b : b + 1, row : row + 1], k[b : b + 1, some], v[b : b + 1, some])[0, 0]
  return out


@functools.partial(quick, static_argnums=0)
def masked_with_gradients(kernel, q, k, v, mask):
  loss = lambda q, k, v: (WEIGHTS * kernel(q, k, v, mask)).sum()
  return kernel(q, k, v, mask), jax.grad(loss, (0, 1, 2))(q, k, v)


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
@pytest.mark.parametrize("kernel", KERNELS)
def test_masked_kernels_attend_to_the_keys_that_are_left(kernel, mask):
  """Forward, and backward by the gradients of the keys that are left alone, of one sample."""
  out, gradients = masked_with_gradients(kernel, Q, K, V, mask)
  np.testing.assert_allclose(out, exact_masked(Q, K, V, mask), atol=1e-5)
  assert all(np.isfinite(gradient).all() for gradient in gradients)
  expected = masked_with_gradients(late_normalised, Q, K, V, mask)[1]
  for ours, theirs in zip(gradients, expected, strict=True):
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize("kernel", KERNELS)
def test_gradients_of_a_masked_kernel_are_those_of_fewer_keys(kernel):
  gradients = masked_with_gradients(kernel, Q, K, V, MASK)[1]
  for b, some in enumerate(MASK):
    loss = lambda q, k, v, b=b: (WEIGHTS[b] * kernel(q[None], k[None], v[None])[0]).sum()
    fewer = quick(jax.grad(loss, (0, 1, 2)))(Q[b], K[b, some], V[b, some])
    for ours, theirs in zip(
      (gradients[0][b], gradients[1][b][some], gradients[2][b][some]), fewer, strict=True
    ):
      np.testing.assert_allclose(ours, theirs, atol=1e-5)
    assert not gradients[1][b][~some].any() and not gradients[2][b][~some].any()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kernel", KERNELS)
def test_a_query_whose_keys_are_all_masked_gets_zeros_and_finite_gradients(kernel, dtype):
  arrays = [jnp.asarray(x, dtype) for x in (100 * Q, K, V)]
  for mask, empty in ((NOTHING, np.s_[1]), (EACH, np.s_[1, 2])):
    out, gradients = masked_with_gradients(kernel, *arrays, mask)
    assert out.dtype == dtype and not out[empty].any() and out[0].any()
    np.testing.assert_allclose(np.float32(out), exact_masked(*map(np.float32, arrays), mask), atol=0.03)
    assert all(gradient.dtype == dtype and np.isfinite(np.float32(gradient)).all() for gradient in gradients)
    assert not gradients[0][empty].any()


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_mask_of_all_keys_is_no_mask(kernel):
  for mask in (np.ones((2, 7), bool), np.ones((2, 1, 5, 7), bool), np.ones((1, 1, 1, 7), bool)):
    np.testing.assert_array_equal(quick(kernel)(Q, K, V, mask), quick(kernel)(Q, K, V))


@pytest.mark.parametrize(
  "mask, message",
  [
    (np.ones((2, 7), np.float32), r"a mask float32\[2, 7\]"),
    (np.ones((2, 5, 7), bool), r"a mask bool\[2, 5, 7\]"),
  ],
)
@pytest.mark.parametrize("kernel", KERNELS)
def test_masks_that_are_none_are_refused(kernel, mask, message):
  with pytest.raises(UserError, match=message + r"; expected bool \[B, M\] or \[B, 1, L, M\]"):
    kernel(Q, K, V, mask)


def test_a_masked_self_attention_is_that_of_fewer_tokens():
  x, keep = np.float32(RNG.normal(size=(1, 7, 8))), MASK[0]
  module = SelfAttention(heads=2)
  params = random_params(module, x)
  angles = grid_angles(1, 7, 4)
  masked = module.apply({"params": params}, x, angles, keep[None])
  np.testing.assert_allclose(
    masked[:, keep], module.apply({"params": params}, x[:, keep], angles[keep]), atol=1e-5
  )


def test_a_masked_cross_attention_is_that_of_a_shorter_context():
  x, context = np.float32(RNG.normal(size=(1, 5, 6))), np.float32(RNG.normal(size=(1, 7, 4)))
  module = CrossAttention(heads=2)
  params = random_params(module, x, context)
  masked = module.apply({"params": params}, x, context, MASK[:1])
  np.testing.assert_allclose(masked, module.apply({"params": params}, x, context[:, MASK[0]]), atol=1e-5)


def test_a_cross_attention_may_start_at_zero():
  x, context = np.float32(RNG.normal(size=(1, 5, 6))), np.float32(RNG.normal(size=(1, 7, 4)))
  for zero_init in (True, False):
    out, _ = CrossAttention(heads=2, zero_init=zero_init).init_with_output(jax.random.key(0), x, context)
    assert bool(out.any()) != zero_init
