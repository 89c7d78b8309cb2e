"""Tokenizers of published text towers, on the host: CLIP's byte pairs, and T5's pieces.

They are read from the files that belong to the tower's weights,

  tokenizer.json              of the `tokenizers` library, of any tower
  vocab.json, merges.txt      CLIP's: Radford et al. 2021 (2103.00020), section 2.4
  spiece.model                T5's: SentencePiece, Kudo & Richardson 2018 (1808.06226)

and perhaps tokenizer_config.json, which says what padding is and how long a text may be.  The libraries are
extras: pip install -e '.[text]'.
"""

from collections.abc import Callable, Sequence
import dataclasses
import functools
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jldm.core.errors import UserError, printable
from jldm.models.towers.joined import JoinedText

START, END = "<|startoftext|>", "<|endoftext|>"  # CLIP's
PIECE_END = "</s>"  # T5's
WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
FILES = ("tokenizer.json", "vocab.json", "merges.txt", "spiece.model")
MOST_BYTES = 2**27  # of a file
MOST_LENGTH = 2**16  # a greater model_max_length of tokenizer_config.json means none
ROUNDED = 128  # tables of towers may have rows up to a multiple of this
LENGTHS = {"vocab.json": 77, "tokenizer.json": 77, "spiece.model": 512}  # of files that do not say


@dataclasses.dataclass(frozen=True)
class Tokenizer:
  """The tokenizer in the folder `path`: texts -> as many ids each.

  length: the number of ids of a text, with those that begin and end it; longer texts are cut, shorter ones
    padded.  0 is what tokenizer_config.json says.
  """

  path: str
  length: int = 0

  def __call__(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Texts -> ids int32 [n, L], and whether each is of the text and no padding, bool [n, L].

    Raises:
      UserError: no such files, files that are damaged, no library to read them, or no texts.
    """
    if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
      raise UserError(f"texts {printable(repr(texts)[:80])}; expected a list of texts, such as ['a red cat']")
    read, length = read_folder(self.path), self.ids
    ids = np.full((len(texts), length), read.padding, np.int32)
    known = np.zeros(ids.shape, bool)
    for row, text in enumerate(texts):
      # A lone half of a surrogate pair, which no UTF-8 has, is what UTF-8 shows in its place.
      found = read.encode(text.encode("utf-8", "replace").decode(), length)
      ids[row, : len(found)], known[row, : len(found)] = found, True
    return ids, known

  @property
  def ids(self) -> int:
    """How many ids a text has."""
    return self.length or read_folder(self.path).length

  @property
  def vocabulary(self) -> int:
    """How many ids there are."""
    return read_folder(self.path).vocabulary


@dataclasses.dataclass(frozen=True)
class JoinedTokenizer:
  """The ids of two tokenizers side by side, for a JoinedText: those of `first` come first."""

  first: Tokenizer
  second: Tokenizer

  def __call__(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """As `Tokenizer`, [n, 2 L]; UserError if they have texts of two lengths."""
    if self.first.ids != self.second.ids:
      raise UserError(
        f"texts of {self.first.ids} and {self.second.ids} ids; expected as many of both tokenizers"
      )
    return tuple(np.concatenate(both, 1) for both in zip(self.first(texts), self.second(texts)))

  @property
  def ids(self) -> int:
    """How many ids a text has."""
    return self.first.ids + self.second.ids


def check_vocabulary(tokenizer: Any, network: Any) -> None:
  """Raises a UserError unless a tokenizer has the ids of a tower, whose table may be rounded up."""
  if isinstance(tokenizer, JoinedTokenizer) or isinstance(network, JoinedText):
    if not (isinstance(tokenizer, JoinedTokenizer) and isinstance(network, JoinedText)):
      both = type(tokenizer).__name__, type(network).__name__
      raise UserError(f"a {both[0]} of a {both[1]}; expected a JoinedTokenizer of a JoinedText")
    check_vocabulary(tokenizer.first, network.first)
    check_vocabulary(tokenizer.second, network.second)
    return
  ids, rows = tokenizer.vocabulary, network.vocabulary
  if not rows - ROUNDED < ids <= rows:
    raise UserError(
      f"tokenizer {tokenizer.path!r} has {ids} ids, and vocab_size of the text encoder is {rows}; give the "
      "tokenizer that belongs to it"
    )


class Read(NamedTuple):
  """A tokenizer as its files describe it.   encode: (text, at most so many ids) -> ids."""

  encode: Callable[[str, int], list[int]]
  vocabulary: int
  padding: int
  length: int


def read_folder(path: str) -> Read:
  """The tokenizer of a folder, read once while its files stay the same.

  Raises:
    UserError: what `Tokenizer` raises.
  """
  folder = Path(path)
  if not folder.is_dir():
    raise UserError(f"tokenizer {path!r} is no folder; expected one with {', '.join(FILES)}")
  stamps = tuple((name, stamp(folder / name)) for name in (*FILES, "tokenizer_config.json"))
  return read_files(path, stamps)


def stamp(file: Path) -> tuple[int, int] | None:
  """What changes if a file does; None if there is none."""
  return (file.stat().st_mtime_ns, file.stat().st_size) if file.is_file() else None


@functools.lru_cache(maxsize=8)
def read_files(path: str, stamps: tuple) -> Read:
  """The tokenizer of a folder whose files have these stamps."""
  folder, there = Path(path), [name for name, each in stamps if each is not None]
  config = read_json(folder / "tokenizer_config.json") if "tokenizer_config.json" in there else {}
  for names, read in READERS.items():
    if set(names) <= set(there):
      try:
        return read(folder, config)
      except UserError:
        raise
      except Exception as error:  # whatever the libraries raise for a damaged file
        reason = printable(" ".join(str(error).split())[:160])
        raise UserError(
          f"{names[0]} of the tokenizer {path!r} cannot be read ({reason}); download it again"
        ) from error
  has = ", ".join(name for name in there if name in FILES) or "none of them"
  raise UserError(
    f"tokenizer {path!r} has {has}; expected tokenizer.json, or vocab.json and merges.txt, or spiece.model"
  )


def read_json(file: Path) -> dict[str, Any]:
  """The object in a JSON file; UserError if it has none."""
  try:
    with file.open("rb") as opened:
      data = json.loads(opened.read(MOST_BYTES))
  except (OSError, ValueError, RecursionError) as error:
    raise UserError(f"{str(file)!r} cannot be read as JSON ({printable(str(error)[:80])})") from error
  if not isinstance(data, dict):
    raise UserError(f"{str(file)!r} has a {type(data).__name__}; expected a JSON object")
  return data


def missing(library: str) -> UserError:
  return UserError(f"{library} is not installed, which reads tokenizers; pip install -e '.[text]'")


def text_of(token: Any) -> str | None:
  """The text of a token of tokenizer_config.json: a text, or an object that has it as its content."""
  token = token.get("content") if isinstance(token, dict) else token
  return token if isinstance(token, str) else None


def length_of(config: dict[str, Any], default: int) -> int:
  length = config.get("model_max_length")
  return length if type(length) is int and 2 <= length <= MOST_LENGTH else default


def padding_of(config: dict[str, Any], id_of: Callable[[str], int | None], default: str) -> int:
  """The id of padding; UserError for a token that the tokenizer does not have."""
  token = text_of(config.get("pad_token")) or default
  number = id_of(token)
  if number is None:
    raise UserError(f"pad_token={printable(token[:40])!r} of tokenizer_config.json is not in the vocabulary")
  return number


def read_saved(folder: Path, config: dict[str, Any]) -> Read:
  """From tokenizer.json."""
  try:
    import tokenizers
  except ImportError as error:
    raise missing("tokenizers") from error
  saved = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
  return of_library(saved, config, END if saved.token_to_id(END) is not None else "<pad>")


def read_byte_pairs(folder: Path, config: dict[str, Any]) -> Read:
  """From vocab.json and merges.txt: the text in lower case, spaces made one, words as bytes."""
  try:
    import tokenizers
  except ImportError as error:
    raise missing("tokenizers") from error
  vocabulary = read_json(folder / "vocab.json")
  if absent := [token for token in (START, END) if token not in vocabulary]:
    raise UserError(f"vocab.json of {str(folder)!r} has no {absent[0]}; expected that of CLIP")
  model = tokenizers.models.BPE.from_file(
    str(folder / "vocab.json"),
    str(folder / "merges.txt"),
    continuing_subword_prefix="",
    end_of_word_suffix="</w>",
    unk_token=END,
  )
  made = tokenizers.Tokenizer(model)
  normal, before = tokenizers.normalizers, tokenizers.pre_tokenizers
  spaces = normal.Replace(tokenizers.Regex(r"\s+"), " ")
  made.normalizer = normal.Sequence([normal.NFC(), spaces, normal.Lowercase()])
  made.pre_tokenizer = before.Sequence(
    [before.Split(tokenizers.Regex(WORDS), "removed", invert=True), before.ByteLevel(add_prefix_space=False)]
  )
  made.add_special_tokens([tokenizers.AddedToken(token, normalized=False) for token in (START, END)])
  made.post_processor = tokenizers.processors.RobertaProcessing(
    (END, vocabulary[END]), (START, vocabulary[START]), trim_offsets=False, add_prefix_space=False
  )
  return of_library(made, config, END)


def of_library(tokenizer: Any, config: dict[str, Any], padding: str) -> Read:
  """A tokenizer of the `tokenizers` library, its own cutting and padding put aside."""
  tokenizer.no_padding()
  tokenizer.no_truncation()

  def encode(text: str, length: int) -> list[int]:
    ids = tokenizer.encode(text).ids
    if len(ids) <= length:
      return ids
    tokenizer.enable_truncation(length)
    cut = tokenizer.encode(text).ids
    tokenizer.no_truncation()
    return cut

  length = length_of(config, LENGTHS["tokenizer.json"] if padding == END else LENGTHS["spiece.model"])
  return Read(encode, tokenizer.get_vocab_size(), padding_of(config, tokenizer.token_to_id, padding), length)


def read_pieces(folder: Path, config: dict[str, Any]) -> Read:
  """From spiece.model: pieces, and the end of the text."""
  try:
    import sentencepiece
  except ImportError as error:
    raise missing("sentencepiece") from error
  pieces = sentencepiece.SentencePieceProcessor(model_file=str(folder / "spiece.model"))
  end, padding = pieces.eos_id(), pieces.pad_id()
  if end < 0 or padding < 0:
    raise UserError(f"spiece.model of {str(folder)!r} has no {PIECE_END} or no <pad>; expected that of T5")

  def encode(text: str, length: int) -> list[int]:
    return [*pieces.encode(text)[: length - 1], end]

  return Read(encode, pieces.get_piece_size(), padding, length_of(config, LENGTHS["spiece.model"]))


READERS = {  # the files that a reader needs, the first that are there being read
  ("tokenizer.json",): read_saved,
  ("vocab.json", "merges.txt"): read_byte_pairs,
  ("spiece.model",): read_pieces,
}
