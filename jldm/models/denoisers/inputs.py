"""The named inputs of a denoiser, as its layers take them.

  label [B]  vector [B, D]  to [B]  guidance_scale [B]    vectors, added to that of the noise level
  tokens [B, M, D], mask bool [B, M]                      context of attention, where the mask is True
  concat [B, H, W, Cc], and an estimate [B, H, W, C]      channels behind those of z

A network reads those that it knows and ignores the others.
"""

from flax import linen as nn
import jax
import jax.numpy as jnp

from jldm.core.errors import UserError
from jldm.nn.dense import Dense
from jldm.nn.embedding import LabelEmbedding, LevelEmbedding, VectorEmbedding

Array = jax.Array
Inputs = dict[str, Array]

# field of a network -> the input it needs
FIELDS = {
  "classes": "label",
  "token_width": "tokens",
  "target_time": "to",
  "guidance_scale": "guidance_scale",
}


def check_inputs(inputs: Inputs, **fields: int | bool) -> None:
  """`fields` of a network by name, each one of FIELDS.

  Raises:
    UserError: a field that is set needs an input that is missing.
  """
  for field, value in fields.items():
    if value and FIELDS[field] not in inputs:
      raise UserError(f"{field}={value} and inputs {sorted(inputs)}; expected {FIELDS[field]!r} among them")


def read_tokens(inputs: Inputs, token_width: int) -> tuple[Array, Array | None]:
  """tokens [B, M, token_width] and their mask, bool [B, M] or None.

  Raises:
    UserError: other shapes.
  """
  check_inputs(inputs, token_width=token_width)
  tokens, mask = inputs["tokens"], inputs.get("mask")
  if tokens.ndim != 3 or tokens.shape[-1] != token_width:
    raise UserError(f"tokens of shape {tokens.shape}; expected [B, M, {token_width}]")
  if mask is not None and mask.shape != tokens.shape[:2]:
    raise UserError(
      f"a mask of shape {mask.shape}; expected {tokens.shape[:2]} for tokens of shape {tokens.shape}"
    )
  return tokens, mask


def condition_vectors(
  network: nn.Module,
  noise_level: Array,
  inputs: Inputs,
  width: int,
  classes: int,
  frequencies: int = 256,
  frequency_shift: int = 0,
  vector_layers: int = 1,
) -> list[Array]:
  """One vector [B, width] for the noise level, and one each for label, `vector`, `to` and `guidance_scale`.

  The last four are there if the network reads them; it reads `vector` if it was initialised with one.
  Call this in a compact method of `network`: that module gets the layers "level", "label", "vector",
  "target_time" and "guidance_scale".

  Raises:
    UserError: a field, or the parameters, need an input that is missing.
  """
  check_inputs(
    inputs, classes=classes, target_time=network.target_time, guidance_scale=network.guidance_scale
  )
  if "vector" not in inputs and network.has_variable("params", "vector"):
    raise UserError(
      f"parameters with a layer 'vector' and inputs {sorted(inputs)}; expected 'vector' among them"
    )

  def embed_number(name: str, x: Array) -> Array:
    return LevelEmbedding(width, frequencies, network.dtype, name=name)(x)

  level = LevelEmbedding(width, frequencies, network.dtype, frequency_shift, name="level")
  vectors = [level(noise_level)]
  if classes:
    vectors.append(LabelEmbedding(classes, width, name="label")(inputs["label"]).astype(network.dtype))
  if "vector" in inputs:
    embed = VectorEmbedding if vector_layers > 1 else Dense
    vectors.append(embed(width, dtype=network.dtype, name="vector")(inputs["vector"]))
  if network.target_time:
    vectors.append(embed_number("target_time", inputs["to"]))
  if network.guidance_scale:
    vectors.append(embed_number("guidance_scale", inputs["guidance_scale"]))
  return vectors


def with_estimate(z: Array, estimate: Array | None) -> Array:
  """z [..., C] and an earlier estimate of the data [..., C] (None: zeros) -> [..., 2 C].

  Self-conditioning, Chen et al. 2022 (2208.04202), section 3.2.
  """
  return jnp.concatenate([z, jnp.zeros_like(z) if estimate is None else estimate.astype(z.dtype)], -1)


def with_concat(z: Array, inputs: Inputs) -> Array:
  """z [B, H, W, C] and the input `concat` [B, H, W, Cc], if there is one -> [B, H, W, C + Cc]."""
  return jnp.concatenate([z, inputs["concat"].astype(z.dtype)], -1) if "concat" in inputs else z
