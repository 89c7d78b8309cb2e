"""Both stages and the sampler on meshes of eight fake devices: the same numbers, parameters in parts,
states that move.
"""

import dataclasses
import functools
import itertools
import json
from pathlib import Path

import jax
import numpy as np
import pytest

from jldm.config.experiment import Experiment
from jldm.core.errors import UserError
from jldm.distributed import sharding
from jldm.distributed.sharding import Layout
from jldm.inference.generate import Request, generate
from jldm.inference.load import load
from jldm.inference.model import StagePlace
from jldm.runs import train as training, validate
from jldm.storage.checkpoint import Checkpoints
from tests.configs import STAGES, config, shrunk, steps_of

LAYOUTS = (
  Layout(1),
  Layout(8),
  Layout(8, fsdp=8),
  Layout(8, tensor=2),
  Layout(8, fsdp=2, tensor=2),
  Layout(4, fsdp=2),
)
TRAINED = (Layout(8), Layout(8, fsdp=8), Layout(8, fsdp=2, tensor=2))
SAME = {"rtol": 2e-4, "atol": 2e-4}  # of losses over a few steps, which differ by the order of sums


def experiment(steps: int = 3) -> Experiment:
  """Digits with layers wide enough to be split."""
  small = shrunk(config("digits"), steps)
  codec, denoiser, replace = small.stage("autoencoder"), small.stage("denoiser"), dataclasses.replace
  network, dit = codec.objective.network, denoiser.objective.network
  return replace(
    small,
    stages=(
      replace(
        codec,
        objective=replace(
          codec.objective, network=replace(network, widths=tuple(16 for _ in network.widths), resnets=1)
        ),
      ),
      replace(
        denoiser,
        objective=replace(denoiser.objective, network=dit.clone(width=32, block=dit.block.clone(heads=4))),
      ),
    ),
  )


@functools.cache
def losses(workdir: Path) -> list[tuple]:
  rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
  return [(row["stage"], row["step"], row["loss"]) for row in rows if "loss" in row]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
  """layout -> a workdir of both stages trained on it."""

  @functools.cache
  def train(layout: Layout) -> Path:
    workdir = tmp_path_factory.mktemp("w") / "w"
    training.train(experiment(), workdir, devices=layout)
    return workdir

  return train


@pytest.mark.slow
@pytest.mark.parametrize("layout", TRAINED, ids=str)
def test_both_stages_lose_the_same_on_every_mesh(trained, layout):
  one, other = losses(trained(LAYOUTS[0])), losses(trained(layout))
  assert len(one) == 6 and [row[:2] for row in one] == [row[:2] for row in other]
  np.testing.assert_allclose([row[2] for row in other], [row[2] for row in one], **SAME)


@pytest.mark.slow
@pytest.mark.parametrize("layout", TRAINED, ids=str)
def test_samples_are_the_same_on_every_mesh(trained, layout):
  model, params = load(trained(LAYOUTS[0]))
  request = Request(n=7, given={"label": [0, 1, 2, 3, 4, 5, 6]})
  one, other = (
    generate(model, params, request, steps_of(model, 3), devices=each).data for each in (LAYOUTS[0], layout)
  )
  assert np.abs(one.astype(int) - other.astype(int)).max() <= 1  # a grey level


@functools.cache
def first_state(name: str) -> object:
  """A stage's state as zeros of the right shapes, with every value told apart."""
  state, *_ = validate.trace_one_loss(StagePlace(experiment(), experiment().stage(name)))
  count = itertools.count()
  numbered = lambda x: (np.arange(np.prod(x.shape, dtype=int)).reshape(x.shape) % 1009 + next(count)).astype(
    x.dtype
  )
  return jax.tree.map(numbered, state)


def bytes_on(device: jax.Device, tree: object) -> int:
  return sum(
    shard.data.nbytes
    for x in jax.tree.leaves(tree)
    for shard in x.addressable_shards
    if shard.device == device
  )


def nbytes(tree: object) -> int:
  return sum(x.nbytes for x in jax.tree.leaves(tree))


@pytest.mark.parametrize("name", STAGES)
@pytest.mark.parametrize(
  "layout, parts", [(Layout(8), 1), (Layout(8, fsdp=8), 8), (Layout(8, fsdp=2), 2), (Layout(8, 4, 2), 4)]
)
def test_a_device_holds_its_part_of_the_state(name, layout, parts):
  state = first_state(name)
  mesh = sharding.mesh_for(8, layout)
  placed = sharding.shard(mesh, state)
  small = nbytes([x for x in jax.tree.leaves(state) if x.size < sharding.SMALLEST_SPLIT])
  for device in mesh.devices.flat:
    assert bytes_on(device, placed) <= (nbytes(state) - small) / parts + small


@pytest.mark.parametrize("name", [pytest.param("autoencoder", marks=pytest.mark.slow), "denoiser"])
def test_a_state_saved_on_each_mesh_is_restored_on_every_other(name, tmp_path):
  state = first_state(name)
  for saved in LAYOUTS:
    with Checkpoints(tmp_path / str(saved)) as there:
      there.save(1, {"state": sharding.shard(sharding.mesh_for(8, saved), state)})
    with Checkpoints(tmp_path / str(saved), read_only=True) as there:
      for restored in LAYOUTS:
        places = sharding.shardings_like(sharding.mesh_for(8, restored), state)
        like = jax.tree.map(lambda x, at: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=at), state, places)
        actual = there.restore(1, {"state": like})["state"]
        jax.tree.map(np.testing.assert_array_equal, actual, state)
        assert all(x.sharding == at for x, at in zip(jax.tree.leaves(actual), jax.tree.leaves(places)))


@pytest.mark.parametrize(
  "path, shape, axes",
  [
    ("params/blocks/attention/qkv/kernel", (2, 64, 192), (None, "fsdp", "tensor")),
    ("ema/blocks/mlp/out/kernel", (2, 256, 64), (None, "tensor", "fsdp")),
    ("opt_state/0/mu/level/dense/kernel", (64, 256), (None, "fsdp")),
    ("params/down0_0/resnet/conv1/kernel", (3, 3, 64, 64), (None, None, "fsdp", "tensor")),
    ("params/middle_resnet/conv2/kernel", (3, 3, 64, 64), (None, None, "tensor", "fsdp")),
    ("params/odd/kernel", (63, 129), (None, None)),  # nothing divides it
    ("params/blocks/attention/qkv/kernel", (63, 192), (None, "tensor")),
    ("params/norm/scale", (64,), (None,)),
  ],
)
def test_rules(path, shape, axes):
  mesh = sharding.mesh_for(8, Layout(8, fsdp=2, tensor=2))
  actual = tuple(sharding.partition_spec(path, shape, mesh))
  assert actual + (None,) * (len(axes) - len(actual)) == axes


def test_a_rule_of_ones_own():
  mesh = sharding.mesh_for(8, Layout(8, tensor=2))
  assert sharding.partition_spec("mine/kernel", (64, 64), mesh, [(r"mine/kernel$", -2)]) == jax.P(
    "tensor", None
  )


@pytest.mark.parametrize(
  "layout, message",
  [
    (Layout(8, fsdp=3), "fsdp=3 times tensor=1 does not divide 8 devices"),
    (Layout(8, tensor=16), "fsdp=1 times tensor=16 does not divide 8 devices"),
    (Layout(8, fsdp=0), "fsdp=0"),
    (Layout(9), "devices=9; expected 1 to 8"),
  ],
)
def test_a_layout_that_does_not_fit(layout, message):
  with pytest.raises(UserError, match=message):
    sharding.mesh_for(16, layout)
