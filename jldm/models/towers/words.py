"""A text tower of one's own, trained with the denoiser: words by their hashes, and a small transformer.

  id(w) = CRC-32 of the UTF-8 bytes of w, modulo 2^31 - 2, plus 2      0 is padding, 1 begins every text
  e(w) = table[id mod rows] + table[id div rows mod rows]

So there is no vocabulary to keep: any word of any script has an embedding, and two words are confused only if
both of their rows are the same, as in Serrà & Karatzoglou 2017 (1706.03993), section 3.
"""

from collections.abc import Sequence
import dataclasses
import re
import unicodedata
import zlib

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jldm.core.errors import UserError
from jldm.models.towers.clip import CLIPBlock
from jldm.models.towers.tower import Encoded
from jldm.nn.norm import LayerNorm

Array = jax.Array

PADDING, START = 0, 1
HASHES = 2**31 - 2  # ids of words are 2 to 2^31 - 1
WORD = re.compile(r"\w+(?:[-'\u2019]\w+)*|[^\w\s]")


@dataclasses.dataclass(frozen=True)
class Hashed:
  """Words and signs of punctuation as ids, without regard to case; "t-shirt" and "don't" are one word each.

  length: the number of ids of a text, the start among them; longer texts are cut, shorter ones padded.
  """

  length: int = 16

  def __call__(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Texts -> ids int32 [n, L], and whether each is of the text and no padding, bool [n, L]."""
    ids = np.full((len(texts), self.length), PADDING, np.int32)
    for row, text in enumerate(texts):
      found = [START, *map(hash_word, split_words(text)[: self.length - 1])]
      ids[row, : len(found)] = found
    return ids, ids != PADDING

  @property
  def ids(self) -> int:
    """How many ids a text has."""
    return self.length


def split_words(text: str) -> list[str]:
  """The words of a text in lower case, each sign of punctuation by itself; spaces alone separate."""
  return WORD.findall(unicodedata.normalize("NFC", text).casefold())


def hash_word(word: str) -> int:
  return zlib.crc32(word.encode("utf-8", "replace")) % HASHES + 2


class WordEncoder(nn.Module):
  """A transformer over the words of a text, each of which sees all others.

  rows: of the table of embeddings.  Of n words some (n / rows)^2 pairs have the same two rows.
  length: of the longest text.
  """

  rows: int = 1024
  length: int = 64
  width: int = 128
  depth: int = 2
  heads: int = 4
  hidden: int = 256
  dtype: str = "float32"

  @nn.compact
  def __call__(self, ids: Array, mask: Array) -> Encoded:
    """ids int [B, L], mask bool [B, L] -> tokens [B, L, width], and the start's state as pooled [B, width].

    Raises:
      UserError: more ids than `length`.
    """
    places = ids.shape[1]
    if places > self.length:
      raise UserError(f"ids [B, {places}]; expected at most length={self.length} per text")
    init = nn.initializers.normal(0.7)  # words and places outweigh what the first block adds
    table = nn.Embed(self.rows, self.width, embedding_init=init, dtype=self.dtype, name="words")
    x = table(ids % self.rows) + table(ids // self.rows % self.rows)  # [B, L, width]
    x = x + self.param("places", init, (self.length, self.width), jnp.float32)[:places].astype(self.dtype)
    for i in range(self.depth):
      block = CLIPBlock(self.heads, self.hidden, "gelu_tanh", 1e-6, self.dtype, name=f"block{i}")
      x = block(x, mask)
    x = LayerNorm(dtype=self.dtype, name="norm")(x).astype(jnp.float32)
    return Encoded(x, x[:, 0])
