"""A mixture of three Gaussians in the plane, in closed form at every time; float64 where z is.

(1)  data ~ sum of w_k N(m_k, s_k^2):  z_t | k ~ N(alpha m_k, spread_k^2)
     with spread_k^2 = alpha^2 s_k^2 + sigma^2
(2)  E[x0 | z, k] = m_k + alpha s_k^2 / spread_k^2 (z - alpha m_k)
     E[eps | z, k] = sigma / spread_k^2 (z - alpha m_k)
(3)  E[. | z] is their mean over P(k | z), which is proportional to w_k p(z | k)
"""

import jax
import jax.numpy as jnp

from jldm.diffusion.target import Denoised

WEIGHTS = (0.5, 0.3, 0.2)
MEANS = ((1.2, 0.4), (-1.0, 0.8), (0.1, -1.3))
STDS = (0.3, 0.5, 0.2)


def parts(process, z, t):
  """z [B, 2], t [] or [B] -> m_k [3, 2], s_k [3, 1], z - alpha m_k [B, 3, 2], spread_k^2, alpha and
  sigma, which broadcast.
  """
  alpha, sigma = (jnp.reshape(rate, (-1, 1, 1)) for rate in (process.alpha(t), process.sigma(t)))
  means, stds = jnp.asarray(MEANS, z.dtype), jnp.asarray(STDS, z.dtype)[:, None]
  return means, stds, z[:, None] - alpha * means, (alpha * stds) ** 2 + sigma**2, alpha, sigma


def joint(off, squared):
  """log of w_k p(z | k) [B, 3]."""
  logs = jnp.sum(-0.5 * off**2 / squared - 0.5 * jnp.log(2 * jnp.pi * squared), -1)
  return jnp.log(jnp.asarray(WEIGHTS, off.dtype)) + logs


def mixture(process):
  """The exact posterior mean (3), finite at both ends."""

  def denoise(z, t, estimate=None, to=None):
    means, stds, off, squared, alpha, sigma = parts(process, z, t)
    share = jax.nn.softmax(joint(off, squared))[..., None]
    mean = lambda each: jnp.sum(share * each, 1)
    return Denoised(mean(means + alpha * stds**2 * off / squared), mean(sigma * off / squared))

  return denoise


def log_density(process, z, t):
  """log p(z_t) [B] of z [B, 2] at t [] or [B]."""
  _, _, off, squared, _, _ = parts(process, z, t)
  return jax.nn.logsumexp(joint(off, squared), 1)


def data(key, count, dtype=jnp.float32):
  """Examples x0 [count, 2]."""
  key_component, key_place = jax.random.split(key)
  k = jax.random.categorical(key_component, jnp.log(jnp.asarray(WEIGHTS)), shape=(count,))
  place = jax.random.normal(key_place, (count, 2), dtype)
  return jnp.asarray(MEANS, dtype)[k] + jnp.asarray(STDS, dtype)[k, None] * place
