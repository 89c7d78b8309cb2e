"""Who copies is flagged, and who does not is not: blurred, far from the data, or of three pictures only."""

import functools

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn.datasets import load_digits

from jldm.core.errors import UserError
from jldm.core.specs import Output
from jldm.diffusion.process import Cosine, rates
from jldm.diffusion.target import Predict, combine, denoiser
from jldm.metrics import features, memorisation
from jldm.metrics.memorisation import audit, nearest_in_pool, share_nearer_to_train
from jldm.nn.embedding import sinusoids
from jldm.samplers.ddim import DDIM
from jldm.samplers.grid import uniform
from jldm.samplers.pairs import adjacent_pairs
from jldm.samplers.sample import draw_samples

MIXING = np.random.default_rng(99).normal(size=(10, 30))


def drawn(rng, count: int) -> np.ndarray:
  """Pictures of one origin: a curved sheet of ten dimensions in thirty, and noise."""
  return np.tanh(rng.normal(size=(count, 10)) @ MIXING) + 0.1 * rng.normal(size=(count, 30))


def noisy(rng, pictures: np.ndarray, size: float) -> np.ndarray:
  return pictures + size * rng.normal(size=pictures.shape)


SAMPLERS = {  # of training pictures, 300 samples; whether they copy
  "fresh": (lambda rng, train: drawn(rng, 300), False),
  "blurred": (lambda rng, train: 0.5 * drawn(rng, 300), False),
  "far from the data": (lambda rng, train: noisy(rng, drawn(rng, 300), 1.0), False),
  "of three pictures": (lambda rng, train: noisy(rng, drawn(rng, 3)[np.arange(300) % 3], 0.01), False),
  "64 training pictures": (lambda rng, train: noisy(rng, train[np.arange(300) % 64], 0.05), True),
  "20 copies among fresh": (lambda rng, train: np.r_[drawn(rng, 280), noisy(rng, train[:20], 0.05)], True),
  "near to training pictures": (lambda rng, train: noisy(rng, train[rng.integers(0, 600, 300)], 0.4), True),
}


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("seed", range(3))
def test_copies_are_flagged_and_nothing_else(sampler, seed):
  draw, copies = SAMPLERS[sampler]
  rng = np.random.default_rng(seed)
  train, held_out = drawn(rng, 600), drawn(rng, 300)
  assert audit(draw(rng, train), train, held_out).flagged == copies


def test_a_planted_model_of_64_pictures():
  rng = np.random.default_rng(0)
  train, held_out = drawn(rng, 64), drawn(rng, 300)
  which = rng.integers(0, 64, 200)
  actual = audit(noisy(rng, train[which], 0.05), train, held_out, pairs=10)
  assert actual.flagged and actual.nearer == actual.copies == 1 and actual.copies_chance < 1e-9
  pairs = actual.pairs
  assert len(set(pairs.train)) == 10
  np.testing.assert_array_equal(pairs.train, which[pairs.sample])  # the picture that was copied
  r = pairs.to_train / pairs.to_held_out
  assert (np.diff(r) >= 0).all() and r.max() < actual.limit


def test_chances_are_those_of_samplers_that_copy_nothing():
  actual = []
  for seed in range(150):
    rng = np.random.default_rng(seed)
    actual.append(audit(drawn(rng, 60), drawn(rng, 120), drawn(rng, 120), pairs=1))
  for name, size in (("nearer_chance", 0.2), ("copies_chance", 0.2)):
    rate = np.mean([getattr(each, name) < size for each in actual])
    assert rate < size + 3 * (size * (1 - size) / 150) ** 0.5, name
  np.testing.assert_allclose(np.mean([each.nearer for each in actual]), 0.5, atol=0.02)


def test_a_shared_picture_is_one_witness():
  """All samples at one training picture: a coin that fell once."""
  rng = np.random.default_rng(0)
  train, held_out = np.r_[np.zeros((1, 3)), rng.normal(5, 1, (99, 3))], rng.normal(5, 1, (100, 3))
  share, chance = share_nearer_to_train(np.zeros((500, 3)), train, held_out)
  assert share == 1 and chance > 0.1


def test_the_pool_itself_leans_nowhere():
  train, held_out = np.random.default_rng(0).normal(size=(2, 20, 3))
  assert share_nearer_to_train(np.concatenate([train, held_out]), train, held_out) == (0.5, 0.5)


@pytest.mark.parametrize("block", [10_000, 30])
def test_the_nearest_is_found_in_blocks(block, monkeypatch):
  monkeypatch.setattr(features, "BLOCK", block)
  monkeypatch.setattr(memorisation, "COLUMNS", 7 if block < 100 else 1000)
  rng = np.random.default_rng(0)
  points, pool = rng.normal(size=(31, 4)), rng.normal(size=(23, 4))
  apart = np.linalg.norm(points[:, None] - pool, axis=-1)
  place, distance = nearest_in_pool(points, pool)
  np.testing.assert_array_equal(place, apart.argmin(1))
  np.testing.assert_allclose(distance, apart.min(1), rtol=1e-12)
  own = np.array([3, 20, 8])
  apart = np.linalg.norm(pool[own][:, None] - pool, axis=-1)
  apart[np.arange(3), own] = np.inf
  np.testing.assert_array_equal(nearest_in_pool(pool[own], pool, own)[0], apart.argmin(1))


def test_a_twin_of_another_index_counts():
  pool = np.random.default_rng(0).normal(size=(5, 3))[[0, 1, 1, 2]]
  place, distance = nearest_in_pool(pool[1:2], pool, np.array([1]))
  assert place == 2 and distance == 0


def test_a_copy_is_measured_to_the_last_digit():
  """Of two pictures with norms of 1e6, a difference of squares has no digit of a distance of 1e-6 left."""
  point = np.random.default_rng(0).normal(size=(1, 50)) * 1e6 / 50**0.5
  place, distance = nearest_in_pool(point + 1e-6 / 50**0.5, np.concatenate([point, -point]))
  assert place == 0
  np.testing.assert_allclose(distance, 1e-6, rtol=1e-2)


def test_the_same_seed_gives_the_same_digits():
  rng = np.random.default_rng(0)
  sets = drawn(rng, 50), drawn(rng, 90), drawn(rng, 60)
  first, again, other = (audit(*sets, controls=30, seed=seed) for seed in (0, 0, 1))
  assert first.nearer == again.nearer and first.limit == again.limit != other.limit


def test_exact_copies_of_held_out_pictures_are_no_copies():
  rng = np.random.default_rng(0)
  train, held_out = drawn(rng, 100), drawn(rng, 100)
  assert not audit(held_out[:50], train, held_out).flagged
  assert audit(train[:50], train, held_out).copies == 1


@pytest.mark.parametrize(
  "sets, message",
  [
    (
      (np.zeros((19, 3)), np.zeros((30, 3)), np.zeros((30, 3))),
      "19 samples, 30 training and 30 held-out pictures; expected",
    ),
    ((np.zeros((30, 3)), np.zeros((30, 2)), np.zeros((30, 3))), "of one width"),
    ((np.full((30, 3), np.nan), np.zeros((30, 3)), np.zeros((30, 3))), "not finite"),
  ],
)
def test_what_cannot_be_audited_is_refused(sets, message):
  with pytest.raises(UserError, match=message):
    audit(*sets)


class Network(nn.Module):
  """A small residual network of whole pictures."""

  width: int = 128

  @nn.compact
  def __call__(self, z, t):
    h = nn.Dense(self.width)(jnp.concatenate([z, sinusoids(1000 * t, 32)], -1))
    for _ in range(3):
      h = h + nn.Dense(self.width)(nn.silu(nn.Dense(self.width)(h)))
    return nn.Dense(z.shape[-1])(h)


NETWORK, PROCESS, V = Network(), Cosine(), Predict("v")


@functools.partial(jax.jit, static_argnums=1)
def samples_of_a_denoiser(pictures, steps, key):
  """300 samples [300, 64] of a denoiser that was trained on pictures [N, 64]."""
  key_init, key_steps, key_draw = jax.random.split(key, 3)
  optimizer = optax.adam(optax.cosine_decay_schedule(2e-3, steps))

  def step(carry, key):
    params, state = carry
    key_row, key_time, key_noise = jax.random.split(key, 3)
    x0 = pictures[jax.random.randint(key_row, (64,), 0, len(pictures))]
    t, eps = jax.random.uniform(key_time, (64,)), jax.random.normal(key_noise, x0.shape)
    r = rates(PROCESS, t, x0)
    error = lambda params: NETWORK.apply(params, r.alpha * x0 + r.sigma * eps, t) - combine(V.row(r), x0, eps)
    updates, state = optimizer.update(
      jax.grad(lambda params: jnp.square(error(params)).mean())(params), state
    )
    return (optax.apply_updates(params, updates), state), None

  params = NETWORK.init(key_init, pictures[:1], jnp.zeros(1))
  (params, _), _ = jax.lax.scan(step, (params, optimizer.init(params)), jax.random.split(key_steps, steps))
  denoise = denoiser(PROCESS, V, lambda z, level, *_: Output(NETWORK.apply(params, z, level)))
  return draw_samples(
    PROCESS,
    denoise,
    DDIM(),
    jnp.zeros((300, 64)),
    adjacent_pairs(uniform(50)),
    jax.random.split(key_draw, 300),
  )


@pytest.mark.slow  # 30 s on one core
@pytest.mark.parametrize("count, steps, copies", [(64, 6000, True), (1297, 2000, False)])
def test_a_denoiser_overfit_to_64_digits_is_flagged_and_one_of_all_is_not(count, steps, copies):
  digits = load_digits().data / 8 - 1
  digits = digits[np.random.default_rng(0).permutation(len(digits))]
  held_out, train = digits[:500], digits[500:][:count]
  actual = audit(samples_of_a_denoiser(np.float32(train), steps, jax.random.key(0)), train, held_out)
  assert actual.flagged == copies, actual
  assert (actual.nearer > 0.8) == (actual.copies > 0.1) == copies
