"""Captions through a tower that is trained with the denoiser, by each way of conditioning."""

import dataclasses

import jax
import numpy as np
import pytest

from jldm.core.keys import row_keys
from jldm.core.specs import Loaded, spec
from jldm.diffusion.process import Flow
from jldm.models.conditioners.conditioner import cached_conditions, draw_conditions
from jldm.models.conditioners.text import Words
from jldm.models.denoisers.dit import DiT
from jldm.models.denoisers.unet import UNet
from jldm.models.towers.words import Hashed, WordEncoder
from jldm.nn.transformer import JointBlock, ModulatedBlock
from jldm.objectives.diffusion import Diffusion
from tests.marks import slow_after
from tests.networks import quick, randomised

CAPTIONS = ["a red cat", "cat", "", "two dogs left of a cat"]
WORDS = Words(
  encoder=WordEncoder(rows=16, length=6, width=8, depth=1, heads=2, hidden=8), tokenizer=Hashed(6)
)
DATA = spec(caption=(np.uint8, (40,)))
KEY = jax.random.key(0)
FROZEN = {"codec": Loaded(None, {"mean": np.zeros(1, np.float32), "std": np.ones(1, np.float32)})}
WAYS = {
  "cross-attention": DiT(ModulatedBlock(heads=2), patch=2, width=8, depth=2, token_width=8),
  "joint attention": DiT(JointBlock(heads=2), patch=2, width=8, depth=2, token_width=8),
  "U-Net": UNet(widths=(4, 4), attention=(False, True), resnets=1, heads=2, groups=2, token_width=8),
}


def captioned(words: Words = WORDS) -> dict:
  captions = np.stack([np.frombuffer(each.encode().ljust(40, b"\0"), np.uint8) for each in CAPTIONS])
  mean = np.random.default_rng(0).normal(size=(4, 4, 8, 2)).astype(np.float32)
  return {
    "mean": mean,
    "log_variance": np.full_like(mean, -30),
    "row": np.arange(4),
    "stratum": np.float32(np.arange(4) / 4),
  } | words.derive({"caption": captions})


def test_captions_are_read_and_no_output_is_kept():
  batch = captioned()
  kept = cached_conditions([WORDS], {}, batch, None, row_keys(KEY, batch["row"]))
  assert kept.keys() == {"text_ids", "text_known"}
  read = WORDS.read_request(CAPTIONS, DATA)
  np.testing.assert_array_equal(read["ids"], kept["text_ids"])
  assert WORDS.tower is None


def test_dropout_is_the_empty_caption():
  batch = captioned()
  params = randomised(jax.eval_shape(lambda: WORDS.init(KEY, WORDS.draw_inputs(batch, None))))
  keys = [row_keys(KEY, batch["row"])]
  draw = quick(
    lambda dropout, inputs: draw_conditions(
      [dataclasses.replace(WORDS, dropout=dropout)], {"text": params}, inputs, None, keys
    )["text"],
    static_argnums=0,
  )
  dropped = draw(1.0, batch)
  empty = WORDS.read_request("", DATA)
  wanted = WORDS.embed(params, empty, None)
  assert dropped.keys() == {"tokens", "mask", "vector"}
  for name, value in wanted.items():
    np.testing.assert_allclose(dropped[name], np.broadcast_to(value, dropped[name].shape), atol=1e-5)
  np.testing.assert_array_equal(dropped["mask"].sum(1), 1)
  np.testing.assert_array_equal(draw(0.0, batch)["mask"], batch["text_known"])


@pytest.mark.parametrize("way", slow_after(1, WAYS))
def test_gradients_reach_the_words_that_are_in_the_captions(way):
  objective = Diffusion(
    network=WAYS[way], process=Flow(), conditioners=(dataclasses.replace(WORDS, dropout=0),)
  )
  batch = captioned()
  shapes = jax.eval_shape(objective.init, KEY, batch, FROZEN)[0]
  assert shapes.keys() == {"denoiser", "text"}
  params = randomised(shapes)
  loss = lambda params, batch: objective.loss(params, {}, params, FROZEN, batch, KEY)[0]
  gradients = quick(jax.grad(lambda params: loss(params, batch).mean()))(params)
  ids = batch["text_ids"][batch["text_known"]]
  seen = np.isin(np.arange(16), np.concatenate([ids % 16, ids // 16 % 16]))
  table = np.abs(gradients["text"]["words"]["embedding"]).max(1)
  assert (table[seen] > 1e-7).all() and not table[~seen].any()
