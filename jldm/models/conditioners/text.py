"""Captions and prompts as a condition, through a text tower that was trained elsewhere or is trained here.

A data set has captions as UTF-8 bytes, padded with zeros.  They become ids on the host, once per example,
and the outputs of a tower trained elsewhere are kept with the latents.  The null is the empty caption, as
published models have it: Rombach et al. 2022 (2112.10752), section 4.3.1; Ho & Salimans 2022 (2207.12598).
"""

import dataclasses
from typing import Any, ClassVar

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jldm.core.errors import UserError, printable
from jldm.core.specs import Spec, spec
from jldm.models.conditioners.conditioner import Conditioner, Encode, Inputs, Settled, check_field
from jldm.models.towers.tokenizers import JoinedTokenizer, Tokenizer, check_vocabulary
from jldm.models.towers.words import Hashed, WordEncoder

Array = jax.Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextConditioner(Conditioner):
  """What texts have in common: captions as ids on the host, prompts, and the empty caption as null.

  network, tokenizer: what makes tokens of ids, and ids of texts.
  field: the captions of the data, uint8 [L].
  masked: whether padding is hidden, from the network and from the denoiser.
  pooled: whether the denoiser also gets one vector of the whole text.
  """

  tokenizer: Any
  field: str = "caption"
  masked: bool = False
  pooled: bool = False
  name: str = "text"

  network: ClassVar[nn.Module]

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
    encoded = self.network.apply({"params": params}, inputs["ids"], known if self.masked else None)
    condition = {"tokens": encoded.tokens}  # [B, L, D]
    if self.masked:
      condition["mask"] = known  # [B, L]
    if self.pooled:
      if encoded.pooled is None:
        raise UserError(
          f"pooled=True of conditioner {self.name!r}, and {type(self.network).__name__} has no vector of the "
          "whole text; expected False"
        )
      condition["vector"] = encoded.pooled  # [B, P]
    return condition

  def embed_empty(self, params: Any) -> dict[str, Array]:
    """The condition of the empty caption, [1, ...]."""
    ids, known = self.tokenizer([""])
    return self.embed(params, {"ids": jnp.asarray(ids), "known": jnp.asarray(known)}, None)

  def null(self, params: Any, like: dict[str, Array]) -> dict[str, Array]:
    """The empty caption."""
    return broadcast_to(self.embed_empty(params), like)


def broadcast_to(empty: dict[str, Array], like: dict[str, Array]) -> dict[str, Array]:
  """A condition [1, ...] in the shapes of `like`."""
  return {key: jnp.broadcast_to(empty[key], value.shape) for key, value in like.items()}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Text(TextConditioner):
  """The tokens of a text by an imported tower: `frozen[name]`, so a stage needs Need("text", "runs/clip").

  tower: the network, such as CLIPText(), whose parameters that workdir has.
  tokenizer: its ids, Tokenizer("runs/clip/tokenizer").
  masked: Stable Diffusion does not hide padding.
  zero_null: whether the null is zeros and not the empty caption, as Stable Diffusion XL has it.
  """

  tower: Any
  tokenizer: Tokenizer | JoinedTokenizer
  zero_null: bool = False

  cached = True
  kept_as = "float16"  # half of the disk: 77 tokens of a text are larger than the latents of its picture

  @property
  def network(self) -> nn.Module:
    return self.tower

  def null(self, params: Any, like: dict[str, Array]) -> dict[str, Array]:
    """The empty caption, of parameters as they are or settled, or zeros."""
    if self.zero_null:
      return jax.tree.map(jnp.zeros_like, like)
    empty = params if isinstance(params, Settled) else self.settle(params)
    return broadcast_to(empty.null, like)

  def settle(self, params: Any) -> Settled:
    return Settled(self.embed_empty(params))

  def check_tower(self, network: Any) -> None:
    """Raises a UserError unless the imported network is that of the fields, and its tokenizer fits."""
    if network != self.tower:
      raise UserError(
        f"conditioner {self.name!r} has tower={self.tower!r}, and what the stage needs as {self.name!r} is "
        f"{network!r}; make them equal"
      )
    check_vocabulary(self.tokenizer, self.tower)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Words(TextConditioner):
  """The tokens of a text by a network that is trained with the denoiser; no need names it.

  encoder: the network, whose parameters stand beside the denoiser's, in the average and the checkpoints too.
  masked: padding is hidden, and the start of the text is all that the empty caption has.
  """

  encoder: WordEncoder = WordEncoder()
  tokenizer: Hashed = Hashed()
  masked: bool = True
  pooled: bool = True

  @property
  def network(self) -> nn.Module:
    return self.encoder

  def init(self, key: Array, inputs: Inputs) -> Any:
    return self.encoder.init(key, inputs["ids"], inputs["known"])["params"]


def caption_text(caption: np.ndarray) -> str:
  """UTF-8 bytes uint8 [L], padded with zeros -> text; a character that was cut is left out."""
  return bytes(caption).rstrip(b"\0").decode("utf-8", "ignore")
