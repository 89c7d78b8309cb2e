"""Figures of pictures by their captions, and the scorer of clothes on the clothes themselves."""

import numpy as np
import pytest

from jldm.config.experiment import Evaluation
from jldm.core.errors import UserError
from jldm.data import clothes
from jldm.data.synthetic import Synthetic
from jldm.evaluation import captions
from jldm.metrics.extractors import fashion

INSTALLED = clothes.FOLDER.is_dir()
COUNT = 200


def test_figures_are_means_of_what_a_scorer_knows(monkeypatch):
  monkeypatch.setattr(captions, "SCORERS", {})

  @captions.register_scorer
  def bright(images, texts):
    wanted = np.array(["bright" in text for text in texts])
    agrees = (images.mean((1, 2, 3)) > 100) == wanted
    return {"agrees": agrees, "nothing": np.full(len(texts), np.nan), "some": np.where(wanted, 1.0, np.nan)}

  images = np.zeros((4, 2, 2, 1), np.uint8)
  images[:2] = 200
  texts = ["bright", "dark", "bright", "dark"]
  record = captions.judge_captions(captions.find_scorer("bright"), images, images[[0, 2, 1, 3]], texts)
  assert record.keys() == {"caption_agrees", "caption_some"}
  assert record["caption_agrees"]["value"] == 0.5 and record["caption_agrees"]["real"]["value"] == 1
  assert record["caption_some"]["n"] == 2 < record["caption_agrees"]["n"] == 4
  with pytest.raises(UserError, match="scorer 'loud'; expected one of bright, or --import its file"):
    captions.find_scorer("loud")
  with pytest.raises(UserError, match=r"figure 'x' of a scorer has shape \(\); expected \(4,\)"):
    captions.score(lambda images, texts: {"x": 1.0}, images, texts)


def test_captions_come_from_a_split_evenly_spread():
  data = Synthetic(height=8, width=8, classes=4, count=8, caption=20)
  opened = captions.open_captions(data, Evaluation(captions="train"), 4)
  assert opened.captions == [f"waves of class {k}" for k in (0, 2, 0, 2)]
  np.testing.assert_array_equal(opened.labels, [0, 2, 0, 2])
  assert opened.record == {"split": "train", "scorer": ""} and opened.scorer is None
  assert len(captions.open_captions(data, Evaluation(), 20).captions) == 20, "more than there are"
  assert captions.open_captions(Synthetic(), Evaluation(), 4) is None
  with pytest.raises(UserError, match=r"scorer='clothes', evaluation\.captions=''; expected neither"):
    captions.open_captions(Synthetic(), Evaluation(scorer="clothes"), 4)


def test_the_scorer_of_clothes_refuses_others():
  with pytest.raises(UserError, match=r"images \[1, 32, 32, 3\] for the scorer clothes"):
    captions.clothes(np.zeros((1, 32, 32, 3), np.uint8), ["a red bag left of a red bag"])
  with pytest.raises(UserError, match="caption 'a cat'; expected one such as"):
    captions.clothes(np.zeros((1, 32, 64, 3), np.uint8), ["a cat"])


def test_hues_of_dark_and_mottled_things_are_read():
  random = np.random.default_rng(0)
  grey = random.uniform(0, 0.3, (6, 8, 8, 1)) * (random.uniform(size=(6, 8, 8, 1)) < 0.4)
  tinted = np.rint(grey * np.array(list(clothes.COLOURS.values()))[:, None, None]).astype(np.uint8)
  np.testing.assert_array_equal(captions.nearest_colour(tinted), np.arange(6))


@pytest.mark.skipif(not INSTALLED, reason="Debian's dataset-fashion-mnist is not installed")
def test_real_clothes_are_as_asked_and_by_others_captions_as_chance(monkeypatch):
  """By shuffled captions: a class in 10, a colour in 6, sides exchanged half of the time."""
  monkeypatch.setattr(clothes, "COUNTS", clothes.COUNTS | {"test": COUNT})
  examples = list(clothes.draw_examples(clothes.FOLDER, "test", 2**30))
  images, texts = (
    np.stack([np.asarray(each.load()) for each in examples]),
    [each.caption for each in examples],
  )
  value = lambda pictures, texts: {
    name: each["value"] for name, each in captions.score(captions.clothes, pictures, texts).items()
  }
  own, others = value(images, texts), value(images, texts[1:] + texts[:1])
  assert own["class"] > 0.87 and own["colour"] == 1 and own["swapped"] < 0.02 and own["all"] > 0.75
  assert abs(others["class"] - 0.1) < 0.06 and abs(others["colour"] - 1 / 6) < 0.08 and others["all"] < 0.03
  turned = np.concatenate(np.split(images, 2, 2)[::-1], 2)
  exchanged = value(turned, texts)
  assert exchanged["swapped"] > 0.95 and exchanged["class"] < 0.25
  assert fashion.classify(images[:, :, :32].max(-1, keepdims=True)).shape == (COUNT,)
