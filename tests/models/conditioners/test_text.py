"""Captions and prompts through an imported tower."""

import dataclasses

import jax
import numpy as np
import pytest

from jldm.core.errors import UserError
from jldm.core.keys import row_keys
from jldm.core.specs import spec
from jldm.interop import towers
from jldm.models.conditioners.conditioner import (
  Settled,
  blank_inputs,
  cached_conditions,
  draw_conditions,
  with_derived,
)
from jldm.models.conditioners.text import Text, caption_text
from jldm.models.towers.t5 import T5Encoder
from jldm.models.towers.tokenizers import Tokenizer
from tests.networks import quick, randomised
from tests.towers import NETWORK, write_tokenizer, write_tower

CAPTIONS = ["waves of class 1", "cat", "", "waves waves waves waves waves waves"]
DATA = spec(caption=(np.uint8, (40,)))
KEYS = row_keys(jax.random.key(0), np.arange(len(CAPTIONS)))


@pytest.fixture(scope="module")
def text(tmp_path_factory):
  folder = tmp_path_factory.mktemp("words")
  write_tokenizer(folder)
  return Text(tower=NETWORK, tokenizer=Tokenizer(str(folder)), pooled=True, masked=True)


@pytest.fixture(scope="module")
def params():
  return randomised(towers.init_shapes(NETWORK))


def embed(text: Text, params: dict, texts: list[str]) -> dict:
  """What the denoiser gets of some texts."""
  inputs = text.read_request(texts, DATA)
  return quick(lambda params, inputs: text.embed(params, inputs, None))(params, inputs)


def batch(text: Text) -> dict:
  captions = np.stack([np.frombuffer(each.encode().ljust(40, b"\0"), np.uint8) for each in CAPTIONS])
  return {"caption": captions} | text.derive({"caption": captions})


def test_captions_and_prompts_of_the_same_words_are_the_same(text):
  drawn, read = text.draw_inputs(batch(text), None), text.read_request(CAPTIONS, DATA)
  assert drawn.keys() == read.keys() == {"ids", "known"}
  for name in drawn:
    np.testing.assert_array_equal(drawn[name], read[name])
    assert drawn[name].dtype == read[name].dtype == blank_inputs(text, DATA)[name].dtype
  np.testing.assert_array_equal(read["ids"][0], [3, 4, 5, 7, 1, 0])
  np.testing.assert_array_equal(read["known"].sum(1), [5, 2, 1, 6])
  np.testing.assert_array_equal(text.read_request("cat", DATA)["ids"], read["ids"][1:2])
  assert dict(with_derived([text], DATA)).keys() == {"caption", "text_ids", "text_known"}


def test_it_gives_tokens_their_mask_and_a_vector(text, params):
  inputs = text.read_request(CAPTIONS, DATA)
  condition = embed(text, params, CAPTIONS)
  tokens, pooled = quick(NETWORK.apply)({"params": params}, inputs["ids"])
  np.testing.assert_allclose(condition["tokens"], tokens, atol=1e-5)
  np.testing.assert_allclose(condition["vector"], pooled, atol=1e-5)
  np.testing.assert_array_equal(condition["mask"], inputs["known"])
  plain = dataclasses.replace(text, masked=False, pooled=False)
  assert embed(plain, params, CAPTIONS).keys() == {"tokens"}


def test_null_is_the_empty_caption_settled_or_not(text, params):
  like, empty = embed(text, params, CAPTIONS), embed(text, params, [""])
  settled = quick(text.settle)(params)
  assert isinstance(settled, Settled) and np.abs(empty["tokens"]).max() > 0
  for given in (params, settled):
    null = quick(text.null)(given, like)
    for name, value in like.items():
      assert null[name].shape == value.shape and null[name].dtype == value.dtype
      np.testing.assert_allclose(null[name], np.broadcast_to(empty[name], value.shape), atol=1e-5)


def test_what_is_cached_is_what_a_step_reads(text, params):
  cache = quick(lambda params, batch: cached_conditions([text], {"text": params}, batch, None, KEYS))
  kept = cache(params, batch(text))
  assert {name: str(value.dtype) for name, value in kept.items()} == {
    "text__tokens": "float16",
    "text__mask": "bool",
    "text__vector": "float16",
  }
  half = 2.0**-11  # the relative error of rounding to float16; the null is not kept
  for dropout, wanted, rtol in ((0.0, CAPTIONS, half), (1.0, [""] * len(CAPTIONS), 0)):
    one = dataclasses.replace(text, dropout=dropout)
    settled = {"text": quick(text.settle)(params)}
    drawn = draw_conditions([one], settled, kept, None, [KEYS])["text"]
    expected = embed(text, params, wanted)
    for name, value in expected.items():
      assert drawn[name].dtype == value.dtype
      np.testing.assert_allclose(drawn[name], value, rtol=rtol, atol=1e-5)


def test_masked_padding_changes_no_token_of_t5(tmp_path):
  write_tokenizer(tmp_path, length=8)
  network = T5Encoder(vocabulary=10, width=8, depth=1, heads=2, head_width=3, hidden=12)
  text = Text(tower=network, tokenizer=Tokenizer(str(tmp_path)), masked=True)
  params = randomised(towers.init_shapes(network))
  short = dataclasses.replace(text, tokenizer=Tokenizer(str(tmp_path), 3))
  long, brief = (embed(each, params, ["cat"]) for each in (text, short))
  np.testing.assert_allclose(long["tokens"][:, :2], brief["tokens"][:, :2], atol=1e-5)
  with pytest.raises(UserError, match="pooled=True of conditioner 'text', and T5Encoder has no vector"):
    embed(dataclasses.replace(text, pooled=True), params, ["cat"])


def test_bytes_that_were_cut_lose_their_last_character():
  cut = "naïve café".encode()[:-1]
  assert caption_text(np.frombuffer(cut.ljust(20, b"\0"), np.uint8)) == "naïve caf"


@pytest.mark.parametrize("given", [3, [3], [], [["cat"]], b"cat"])
def test_what_is_no_prompt_is_refused(text, given):
  with pytest.raises(UserError, match=r"text=.*; expected a text, or a list of one per sample"):
    text.read_request(given, DATA)


def test_data_without_captions_and_towers_that_do_not_fit_are_refused(text, tmp_path):
  with pytest.raises(UserError, match="conditioner 'text' reads 'caption', and the data has image"):
    text.derive({"image": np.zeros(1)})
  with pytest.raises(UserError, match="what the stage needs as 'text' is CLIPText"):
    text.check_tower(NETWORK.clone(depth=3))
  write_tokenizer(tmp_path, words=("<pad>", "</s>", "<unk>", *map(str, range(10))))
  other = dataclasses.replace(text, tokenizer=Tokenizer(str(tmp_path)))
  with pytest.raises(UserError, match="has 13 ids, and vocab_size of the text encoder is 10"):
    other.check_tower(NETWORK)


def test_a_folder_with_its_tokenizer_is_loaded_whole(tmp_path):
  tower, params = towers.load_tower(write_tower(tmp_path / "text_encoder"))
  ids, mask = tower.tokenizer(CAPTIONS)
  tokens, pooled = quick(tower.encode)(params, ids, mask)
  assert tokens.shape == (4, 6, 8) and pooled.shape == (4, 5)
  write_tokenizer(tmp_path / "text_encoder", words=("<pad>", "</s>", "<unk>", *map(str, range(10))))
  with pytest.raises(UserError, match="has 13 ids, and vocab_size of the text encoder is 10"):
    towers.load_tower(tmp_path / "text_encoder")
