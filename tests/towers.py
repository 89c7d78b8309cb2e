"""A tiny text tower with its tokenizer, as transformers saves one."""

import json
from pathlib import Path
from typing import Any

import tokenizers

from jldm.interop import towers
from jldm.models.towers.clip import CLIPText
from tests.networks import randomised

WORDS = ("<pad>", "</s>", "<unk>", "waves", "of", "class", "0", "1", "2", "cat")
NETWORK = CLIPText(
  vocabulary=len(WORDS), length=6, width=8, depth=2, heads=2, hidden=12, end_token=1, projection=5
)


def write_tokenizer(folder: Path, words: tuple[str, ...] = WORDS, length: int = 6) -> None:
  """tokenizer.json of whole words, and tokenizer_config.json."""
  folder.mkdir(parents=True, exist_ok=True)
  model = tokenizers.models.WordLevel({word: i for i, word in enumerate(words)}, "<unk>")
  made = tokenizers.Tokenizer(model)
  made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
  made.post_processor = tokenizers.processors.TemplateProcessing(
    single="$A </s>", special_tokens=[("</s>", 1)]
  )
  made.save(str(folder / "tokenizer.json"))
  (folder / "tokenizer_config.json").write_text(json.dumps({"model_max_length": length}))


def write_tower(folder: Path, network: Any = NETWORK, seed: int = 0) -> Path:
  """A folder of a text encoder with random parameters, its tokenizer in it."""
  towers.save_tower(folder, network, randomised(towers.init_shapes(network), seed))
  write_tokenizer(folder)
  return folder
