"""Captions and prompts as a condition, through a text tower that was trained elsewhere.

A data set has captions as UTF-8 bytes, padded with zeros.  They become ids on the host, once per example,
and the tower's outputs are kept with the latents.  The null is the empty caption, as published models have
it: Rombach et al. 2022 (2112.10752), section 4.3.1; Ho & Salimans 2022 (2207.12598).
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jldm.core.errors import UserError, printable
from jldm.core.specs import Spec, spec
from jldm.models.conditioners.conditioner import Conditioner, Encode, Inputs, Settled, check_field
from jldm.models.towers.tokenizers import Tokenizer, check_vocabulary

Array = jax.Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class Text(Conditioner):
  """The tokens of a text by an imported tower: `frozen[name]`, so a stage needs Need("text", "runs/clip").

  tower: the network, such as CLIPText(), whose parameters that workdir has.
  tokenizer: its ids, Tokenizer("runs/clip/tokenizer").
  field: the captions of the data, uint8 [L].
  masked: whether padding is hidden, from the tower and from the denoiser.  Stable Diffusion does not hide it.
  pooled: whether the denoiser also gets the tower's vector of the whole text.
  """

  tower: Any
  tokenizer: Tokenizer
  field: str = "caption"
  masked: bool = False
  pooled: bool = False
  name: str = "text"

  cached = True

  @property
  def fields(self) -> tuple[str, ...]:
    return tuple(name for name, _ in self.derived_spec())

  def derived_spec(self) -> Spec:
    length = (self.tokenizer.ids,)
    return spec(**{f"{self.name}_ids": (np.int32, length), f"{self.name}_known": (np.bool_, length)})

  def derive(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The ids of captions, and which of them are no padding."""
    check_field(self, self.field, batch)
    return self.named(self.tokenizer([caption_text(each) for each in batch[self.field]]))

  def named(self, read: tuple[np.ndarray, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: array for (name, _), array in zip(self.derived_spec(), read)}

  def draw_inputs(self, batch: dict, keys: Array) -> Inputs:
    return {"ids": batch[f"{self.name}_ids"], "known": batch[f"{self.name}_known"]}

  def read_request(self, given: Any, data: Spec) -> Inputs:
    """A prompt for all samples, or one per sample; UserError for what is no text."""
    texts = [given] if isinstance(given, str) else given
    if (
      not isinstance(texts, (list, tuple, np.ndarray))
      or not len(texts)
      or not all(isinstance(text, str) for text in texts)
    ):
      raise UserError(
        f"{self.name}={printable(repr(given)[:80])}; expected a text, or a list of one per sample"
      )
    ids, known = self.tokenizer([str(text) for text in texts])
    return {"ids": ids, "known": known}

  def embed(self, params: Any, inputs: Inputs, encode: Encode) -> dict[str, Array]:
    known = inputs["known"]
    encoded = self.tower.apply({"params": params}, inputs["ids"], known if self.masked else None)
    condition = {"tokens": encoded.tokens}  # [B, L, D]
    if self.masked:
      condition["mask"] = known  # [B, L]
    if self.pooled:
      if encoded.pooled is None:
        raise UserError(
          f"pooled=True of conditioner {self.name!r}, and {type(self.tower).__name__} has no vector of the "
          "whole text; expected False"
        )
      condition["vector"] = encoded.pooled  # [B, P]
    return condition

  def null(self, params: Any, like: dict[str, Array]) -> dict[str, Array]:
    """The empty caption, of parameters as they are or settled."""
    empty = params if isinstance(params, Settled) else self.settle(params)
    return {key: jnp.broadcast_to(empty.null[key], value.shape) for key, value in like.items()}

  def settle(self, params: Any) -> Settled:
    ids, known = self.tokenizer([""])
    return Settled(self.embed(params, {"ids": jnp.asarray(ids), "known": jnp.asarray(known)}, None))

  def check_tower(self, network: Any) -> None:
    """Raises a UserError unless the imported network is that of the fields, and its tokenizer fits."""
    if network != self.tower:
      raise UserError(
        f"conditioner {self.name!r} has tower={self.tower!r}, and what the stage needs as {self.name!r} is "
        f"{network!r}; make them equal"
      )
    check_vocabulary(self.tokenizer, self.tower)


def caption_text(caption: np.ndarray) -> str:
  """UTF-8 bytes uint8 [L], padded with zeros -> text; a character that was cut is left out."""
  return bytes(caption).rstrip(b"\0").decode("utf-8", "ignore")
