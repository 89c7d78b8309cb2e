import dataclasses
import itertools
import math
import time

import jax
import numpy as np
import pytest

from jldm.core.errors import UserError
from jldm.data.batches import batches, in_order
from jldm.data.buckets import Buckets, bucket_shapes, nearest_shape
from jldm.data.source import Arrays
from jldm.data.synthetic import Synthetic

COUNTS, SHAPES, BATCH = (53, 20, 1, 12), ((4, 4), (2, 6), (6, 2), (3, 5)), 12


def bucket(count, shape, first):
  """Examples whose labels are their numbers."""
  return Arrays(
    {
      "image": np.zeros((count, *shape, 1), np.uint8),
      "label": np.arange(first, first + count, dtype=np.int32),
    }
  )


SOURCE = Buckets(tuple(map(bucket, COUNTS, SHAPES, np.cumsum((0, *COUNTS[:-1])))))
CYCLE = sum(math.ceil(count / BATCH) for count in COUNTS)


def run(start, stop, seed=5, source=SOURCE, **options):
  return list(batches(source, seed, BATCH, start, stop, **options))


def owner(batch):
  return SHAPES.index(batch["image"].shape[1:3])


def assert_same(these, those):
  assert len(these) == len(those)
  for one, other in zip(these, those, strict=True):
    assert one.keys() == other.keys()
    for name in one:
      np.testing.assert_array_equal(one[name], other[name])


# ---- the schedule


def test_every_batch_is_of_one_bucket_and_whole():
  for batch in run(0, 3 * CYCLE):
    k = owner(batch)
    low = sum(COUNTS[:k])
    assert batch["image"].shape == (BATCH, *SHAPES[k], 1) and batch["label"].dtype == np.int32
    assert ((batch["label"] >= low) & (batch["label"] < low + COUNTS[k])).all()
    np.testing.assert_array_equal(batch["row"], np.arange(BATCH))
    np.testing.assert_allclose(batch["stratum"], np.arange(BATCH) / BATCH, rtol=1e-7)


def test_a_cycle_has_each_bucket_as_often_as_it_fills_batches():
  orders = [[owner(batch) for batch in run(n * CYCLE, (n + 1) * CYCLE)] for n in range(4)]
  for order in orders:
    assert (
      [order.count(k) for k in range(4)] == [math.ceil(count / BATCH) for count in COUNTS] == [5, 2, 1, 1]
    )
  assert len(set(map(tuple, orders))) > 1


def test_every_example_of_a_bucket_comes_equally_often_up_to_one():
  """At any step, whole epochs of a bucket and a part of one have passed."""
  seen = np.zeros(sum(COUNTS), int)
  for batch in run(0, 4 * CYCLE):
    np.add.at(seen, batch["label"], 1)
    assert all(np.ptp(part) <= 1 for part in np.split(seen, np.cumsum(COUNTS)[:-1]))
  assert (seen >= 4).all(), "in four cycles everything has come four times"


def test_one_bucket_is_read_as_the_plain_source():
  assert_same(run(0, 30, source=Buckets(SOURCE.sources[:1])), run(0, 30, source=SOURCE.sources[0]))


def test_the_first_bucket_among_others_is_read_as_the_plain_source():
  among = [batch for batch in run(0, 3 * CYCLE) if owner(batch) == 0]
  assert_same(among, run(0, 15, source=SOURCE.sources[0]))


def test_buckets_of_the_same_content_have_orders_of_their_own():
  twins = Buckets((SOURCE.sources[0],) * 2)
  of = [[], []]
  for step in range(10):
    source, seed, own = twins.at(0, BATCH, step)
    of[own_bucket := int(seed != 0)].append((seed, own))
    assert source is twins.sources[own_bucket]
  assert [own for _, own in of[0]] == [own for _, own in of[1]] == list(range(5))


@pytest.mark.parametrize("start", [1, CYCLE - 1, CYCLE, 19])
def test_a_resumed_run_sees_what_it_would_have_seen(start):
  assert_same(run(start, 22), run(0, 22)[start:])


@pytest.mark.parametrize("processes", [2, 3, 4])
def test_the_number_of_processes_changes_nothing(processes):
  shares = [run(3, 17, rows=rows) for rows in np.arange(BATCH).reshape(processes, -1)]
  together = [
    {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    for parts in zip(*shares, strict=True)
  ]
  assert_same(together, run(3, 17))


def test_the_seed_decides():
  assert_same(run(0, CYCLE, seed=-1), run(0, CYCLE, seed=-1))
  orders = {tuple(owner(batch) for batch in run(0, CYCLE, seed=seed)) for seed in range(20)}
  assert len(orders) > 10


def test_a_far_step_costs_no_more():
  large = Buckets((bucket(100_000, (1, 1), 0), bucket(50_000, (2, 1), 0)))
  began = time.monotonic()
  for step in (0, 1, 10**12, 10**12 + 1):
    run(step, step + 1, source=large)
  assert time.monotonic() - began < 5


def test_a_program_is_compiled_once_a_shape():
  traces = []
  mean = jax.jit(lambda image: traces.append(image.shape) or image.mean())
  for batch in run(0, 3 * CYCLE):
    mean(batch["image"])
  assert sorted(shape[1:3] for shape in traces) == sorted(SHAPES)


# ---- in order


@pytest.mark.parametrize("pad", [True, False])
def test_in_order_is_bucket_after_bucket(pad):
  each = [list(in_order(source, BATCH, pad)) for source in SOURCE.sources]
  got = list(in_order(SOURCE, BATCH, pad))
  assert [count for _, count in got] == [count for _, count in itertools.chain(*each)]
  assert_same([batch for batch, _ in got], [batch for batch, _ in itertools.chain(*each)])
  labels = np.concatenate([batch["label"][:count] for batch, count in got])
  np.testing.assert_array_equal(labels, np.arange(len(SOURCE)))


# ---- shapes


@pytest.mark.parametrize(
  ("size", "expected"),
  [
    ((64, 64), (64, 64)),
    ((480, 800), (48, 80)),
    ((800, 480), (80, 48)),
    ((100, 128), (64, 64)),
    ((100, 131), (48, 80)),
    ((1, 1000), (48, 80)),
    ((1000, 1), (80, 48)),  # 1 : sqrt(80 / 48) = 1 : 1.29 is halfway
  ],
)
def test_a_picture_goes_to_the_nearest_ratio(size, expected):
  assert nearest_shape(size, ((64, 64), (48, 80), (80, 48))) == expected


def test_nearness_is_the_same_for_a_picture_and_its_transpose():
  random = np.random.default_rng(0)
  for size in random.integers(1, 500, (200, 2)).tolist():
    there, back = (
      nearest_shape(size, ((64, 64), (48, 80), (80, 48))),
      nearest_shape(size[::-1], ((64, 64), (48, 80), (80, 48))),
    )
    assert there == back[::-1]


def test_of_two_of_one_ratio_the_nearest_in_area_is_taken():
  sizes = ((64, 64), (128, 128))
  assert [nearest_shape((side, side), sizes) for side in (10, 80, 100, 500)] == [
    (64, 64),
    (64, 64),
    (128, 128),
    (128, 128),
  ]


@pytest.mark.parametrize(
  "buckets", [(48, 80), ((48, 80, 3),), ((48, 0),), ((48.0, 80),), ((32, 32),), ((8, 4), (8, 4))]
)
def test_wrong_buckets_are_refused(buckets):
  with pytest.raises(UserError, match=r"data\.buckets=.*expected different \(height, width\)"):
    Synthetic(buckets=buckets).open("train")


# ---- synthetic buckets

DATA = Synthetic(height=8, width=8, classes=3, count=40, buckets=((4, 16), (16, 4)))


def test_synthetic_images_are_dealt_out_over_the_shapes():
  source = DATA.open("train")
  assert len(source) == 40 and bucket_shapes(DATA) == ((8, 8), (4, 16), (16, 4))
  assert [part[np.array([0])]["image"].shape[1:] for part in source.sources] == [
    (8, 8, 1),
    (4, 16, 1),
    (16, 4, 1),
  ]
  for part in source.sources:
    assert set(part.arrays["label"]) == {0, 1, 2}


def test_the_pictures_of_the_first_shape_are_those_without_buckets():
  plain = dataclasses.replace(DATA, buckets=()).open("train").arrays["image"]
  among = DATA.open("train").sources[0].arrays["image"]
  assert {image.tobytes() for image in among} <= {image.tobytes() for image in plain}


def test_a_shape_without_pictures_is_left_out():
  assert len(dataclasses.replace(DATA, count=4).open("train").sources) == 2


def test_mirrors_and_fewer_labels_go_with_buckets():
  both = dataclasses.replace(DATA, mirror=True, labelled=0.5).open("train")
  assert len(both) == 80
  for part, plain in zip(both.sources, DATA.open("train").sources, strict=True):
    batch = part[np.arange(len(part))]
    np.testing.assert_array_equal(batch["image"][len(plain) :], plain.arrays["image"][:, :, ::-1])
    known = batch["label"] >= 0
    np.testing.assert_array_equal(batch["label"][known], np.tile(plain.arrays["label"], 2)[known])
  labels = np.concatenate([batch["label"][:count] for batch, count in in_order(both, 8)])
  assert (labels >= 0).sum() == 2 * 20
  assert len(dataclasses.replace(DATA, mirror=True).open("test")) == 40
