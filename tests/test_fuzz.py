"""Readers of what lies in a workdir, given anything: they raise our errors or nothing, and open
nothing outside it.
"""

import copy
import hashlib
import json

from hypothesis import given, settings, strategies as st
import numpy as np
import pytest

from jldm.config.experiment import Experiment
from jldm.config.serialize import loads, to_data
from jldm.core.errors import UserError
from jldm.storage import array_cache, lock
from jldm.storage.checkpoint import Checkpoints
from jldm.train.logging import drop_rows_after, read_rows
from tests.configs import config, shrunk

anything = settings(max_examples=150, deadline=None, derandomize=True)
leaves = (
  st.none()
  | st.booleans()
  | st.integers()
  | st.floats()
  | st.text(max_size=20)
  | st.sampled_from(
    [
      "Experiment",
      "Stage",
      "DiT",
      "KLAutoencoder",
      "class",
      "../../etc/passwd",
      "/etc/passwd",
      "files",
      "step",
      "NaN",
    ]
  )
)
trees = st.recursive(
  leaves,
  lambda inner: (
    st.lists(inner, max_size=4)
    | st.dictionaries(
      st.sampled_from(
        ["class", "files", "step", "count", "arrays", "shape", "dtype", "blake2b", "buckets", "stage", "pid"]
      )
      | st.text(max_size=8),
      inner,
      max_size=4,
    )
  ),
  max_leaves=12,
)


@st.composite
def spoiled(draw, whole):
  """JSON text in which a part of `whole` is another; or its bytes cut, changed, or made of nothing like
  it.
  """
  tree = copy.deepcopy(whole)
  node = tree
  while True:
    key = draw(st.sampled_from(list(node) if isinstance(node, dict) else range(len(node))))
    if not isinstance(node[key], (dict, list)) or not node[key] or draw(st.booleans()):
      break
    node = node[key]
  how = draw(st.sampled_from(["replaced", "removed", "added", "cut", "changed", "bytes", "tree", "deep"]))
  if how == "replaced":
    node[key] = draw(trees)
  elif how == "removed":
    del node[key]
  elif how == "added" and isinstance(node, dict):
    node[draw(st.text(max_size=8))] = draw(trees)
  data = json.dumps(tree).encode()
  at = draw(st.integers(0, len(data) - 1))
  other = {
    "cut": lambda: data[:at],
    "changed": lambda: data[:at] + draw(st.binary(min_size=1, max_size=4)) + data[at + 1 :],
    "bytes": lambda: draw(st.binary(max_size=64)),
    "tree": lambda: json.dumps(draw(trees)).encode(),
    "deep": lambda: data[:at] + draw(st.sampled_from([b"[", b'{"a":', b"1"])) * 100_000,
  }
  return other[how]() if how in other else data


EXPERIMENT = to_data(shrunk(config("digits")))


@anything
@given(spoiled(EXPERIMENT))
def test_an_experiment(data):
  try:
    assert isinstance(loads(data), Experiment)
  except UserError as error:
    assert "\n" not in str(error)


@pytest.fixture(scope="module")
def steps(tmp_path_factory):
  """Two committed steps of files that are not Orbax's: to tell sound from damaged, nothing is restored."""
  folder = tmp_path_factory.mktemp("steps")
  for step in (1, 2):
    (folder / str(step) / "state").mkdir(parents=True)
    (folder / str(step) / "state" / "values").write_bytes(bytes(range(9)))
    (folder / f"{step}.manifest.json").write_text(json.dumps(manifest(step)))
  return folder


def manifest(step):
  return {"step": step, "files": {"state/values": [9, hashlib.blake2b(bytes(range(9))).hexdigest()]}}


@anything
@given(spoiled(manifest(2)))
def test_a_manifest(steps, data):
  (steps / "2.manifest.json").write_bytes(data)
  assert Checkpoints(steps, read_only=True).latest() in (1, 2)
  try:
    Checkpoints(steps, read_only=True).items(2)
  except UserError as error:
    assert "\n" not in str(error)


@pytest.mark.parametrize("name", ["../outside", "state/../../outside", "/etc/hostname", "state"])
def test_a_manifest_names_nothing_outside_its_step(steps, name, capsys):
  outside = steps / "outside"
  outside.write_bytes(b"secret")
  content = {"step": 2, "files": {name: [6, hashlib.blake2b(b"secret").hexdigest()]}}
  (steps / "2.manifest.json").write_text(json.dumps(content))
  assert Checkpoints(steps, read_only=True).latest() == 1
  assert f"2 is damaged: {name} is missing" in capsys.readouterr().err


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
  folder = tmp_path_factory.mktemp("runs") / "cache"
  batch = {"mean": np.arange(24, dtype=np.float32).reshape(4, 2, 3), "label": np.arange(4, dtype=np.int32)}
  array_cache.write_part(folder, [batch], 4)
  return folder


INDEX = {
  "count": 4,
  "arrays": {
    name: {"shape": shape, "dtype": dtype, "blake2b": "0" * 128}
    for name, shape, dtype in (("mean", [4, 2, 3], "<f4"), ("label", [4], "<i4"))
  },
}


@anything
@given(spoiled(INDEX) | spoiled({"parts": [2], "buckets": True}))
def test_an_index_of_latents(cache, data):
  (cache / "index.json").write_bytes(data)
  assert array_cache.open_part(cache) is None, "the digests of INDEX are of nothing"
  assert array_cache.open_cache(cache) is None, "there are no parts"


@anything
@given(st.data())
def test_the_head_of_an_array_of_latents(cache, data):
  """Whatever its first 128 bytes say."""
  batch = {"mean": np.arange(24, dtype=np.float32).reshape(4, 2, 3), "label": np.arange(4, dtype=np.int32)}
  source = array_cache.write_part(cache, [batch], 4)
  whole, path = (cache / "label.npy").read_bytes(), cache / "label.npy"
  at = data.draw(st.integers(0, 127))
  path.write_bytes(whole[:at] + data.draw(st.binary(min_size=1, max_size=8)) + whole[at + 1 :])
  actual = array_cache.open_part(cache)
  assert actual is None or np.array_equal(actual[np.arange(4)]["label"], batch["label"])
  assert len(source) == 4


def test_an_index_names_nothing_outside_its_folder(cache, tmp_path):
  """Not even an array that is there, with the digest that it has."""
  array = np.arange(4, dtype=np.float32)
  np.save(tmp_path / "outside.npy", array)
  entry = {"shape": [4], "dtype": "<f4", "blake2b": hashlib.blake2b(array).hexdigest()}
  inside = tmp_path / "cache"
  inside.mkdir()
  np.save(inside / "mean.npy", array)
  for name, opens in (
    ("mean", True),
    ("../outside", False),
    (str(tmp_path / "outside"), False),
    ("./mean", False),
    ("", False),
  ):
    (inside / "index.json").write_text(json.dumps({"count": 4, "arrays": {name: entry}}))
    assert (array_cache.open_part(inside) is not None) == opens, name


@anything
@given(
  st.lists(spoiled({"stage": "denoiser", "step": 3, "loss": 0.5}), max_size=4),
  st.sampled_from([b"\n", b"\r\n", b""]),
)
def test_a_log(tmp_path_factory, lines, between):
  path = tmp_path_factory.getbasetemp() / "metrics.jsonl"
  path.write_bytes(between.join(lines))
  drop_rows_after(path, "denoiser", 2)
  assert all(row["stage"] != "denoiser" or row["step"] <= 2 for _, row in read_rows(path))


@anything
@given(spoiled({"pid": 1, "host": "elsewhere", "started": "", "since": "2026-01-01T00:00:00+00:00"}))
def test_a_lock(tmp_path_factory, data):
  path = tmp_path_factory.getbasetemp() / "lock"
  path.write_bytes(data)
  try:
    with lock.held(path.parent):
      pass
  except UserError as error:
    assert "\n" not in str(error)
