"""Bits per dimension of latents, by the probability flow.

bits = bits_per_dim(model, params, images)  # float [N]
"""

from collections.abc import Mapping
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jldm.core.errors import UserError
from jldm.core.keys import normal_like, row_keys, seed_key, split_each
from jldm.core.shapes import batch_rows
from jldm.core.specs import Loaded
from jldm.diffusion import likelihood
from jldm.diffusion.process import half_log_snr
from jldm.diffusion.target import refuse_singular
from jldm.inference.conditions import Branch, embed_branches, make_branches
from jldm.inference.model import Model
from jldm.models.codecs.codec import sample_latents
from jldm.objectives.denoiser import bind
from jldm.samplers.grid import log_snr_uniform

Array = jax.Array


@functools.partial(jax.jit, static_argnums=(0, 6))
def batch_log_density(
  model: Model, params: dict, images: Array, given: tuple[Branch, ...], times: Array, keys: Array, probes: int
) -> Array:
  """log p [B] of standardised latents of images [B, H, W, C], drawn and noised to times[0]; keys [B]."""
  key_latent, key_noise, key_probes = split_each(keys, 3)
  codec = Loaded(model.codec, params["codec"])
  latents = sample_latents(codec, codec.model.encode(codec.params, {"image": images}), key_latent)
  z = model.process.alpha(times[0]) * latents + model.process.sigma(times[0]) * normal_like(
    key_noise, latents
  )
  denoise = bind(model.objective, params, embed_branches(model, params, given))
  divergence = likelihood.hutchinson(key_probes, z, probes)
  density = likelihood.log_density(model.process, denoise, z, times, divergence)
  return density + z[0].size * jnp.log(model.process.alpha(times[0]))  # of z / alpha, whatever the process


def bits_per_dim(
  model: Model,
  params: dict,
  images: Any,
  given: Mapping[str, Any] | None = None,
  seed: int = 0,
  steps: int = 50,
  probes: int = 1,
  batch_size: int = 64,
) -> np.ndarray:
  """Bits per value [N]: of latents, not of pixels, so that they compare denoisers over one codec.

  images uint8 [N, H, W, C] or float in [-1, 1]; `given` as in a Request, by default nothing.  The
  latents are standardised and have noise of log SNR 10 on them; raw ones have the mean of log2 std
  more (likelihood.unstandardised).  Four evaluations and their derivatives in each of `steps`,
  which are even in log SNR.  The value of image i depends on (seed, i).

  Raises:
    UserError: no images, images of another shape, steps or probes < 1, or conditions that `make_branches`
    refuses.
  """
  images, expected = np.asarray(images), dict(model.data)["image"].shape
  if images.ndim != 4 or images.shape[1:] != expected or not len(images) or probes < 1:
    raise UserError(
      f"images of shape {list(images.shape)}, probes={probes}; expected [N, "
      f"{', '.join(map(str, expected))}], as "
      "the model was trained on, and at least one probe"
    )
  whole = make_branches(model, given or {}, (), len(images))
  lowest = 2 * float(half_log_snr(model.process, jnp.float32(1)))
  path = log_snr_uniform(model.process, steps, max(lowest, -10.0), 10.0)[::-1]
  refuse_singular(model.process, model.objective.parametrization, np.asarray(path))
  densities, key, batch_size = [], seed_key(seed), min(batch_size, len(images))
  for start in range(0, len(images), batch_size):
    rows = batch_rows(start, batch_size, len(images))
    keys, some = row_keys(key, rows.astype(np.uint32)), jax.tree.map(lambda x, rows=rows: x[rows], whole)
    densities.append(np.asarray(batch_log_density(model, params, images[rows], some, path, keys, probes)))
  return np.asarray(
    likelihood.bits_per_dim(np.concatenate(densities)[: len(images)], math.prod(model.latent_shape))
  )
