import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jldm.core.errors import UserError
from jldm.nn.attention import CrossAttention, SelfAttention, attend, late_normalised
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
  module = SelfAttention(heads=1, kernel=lambda q, k, v: jnp.zeros_like(q))
  x = np.float32(RNG.normal(size=(1, 2, 4)))
  params = random_params(module, x)
  np.testing.assert_allclose(module.apply({"params": params}, x), np.broadcast_to(params["out"]["bias"], x.shape))


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
  expected = exact(norm("norm_q", q), norm("norm_k", k), v).reshape(x.shape) @ params["out"]["kernel"] + params["out"]["bias"]
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
