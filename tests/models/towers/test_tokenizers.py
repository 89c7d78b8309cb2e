"""Tokenizers give the ids that transformers gives: tests/parity/words.py made words.json, and words.txt of
the whole vocabulary.
"""

import json
from pathlib import Path
import sys

import numpy as np
import pytest
import sentencepiece
import tokenizers

from jldm.core.errors import UserError
from jldm.models.towers.tokenizers import END, START, Tokenizer, read_folder

KEPT = json.loads((Path(__file__).parents[2] / "parity" / "words.json").read_text())


def clip_folder(path: Path, **config) -> Path:
  """vocab.json and merges.txt of the small vocabulary, and tokenizer_config.json."""
  order = [*range(33, 127), *range(161, 173), *range(174, 256)]
  letters = [chr(n) for n in order] + [chr(256 + n) for n in range(68)]
  joined = ["".join(pair.split()) for pair in KEPT["merges"]]
  words = [*letters, *(f"{each}</w>" for each in letters), *joined, START, END]
  path.mkdir(exist_ok=True)
  (path / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
  (path / "merges.txt").write_text("\n".join(["#version: 0.2", *KEPT["merges"]]))
  (path / "tokenizer_config.json").write_text(json.dumps(config))
  return path


def words_folder(path: Path, **config) -> Path:
  """tokenizer.json of whole words, with an end."""
  words = {word: i for i, word in enumerate(("<pad>", "</s>", "<unk>", "a", "cat"))}
  made = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, "<unk>"))
  made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
  made.post_processor = tokenizers.processors.TemplateProcessing(
    single="$A </s>", special_tokens=[("</s>", 1)]
  )
  made.enable_truncation(3)
  made.enable_padding(length=3)
  path.mkdir(exist_ok=True)
  made.save(str(path / "tokenizer.json"))
  (path / "tokenizer_config.json").write_text(json.dumps(config))
  return path


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
  return clip_folder(tmp_path_factory.mktemp("words") / "clip")


def test_byte_pairs_give_the_same_ids(clip):
  ids, mask = Tokenizer(str(clip))(KEPT["texts"])
  assert ids.shape == mask.shape == (len(KEPT["texts"]), 77) and len(KEPT["texts"]) > 50
  end = Tokenizer(str(clip)).vocabulary - 1
  for row, known, wanted in zip(ids, mask, KEPT["ids"]):
    assert row[known].tolist() == wanted and wanted[-1] == end and len(wanted) <= 77
    assert (row[~known] == end).all() and known[: len(wanted)].all()


def test_padding_and_length_are_those_of_the_config(tmp_path):
  folder = clip_folder(tmp_path / "x", pad_token={"content": "!"}, model_max_length=9)
  ids, mask = Tokenizer(str(folder))(["the cat", "the " * 30])
  first, end = Tokenizer(str(folder)).vocabulary - 2, Tokenizer(str(folder)).vocabulary - 1
  assert ids.shape == (2, 9) and (ids[:, 0] == first).all() and ids[1, -1] == end and mask[1].all()
  assert (ids[0][~mask[0]] == 0).all() and ids[0][mask[0]][-1] == end  # "!" is the first of all letters
  assert Tokenizer(str(folder), 5)(["a"])[0].shape == (1, 5)
  other = clip_folder(tmp_path / "y", model_max_length=10**30)
  assert Tokenizer(str(other)).ids == 77


def test_a_tokenizer_of_the_library_is_cut_and_padded_by_us(tmp_path):
  folder = words_folder(tmp_path / "x", model_max_length=6)
  tokenizer = Tokenizer(str(folder))
  ids, mask = tokenizer(["a cat", "a cat a cat a cat a cat", ""])
  np.testing.assert_array_equal(ids, [[3, 4, 1, 0, 0, 0], [3, 4, 3, 4, 3, 1], [1, 0, 0, 0, 0, 0]])
  np.testing.assert_array_equal(mask.sum(1), [3, 6, 1])
  assert tokenizer.vocabulary == 5
  assert Tokenizer(str(words_folder(tmp_path / "y"))).ids == 512


def test_pieces_end_and_are_padded(tmp_path):
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(["a cat", "the cat sat", "a dog", "the dog sat on a mat"] * 20),
    model_writer=(tmp_path / "spiece.model").open("wb"),
    vocab_size=19,
    pad_id=0,
    eos_id=1,
    unk_id=2,
    bos_id=-1,
    minloglevel=2,
  )
  tokenizer = Tokenizer(str(tmp_path), 8)
  ids, mask = tokenizer(["a cat", "the dog sat on a mat the dog", ""])
  assert (ids[np.arange(3), mask.sum(1) - 1] == 1).all() and (ids[~mask] == 0).all()
  assert mask[1].all() and mask[2].sum() == 1 and tokenizer.vocabulary == 19
  assert Tokenizer(str(tmp_path)).ids == 512


def test_files_that_change_are_read_again(tmp_path):
  folder = clip_folder(tmp_path / "x")
  assert read_folder(str(folder)) is read_folder(str(folder))
  assert Tokenizer(str(folder)).ids == 77
  clip_folder(folder, model_max_length=12)
  assert Tokenizer(str(folder)).ids == 12


def test_a_lone_surrogate_is_a_question_mark(clip):
  tokenizer = Tokenizer(str(clip))
  np.testing.assert_array_equal(tokenizer(["a \ud800 b"])[0], tokenizer(["a ? b"])[0])


@pytest.mark.parametrize(
  ("spoil", "words"),
  [
    (lambda folder: (folder / "merges.txt").unlink(), "has vocab.json; expected tokenizer.json, or vocab"),
    (lambda folder: (folder / "vocab.json").write_text("{"), "cannot be read as JSON"),
    (lambda folder: (folder / "vocab.json").write_text("[]"), "has a list; expected a JSON object"),
    (lambda folder: (folder / "vocab.json").write_text('{"a": 0}'), r"has no <\|startoftext\|>; expected"),
    (lambda folder: (folder / "merges.txt").write_text("x\ny z"), "vocab.json of the tokenizer .* cannot be"),
    (lambda folder: (folder / "tokenizer.json").write_text("{}"), "tokenizer.json of .* download it again"),
    (lambda folder: clip_folder(folder, pad_token="<none>"), "pad_token='<none>' of tokenizer_config.json"),
  ],
)
def test_damaged_files_are_refused_in_one_line(spoil, words, tmp_path):
  folder = clip_folder(tmp_path / "x")
  spoil(folder)
  with pytest.raises(UserError, match=words) as error:
    Tokenizer(str(folder))(["a"])
  assert "\n" not in str(error.value)


def test_what_is_no_list_of_texts_is_refused(clip, tmp_path, monkeypatch):
  for texts in ("a cat", [1]):
    with pytest.raises(UserError, match="expected a list of texts, such as"):
      Tokenizer(str(clip))(texts)
  with pytest.raises(UserError, match="is no folder; expected one with tokenizer"):
    Tokenizer(str(tmp_path / "none"))(["a"])
  monkeypatch.setitem(sys.modules, "tokenizers", None)
  with pytest.raises(UserError, match=r"tokenizers is not installed.*pip install -e '.\[text\]'"):
    Tokenizer(str(clip_folder(tmp_path / "x")))(["a"])
