"""Latents in parts: each has its own time in training; in sampling some are given, some drawn, and
samplers see one array.
"""

import functools
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jldm.core.errors import UserError
from jldm.core.keys import row_keys
from jldm.core.specs import Loaded, Output
from jldm.diffusion.process import EDM, Cosine, Flow
from jldm.diffusion.target import Denoised, Precondition, Predict, refuse_held
from jldm.distributed import sharding
from jldm.models.autoencoders.posterior import posterior_moments
from jldm.models.codecs.codec import decode_latents, encode_mean
from jldm.models.conditioners.conditioner import join_conditions
from jldm.objectives.denoiser import bind, ravel, unravel
from jldm.objectives.diffusion import Diffusion
from jldm.samplers.dpm_solver import DPMSolverPP
from jldm.samplers.guidance import APG, ClassifierFree, Rescale
from jldm.samplers.sample import draw_samples
from jldm.storage.checkpoint import Checkpoints
from jldm.train.ema import Decay
from jldm.train.optimizer import AdamW, Constant
from jldm.train.state import init_state
from jldm.train.step import make_step
from tests.joint import CODEC, LETTERS, Both, examples
from tests.networks import quick, randomised

KEY = jax.random.key(7)
RNG = np.random.default_rng(0)
FROZEN = {"codec": Loaded(CODEC, CODEC.init(KEY))}
OBJECTIVE = Diffusion(network=Both(), process=Flow(), parametrization=Predict("x0"))
PARTS = {"image": (2, 4, 1), "text": (5, LETTERS)}
like = lambda size: {name: jax.ShapeDtypeStruct((size, *shape), jnp.float32) for name, shape in PARTS.items()}
randoms = lambda size: {name: np.float32(RNG.normal(size=(size, *shape))) for name, shape in PARTS.items()}


def batch_of(size: int, step: int = 0) -> dict:
  place = {"row": np.arange(size), "stratum": np.float32(np.arange(size) / size)}
  return (
    posterior_moments(CODEC.encode(FROZEN["codec"].params, examples(np.arange(size) + size * step))) | place
  )


class Levels(nn.Module):
  """Each part's noise level, everywhere."""

  def __call__(self, z, noise_level, inputs, estimate=None):
    return Output(
      {
        name: jnp.zeros_like(z[name]) + level.reshape(-1, *[1] * (z[name].ndim - 1))
        for name, level in noise_level.items()
      }
    )


def times_of(part: str, size: int, key: Any) -> np.ndarray:
  """The times of a part [size]: its network says them, and its data are 0."""
  other = next(name for name in PARTS if name != part)
  objective = Diffusion(
    network=Levels(), process=Flow(), parametrization=Predict("x0"), part_weights=((other, 0.0),)
  )
  batch = batch_of(size) | {
    f"{name}__mean": np.zeros((size, *shape), np.float32) for name, shape in PARTS.items()
  }
  plain = CODEC.init(KEY) | {
    "mean": dict.fromkeys(PARTS, np.float32(0)),
    "std": dict.fromkeys(PARTS, np.float32(1)),
  }
  loss = objective.loss({"denoiser": {}}, {}, (), {"codec": Loaded(CODEC, plain)}, batch, key)[0]
  return np.sqrt(np.asarray(loss, np.float64))


def test_each_part_has_times_of_its_own_and_their_strata_do_not_align():
  size, offsets = 64, []
  for key in jax.random.split(KEY, 4):
    image, text = (times_of(part, size, key) for part in PARTS)
    for times in (image, text):
      assert sorted((times * size).astype(int)) == [*range(size)], "one in each stratum"
    offsets.append(len(np.unique(np.round((image - text) % 1 * size).astype(int) % size)))
  assert min(offsets) > 4, "were they aligned, there would be one"


def test_a_loss_is_the_sum_of_means_per_part():
  params = randomised(jax.eval_shape(OBJECTIVE.init, KEY, batch_of(8), FROZEN)[0])

  def loss(**weights):
    objective = Diffusion(**vars(OBJECTIVE) | {"part_weights": tuple(weights.items())})
    return quick(objective.loss)(params, {}, (), FROZEN, batch_of(8), KEY)

  each = {name: loss(**dict.fromkeys(set(PARTS) - {name}, 0.0))[0] for name in PARTS}
  whole, aux = loss()
  assert whole.shape == (8,) and aux.metrics.keys() == {"mse_image", "mse_text"}
  np.testing.assert_allclose(whole, each["image"] + each["text"], rtol=1e-5)
  np.testing.assert_allclose(loss(text=0.25)[0], each["image"] + 0.25 * each["text"], rtol=1e-5)
  for name in PARTS:
    # of x0, as it is: no part's size counts
    np.testing.assert_allclose(each[name].mean(), aux.metrics[f"mse_{name}"], rtol=1e-5)


def test_weights_are_of_parts_that_there_are():
  objective = Diffusion(**vars(OBJECTIVE) | {"part_weights": (("sound", 1.0),)})
  with pytest.raises(
    UserError, match="part_weights has sound, and the latents image, text; expected some of those"
  ):
    jax.eval_shape(
      objective.loss, objective.init(KEY, batch_of(2), FROZEN)[0], {}, (), FROZEN, batch_of(2), KEY
    )


@pytest.mark.slow
def test_one_and_eight_devices_agree():
  params = randomised(jax.eval_shape(OBJECTIVE.init, KEY, batch_of(8), FROZEN)[0])
  gradient = lambda params, batch: jax.grad(
    lambda p: OBJECTIVE.loss(p, {}, (), FROZEN, batch, KEY)[0].mean()
  )(params)
  one = quick(gradient)(params, batch_of(8))
  mesh = sharding.mesh_for(8, 8)
  eight = quick(gradient)(sharding.replicate(mesh, params), sharding.shard_batch(mesh, batch_of(8)))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), one, eight)


STEPS, SIZE = 600, 48


@pytest.fixture(scope="module")
def training():
  """(the first state, a step, states after STEPS steps by step)."""
  tx, ema = AdamW(schedule=Constant(peak=4e-3)).build(STEPS), Decay(0.97)
  state = lambda: init_state(*OBJECTIVE.init(KEY, batch_of(SIZE), FROZEN), tx, ema)
  step = make_step(OBJECTIVE.loss, tx, ema)
  return state, lambda state, first, last: functools.reduce(
    lambda state, n: step(state, batch_of(SIZE, n), KEY, FROZEN)[0], range(first, last), state
  )


@pytest.fixture(scope="module")
def trained(training):
  state, run = training
  return run(state(), 0, STEPS)


@pytest.mark.slow
def test_stopped_and_resumed_it_ends_with_the_same_bits(training, trained, tmp_path):
  state, run = training
  half = STEPS // 2
  with Checkpoints(tmp_path / "joint") as saved:
    saved.save(half, {"state": run(state(), 0, half)})
  with Checkpoints(tmp_path / "joint", read_only=True) as saved:
    back = saved.restore(half, {"state": jax.eval_shape(state)})["state"]
  jax.tree.map(np.testing.assert_array_equal, run(back, half, STEPS), trained)


def holding(part: str, batch: dict, time: float = 0.0, use: bool = True) -> dict:
  """One part of a batch of examples as what is given."""
  value = encode_mean(FROZEN["codec"], batch)[part]
  each = lambda number, dtype: jnp.full(len(value), number, dtype)
  return {"given": {"held": {part: (value, each(time, jnp.float32), each(use, bool))}}}


def drawn(trained: Any, branch: dict, size: int, rule: Any = None, others: tuple = ()) -> tuple[dict, dict]:
  """Samples of a sampler that knows nothing of parts: finished data by part, and those parts as latents."""
  held = join_conditions(branch).get("held", {})
  shapes = {name: shape for name, shape in like(size).items() if name not in held}
  denoise = bind(
    OBJECTIVE, trained.ema[0], [branch, *others], rule, like(size), row_keys(KEY, np.arange(size))
  )
  pairs = jnp.stack([jnp.linspace(1, 0, 13)[:-1], jnp.linspace(1, 0, 13)[1:]], 1)
  flat = jax.eval_shape(ravel, shapes)
  z = unravel(
    draw_samples(Flow(), denoise, DPMSolverPP(), flat, pairs, row_keys(jax.random.key(1), np.arange(size))),
    shapes,
  )
  return CODEC.finish(decode_latents(FROZEN["codec"], z)), z


def greys(data: dict) -> np.ndarray:
  """The nearest grey of pictures, as the number of its letter."""
  return np.abs(np.asarray(data["image"], np.float32).mean((1, 2, 3))[:, None] - [25.5, 127.5, 229.5]).argmin(
    1
  )


def letters(data: dict) -> np.ndarray:
  """The most frequent letter of captions."""
  return np.array([np.bincount(text, minlength=LETTERS).argmax() for text in data["text"]])


def test_both_parts_are_drawn_together_and_agree(trained):
  data, _ = quick(lambda trained: drawn(trained, {}, 60))(trained)
  assert data["image"].shape == (60, 2, 4, 1) and data["text"].shape == (60, 5)
  assert (letters(data) == greys(data)).mean() > 0.9 and set(letters(data)) == set(range(LETTERS))


@pytest.mark.parametrize("part", ["text", "image"])
def test_a_part_that_is_given_decides_the_other(trained, part):
  batch = examples(np.arange(60))
  data, _ = quick(lambda trained: drawn(trained, holding(part, batch), 60))(trained)
  assert data.keys() == set(PARTS) - {part}
  actual = greys(data) if part == "text" else letters(data)
  assert (actual == np.arange(60) % LETTERS).mean() > 0.95


def test_guidance_pushes_from_a_part_that_is_not_known(trained):
  """At scale 0 nothing is known of the caption; at 1 and above pictures are of it."""
  branch = holding("text", examples(np.ones(60, int)))
  unknown = holding("text", examples(np.ones(60, int)), use=False)
  share = {}
  for scale in (0.0, 1.0, 2.0):
    run = lambda trained, scale=scale: drawn(trained, branch, 60, ClassifierFree(scale), (unknown,))
    share[scale] = (greys(quick(run)(trained)[0]) == 1).mean()
  assert share[0.0] < 0.6 < 0.95 < min(share[1.0], share[2.0])


class Seen(nn.Module):
  """All that reaches it, as the output of the image: the text's level and mean at two places."""

  def __call__(self, z, noise_level, inputs, estimate=None):
    assert "held" not in inputs, "held parts stand in their own places"
    level, mean = noise_level["text"], z["text"].mean((1, 2))
    image = jnp.zeros_like(z["image"]).at[:, 0, 0, 0].set(level).at[:, 0, 1, 0].set(mean)
    return Output(
      {"image": image.at[:, 0, 2, 0].set(noise_level["image"]), "text": jnp.zeros_like(z["text"])}
    )


def test_held_parts_stand_at_their_own_times_and_unknown_ones_as_noise():
  objective = Diffusion(network=Seen(), process=Flow(), parametrization=Predict("x0"))
  value, use = np.full((4, *PARTS["text"]), 3.0, np.float32), np.array([True, True, False, False])
  branch = {"given": {"held": {"text": (value, np.float32([0.0, 0.2, 0.0, 0.2]), use)}}}
  denoise = bind(objective, {"denoiser": {}}, [branch], None, like(4), row_keys(KEY, np.arange(4)))
  seen = [
    np.asarray(quick(denoise)(np.zeros((4, 8), np.float32), t).x0) for t in (np.float32(0.7), np.float32(0.4))
  ]
  np.testing.assert_allclose(seen[0][:, 0], [0, 0.2, 1, 1], atol=1e-6)
  np.testing.assert_allclose(seen[0][:2, 1], 3, rtol=1e-6)
  assert (np.abs(seen[0][2:, 1]) < 1).all() and len(np.unique(seen[0][2:, 1])) == 2, (
    "noise, of each sample its own"
  )
  # the same noise at every step
  np.testing.assert_allclose(seen[0][:, :2], seen[1][:, :2], rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose([each[:, 2] for each in seen], [[0.7] * 4, [0.4] * 4], rtol=1e-6)


class Text(nn.Module):
  """An opinion of both parts that depends on an input."""

  def __call__(self, z, noise_level, inputs, estimate=None):
    return Output(
      jax.tree.map(lambda part: jnp.sin(3 * part + inputs["label"].reshape(-1, *[1] * (part.ndim - 1))), z)
    )


@pytest.mark.parametrize(
  "rule",
  [Rescale(ClassifierFree(3.0), 0.8), pytest.param(APG(3.0, 0.2, 0.5), marks=pytest.mark.slow)],
  ids=repr,
)
def test_rules_that_take_norms_combine_each_part_by_itself(rule):
  objective = Diffusion(network=Text(), process=Flow(), parametrization=Predict("x0"))
  branches = [{"label": {"label": np.float32([1, 2, 3])}}, {"label": {"label": np.float32([0, 0, 0])}}]
  z, t = randoms(3), np.float32(0.6)
  actual = unravel(quick(bind(objective, {"denoiser": {}}, branches, rule, like(3)))(ravel(z), t).x0, like(3))
  alone = [bind(objective, {"denoiser": {}}, [branch], None, like(3))(ravel(z), t) for branch in branches]
  x0, eps = (
    jax.tree.map(lambda a, b: jnp.stack([a, b], 1), *(unravel(one[i], like(3)) for one in alone))
    for i in (0, 1)
  )
  for name in PARTS:
    expected = rule(Flow(), z[name], t, Denoised(x0[name], eps[name])).x0
    np.testing.assert_allclose(actual[name], expected, rtol=1e-4, atol=1e-5)
  flat = rule(Flow(), ravel(z), t, Denoised(*(jnp.stack([one[i] for one in alone], 1) for i in (0, 1)))).x0
  assert max(np.abs(unravel(flat, like(3))[name] - actual[name]).max() for name in PARTS) > 1e-2, (
    "raveled first it is another"
  )


def test_a_ravel_comes_back():
  z = randoms(3)
  assert ravel(z).shape == (3, 8 + 5 * LETTERS)
  jax.tree.map(np.testing.assert_array_equal, unravel(ravel(z), like(3)), z)
  assert ravel(z["image"]) is z["image"] and unravel(z["image"], z["image"]) is z["image"]


@pytest.mark.parametrize(
  "process, parametrization, times, message",
  [
    (
      Flow(),
      Precondition(),
      [0.0],
      r"Precondition\(.*\) has no finite noise level at t = 0 of Flow.*, where a part is held",
    ),
    (
      Flow(),
      Precondition(),
      [0.5, 1.0],
      r"no finite noise level at t = 1 of Flow\(\), where a part is held; use Predict\('v'\)",
    ),
    (
      EDM(),
      Predict("x0"),
      [1.0],
      r"stands as noise at t = 1, where EDM\(.*\) has alpha = 1 and data left; use Flow\(\) or",
    ),
  ],
)
def test_times_at_which_no_part_can_be_held(process, parametrization, times, message):
  with pytest.raises(UserError, match=message):
    refuse_held(process, parametrization, np.float32(times))


@pytest.mark.parametrize("process", [Flow(), Cosine()])
def test_times_at_which_parts_can_be_held(process):
  refuse_held(process, Predict("v"), np.float32([0, 0.5, 1]))
  refuse_held(process, Precondition(), np.float32([0.5]))


@pytest.mark.parametrize(
  "branches, keys, message",
  [
    (
      [holding("text", examples(np.arange(2)))],
      None,
      "parts text are held, and there are no keys of the noise",
    ),
    (
      [holding("text", examples(np.arange(2))), holding("image", examples(np.arange(2)))],
      KEY,
      "parts image, text are held, of",
    ),
  ],
)
def test_what_cannot_be_bound(branches, keys, message):
  with pytest.raises(UserError, match=message):
    bind(OBJECTIVE, {}, branches, None, like(2), keys if keys is None else row_keys(keys, np.arange(2)))


def test_two_conditioners_cannot_hold_one_part():
  one, other = (holding("text", examples(np.arange(2)))["given"] for _ in range(2))
  with pytest.raises(UserError, match="two conditioners hold the part 'text'; expected one of them"):
    join_conditions({"one": one, "other": other})
