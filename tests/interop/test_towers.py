"""CLIP's text transformers and T5's encoders give what transformers gives: tests/parity/clip.py and t5.py
made clip.npz and t5.npz.
"""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from jldm.core import trees
from jldm.core.errors import UserError
from jldm.interop import clip, rename, safetensors, t5, towers
from tests.compiling import UNOPTIMIZED
from tests.parity.drawn import parameters

PARITY = Path(__file__).parents[1] / "parity"
CLIP, T5 = (np.load(PARITY / f"{name}.npz") for name in ("clip", "t5"))
STORED = {name: json.loads(str(kept["told"])) for name, kept in (("clip", CLIP), ("t5", T5))}
SMALL = ("quick", "exact", "projected")
LARGE = ("CLIP-L", "OpenCLIP-H", "OpenCLIP-bigG")
FIVES = ("relu", "gated")
CLOSE = 1e-5


def stored(name: str) -> dict:
  return next(each[name] for each in STORED.values() if name in each)


def folder(name: str, path: Path, rename_tensor=lambda name: name, **config) -> Path:
  """What transformers, or OpenCLIP, saved, written anew."""
  arrays = parameters(stored(name)["shapes"], stored(name)["seed"])
  path.mkdir(exist_ok=True)
  safetensors.write(path / towers.WEIGHTS, {rename_tensor(key): value for key, value in arrays.items()})
  file = towers.OPEN_CONFIG if name == "open" else towers.CONFIG
  (path / file).write_text(json.dumps(stored(name)["config"] | config))
  return path


def encoded(tower, params, ids, mask=None):
  apply = jax.jit(tower.encode, compiler_options=UNOPTIMIZED)
  with jax.default_matmul_precision("highest"):
    return apply(params, ids, mask)


def difference(actual, wanted) -> float:
  return np.abs(actual - wanted).max() / np.abs(wanted).max()


@pytest.mark.parametrize("name", [*SMALL, "open"])
def test_clip_gives_the_same_after_every_block(name, tmp_path):
  source = folder(name, tmp_path / "x")
  for skip, normed in ((0, True), (1, False), (2, True)):
    tower, params = towers.load_tower(source, skip=skip, final_norm=normed)
    tokens, pooled = encoded(tower, params, CLIP["ids"])
    assert difference(tokens, CLIP[f"{name}/{skip}/{'normed' if normed else 'plain'}"]) <= CLOSE
    assert difference(pooled, CLIP[f"{name}/pooled"]) <= CLOSE


def test_pooling_is_at_the_greatest_id_or_at_the_first_end():
  greatest, first = (clip.network(stored(name)["config"]) for name in ("quick", "exact"))
  assert (greatest.end_token, first.end_token) == (0, 55)
  np.testing.assert_array_equal(greatest.end_places(CLIP["ids"]), [4, 9, 10, 6])
  np.testing.assert_array_equal(first.end_places(CLIP["ids"]), [7, 2, 10, 3])


@pytest.mark.parametrize("name", FIVES)
def test_t5_gives_the_same_with_and_without_a_mask(name, tmp_path):
  tower, params = towers.load_tower(folder(name, tmp_path / "x"))
  ids, mask = T5["ids"], T5["mask"]
  assert difference(encoded(tower, params, ids).tokens, T5[f"{name}/whole"]) <= CLOSE
  masked = encoded(tower, params, ids, mask).tokens * mask[..., None]
  assert difference(masked, T5[f"{name}/masked"]) <= CLOSE
  assert np.abs(T5[f"{name}/masked"] - T5[f"{name}/whole"] * mask[..., None]).max() > 0.01


@pytest.mark.parametrize("name", SMALL)
def test_names_with_and_without_text_model_and_with_position_ids(name, tmp_path):
  full = lambda key: key if key.startswith("text_") else f"text_model.{key}"
  bare = lambda key: key.removeprefix("text_model.")
  read = [towers.load_tower(folder(name, tmp_path / f"{i}", each)) for i, each in enumerate((full, bare))]
  assert read[0][0] == read[1][0]
  jax.tree.map(np.testing.assert_array_equal, read[0][1], read[1][1])
  arrays = dict(safetensors.read(tmp_path / "0" / towers.WEIGHTS))
  others = {"text_model.embeddings.position_ids": np.arange(11)[None], "logit_scale": np.float32(1)}
  safetensors.write(tmp_path / "0" / towers.WEIGHTS, arrays | others)
  assert towers.load_tower(tmp_path / "0")[0] == read[0][0]


@pytest.mark.parametrize("name", LARGE)
def test_the_published_sizes_of_clip_have_the_published_names_and_shapes(name):
  shapes = {key: tuple(shape) for key, shape in stored(name)["shapes"].items()}
  network = clip.network(stored(name)["config"] | {"model_type": "clip_text_model"}, "bigG" in name)
  like = towers.init_shapes(network)
  bare = lambda names: {key.removeprefix("text_model."): shape for key, shape in names.items()}
  assert rename.published_shapes(clip.table(network), like) == bare(shapes)
  if name == "CLIP-L":
    assert network == clip.CLIPText(end_token=49407)
    assert (len(shapes), trees.count(like)) == (196, 123_060_480)


@pytest.mark.parametrize(("name", "millions"), [("t5-small", 35.3), ("t5-v1.1-xxl", 4762.3)])
def test_the_published_sizes_of_t5_have_the_published_names_and_shapes(name, millions):
  shapes = {key: tuple(shape) for key, shape in stored(name)["shapes"].items()}
  network = t5.network(stored(name)["config"])
  like = towers.init_shapes(network)
  assert rename.published_shapes(t5.table(network), like) == shapes
  assert round(trees.count(like) / 1e6, 1) == millions


@pytest.mark.parametrize("name", [*SMALL, *FIVES])
def test_what_is_saved_is_what_was_read(name, tmp_path):
  tower, params = towers.load_tower(folder(name, tmp_path / "x"))
  towers.save_tower(tmp_path / "y", tower.network, params)
  again, others = towers.load_tower(tmp_path / "y")
  assert again == tower
  jax.tree.map(np.testing.assert_array_equal, others, params)
  bare = lambda arrays: {key.removeprefix("text_model."): each for key, each in arrays.items()}
  ours, theirs = (bare(safetensors.read(tmp_path / each / towers.WEIGHTS)) for each in "yx")
  assert ours.keys() == theirs.keys()
  assert all(np.array_equal(ours[key], theirs[key]) for key in ours)


def test_an_openclip_tower_is_not_written_under_its_own_names(tmp_path):
  tower, params = towers.load_tower(folder("open", tmp_path / "x"))
  towers.save_tower(tmp_path / "y", tower.network, params)
  again, others = towers.load_tower(tmp_path / "y")
  assert again == tower
  jax.tree.map(np.testing.assert_array_equal, others, params)


def test_half_precision(tmp_path):
  tower, params = towers.load_tower(folder("quick", tmp_path / "x"), dtype="bfloat16")
  assert {str(leaf.dtype) for leaf in jax.tree.leaves(params)} == {"bfloat16"}
  tokens, _ = encoded(tower, params, CLIP["ids"])
  assert tokens.dtype == np.float32
  assert 1e-4 < difference(tokens, CLIP["quick/0/normed"]) < 0.05


def test_towers_in_the_file_of_a_whole_model(tmp_path):
  wide = {"hidden_size": 64, "vocab_size": 9, "max_position_embeddings": 5, "num_hidden_layers": 2}
  network = clip.network(wide | {"intermediate_size": 72, "num_attention_heads": 1})
  params = jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float32), towers.init_shapes(network))
  theirs = {
    family: rename.publish(clip.table(network, family), params) for family in ("transformers", "OpenCLIP")
  }
  first = {f"a.0.transformer.text_model.{key}": each for key, each in theirs["transformers"].items()}
  second = {f"a.1.model.{key}": each for key, each in theirs["OpenCLIP"].items()}
  file = tmp_path / "whole.safetensors"
  safetensors.write(file, first | second | {"model.diffusion_model.out.weight": np.zeros(2, np.float32)})
  with pytest.raises(UserError, match=r"text transformers 'a.0.transformer', 'a.1.model'; give part="):
    towers.load_tower(file)
  tower, actual = towers.load_tower(file, part="a.0.transformer")
  assert tower.network == network.clone(end_token=0)
  jax.tree.map(np.testing.assert_array_equal, actual, params)
  tower, actual = towers.load_tower(file, part="a.1.model")
  assert tower.network == network.clone(end_token=0, activation="gelu")
  jax.tree.map(np.testing.assert_array_equal, actual, params)


@pytest.mark.parametrize(
  ("name", "config", "words"),
  [
    ("quick", {"hidden_act": "swish"}, "hidden_act=swish; expected one of quick_gelu, gelu"),
    ("quick", {"num_attention_heads": 5}, "num_attention_heads=5; expected a divisor of the width 32"),
    ("quick", {"hidden_size": "32"}, "hidden_size=32; expected a whole number from 1"),
    ("quick", {"layer_norm_eps": -1}, "layer_norm_eps=-1; expected a number above 0"),
    ("quick", {"model_type": "bert"}, "model_type='bert'; expected one of clip_text_model, clip, t5"),
    ("quick", {"hidden_size": 64}, r"is \[32\], expected \[64\]; give the config.json"),
    ("quick", {"num_hidden_layers": 4}, "lacks 16 of 68 tensors"),
    ("quick", {"num_hidden_layers": 2}, "16 tensors beyond the 36"),
    (
      "gated",
      {"feed_forward_proj": "gated-silu"},
      "feed_forward_proj=gated-silu; expected one of relu, gated",
    ),
    ("gated", {"d_kv": 0}, "d_kv=0; expected a whole number from 1"),
    ("open", {"model_cfg": {"embed_dim": 20}}, "model_cfg.text_cfg=None; expected the fields"),
  ],
)
def test_bad_configs_are_refused_in_one_line(name, config, words, tmp_path):
  with pytest.raises(UserError, match=words) as error:
    towers.load_tower(folder(name, tmp_path / "x", **config))
  assert "\n" not in str(error.value)


def test_bad_folders_are_refused(tmp_path):
  source = folder("quick", tmp_path / "x")
  for call, words in (
    (lambda: towers.load_tower(tmp_path / "none"), "does not exist; expected a folder of a text encoder"),
    (lambda: towers.load_tower(tmp_path), "has no text encoder in 'text_encoder'.*its text encoders are x"),
    (lambda: towers.load_tower(source, dtype="float16"), "dtype='float16'.*float32, bfloat16"),
    (lambda: towers.load_tower(source, skip=3), "skip=3; expected 0 to 2 of 3 blocks"),
    (lambda: towers.load_tower(source, skips=3), "CLIPText has no 'skips'; expected some of vocabulary"),
  ):
    with pytest.raises(UserError, match=words):
      call()
  (source / towers.WEIGHTS).rename(source / "pytorch_model.bin")
  with pytest.raises(UserError, match="is a pickle, which may run code"):
    towers.load_tower(source)
