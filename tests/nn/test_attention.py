import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jldm.nn.attention import SelfAttention, attend, late_normalised
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
