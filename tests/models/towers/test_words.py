"""Words by their hashes, and the small transformer that is trained with a denoiser."""

import itertools
import zlib

import jax
import numpy as np
import pytest

from jldm.core.errors import UserError
from jldm.models.towers.words import HASHES, Hashed, WordEncoder, hash_word, split_words
from tests.networks import quick, random_params

TEXTS = ["a red cat", "A  red CAT!", "", "one two three four five six seven"]
ENCODER = WordEncoder(rows=16, length=6, width=8, depth=1, heads=2, hidden=12)


def test_words_are_without_case_and_signs_stand_alone():
  assert split_words("A red-ish CAT,  twice!") == ["a", "red-ish", "cat", ",", "twice", "!"]
  assert split_words("- don't; -t-") == ["-", "don't", ";", "-", "t", "-"]
  assert split_words(" \t\n") == [] and split_words("Straße") == split_words("STRASSE")
  assert split_words("cafe\u0301") == split_words("caf\u00e9"), "of one normal form"


def test_ids_are_hashes_after_the_start():
  ids, known = Hashed(length=6)(TEXTS)
  assert ids.dtype == np.int32 and ids.shape == known.shape == (4, 6)
  np.testing.assert_array_equal(known.sum(1), [4, 5, 1, 6])
  np.testing.assert_array_equal(ids[0, :4], ids[1, :4])
  assert ids[0, 0] == 1 and ids[0, 2] == zlib.crc32(b"red") % (2**31 - 2) + 2
  np.testing.assert_array_equal(ids == 0, ~known)


HOSTILE = ["\ud800 a", "\0\0", "\u202e\u200d", "猫が好き", "👩🏽‍🚀", "a" * 10_000, "b " * 10_000]


@pytest.mark.parametrize("text", HOSTILE)
def test_any_text_has_ids(text):
  ids, known = Hashed()([text])
  assert ids.shape == (1, 16) and known[0, 0] and (ids >= 0).all()


def test_two_words_have_two_pairs_of_rows():
  """1,024 rows tell all of 5,000 words apart: of 12.5 million pairs of words 12 are expected to coincide."""
  rows = 1024
  pairs = {(h % rows, h // rows % rows) for h in (hash_word(f"word{i}") for i in range(5000))}
  assert len(pairs) > 4950 and max(itertools.chain(*pairs)) < rows
  assert hash_word("") == 2 and all(2 <= hash_word(word) < HASHES + 2 for word in ("a", "猫"))


@pytest.fixture(scope="module")
def params():
  return random_params(ENCODER, *Hashed(length=6)(TEXTS), scale=1.0)


encode = quick(lambda params, ids, mask: ENCODER.apply({"params": params}, ids, mask))


def test_a_token_per_word_and_the_starts_state(params):
  encoded = encode(params, *Hashed(length=6)(TEXTS))
  assert encoded.tokens.shape == (4, 6, 8) and encoded.tokens.dtype == np.float32
  np.testing.assert_array_equal(encoded.pooled, encoded.tokens[:, 0])


def test_the_order_of_words_and_every_word_count_and_padding_does_not(params):
  pooled = lambda *texts, length=6: np.asarray(encode(params, *Hashed(length=length)(texts)).pooled)
  one, other, third = pooled("red left blue", "blue left red", "red left green")
  assert np.abs(one - other).max() > 1e-2 < np.abs(one - third).max()
  np.testing.assert_allclose(pooled("red left blue", length=4)[0], one, atol=1e-5)


def test_longer_texts_than_places_are_refused(params):
  with pytest.raises(UserError, match=r"ids \[B, 9\]; expected at most length=6"):
    jax.eval_shape(encode, params, *Hashed(length=9)(TEXTS))
