import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jldm.core.errors import UserError
from jldm.models.autoencoders.quantize import FSQ, Codebook, perplexity
from tests.networks import quick

RNG = np.random.default_rng(0)
KEY = jax.random.key(0)
BOOK = Codebook(size=6, decay=0.8, epsilon=1e-3, restart_below=0.1)
Z = np.float32(RNG.normal(size=(2, 3, 4, 2)))  # [B, h, w, D]
STATE = {
  "counts": np.float32([0.3, 0.2, 0.25, 0.1, 0.15, 0.0]),
  "sums": np.float32(0.2 * RNG.normal(size=(6, 2))),
}


def vectors(state):
  """Equation (2) in float64."""
  counts, sums = np.float64(state["counts"]), np.float64(state["sums"])
  return sums / ((counts + 1e-3 / 6) / (counts.sum() + 1e-3) * counts.sum())[:, None]


def nearest(state, z):
  return np.square(z[..., None, :] - vectors(state)).sum(-1).argmin(-1)


def test_a_place_takes_its_nearest_vector():
  quantized, codes = quick(BOOK.quantize)(STATE, Z)
  np.testing.assert_array_equal(codes, nearest(STATE, Z))
  np.testing.assert_allclose(quantized, vectors(STATE)[codes], rtol=1e-5, atol=1e-6)


def test_the_codebook_is_the_running_average_of_appendix_a1():
  """Three batches, against numpy in float64."""
  state, counts, sums = STATE, np.float64(STATE["counts"]), np.float64(STATE["sums"])
  step = quick(lambda state, z: BOOK.update(state, z, BOOK.quantize(state, z)[1]))
  for n in range(3):
    z = np.float32(np.random.default_rng(n).normal(size=Z.shape))
    flat, codes = z.reshape(-1, 2), nearest({"counts": counts, "sums": sums}, z).reshape(-1)
    counts = 0.8 * counts + 0.2 * np.array([np.mean(codes == k) for k in range(6)])
    sums = 0.8 * sums + 0.2 * np.stack([flat[codes == k].sum(0) for k in range(6)]) / len(flat)
    state = step(state, z)
  np.testing.assert_allclose(state["counts"], counts, rtol=1e-5, atol=1e-7)
  np.testing.assert_allclose(state["sums"], sums, rtol=1e-4, atol=1e-7)


def test_averages_of_parts_are_the_average_of_the_whole():
  codes = nearest(STATE, Z)
  update = quick(BOOK.update)
  parts = [update(STATE, Z[b : b + 1], codes[b : b + 1]) for b in range(2)]
  whole = update(STATE, Z, codes)
  jax.tree.map(
    lambda w, a, b: np.testing.assert_allclose(w, (a + b) / 2, rtol=1e-5, atol=1e-7), whole, *parts
  )


def test_gradients_pass_straight_through():
  weights = np.float32(RNG.normal(size=Z.shape))
  gradient = quick(jax.grad(lambda z: (weights * BOOK.quantize(STATE, z)[0]).sum()))(Z)
  np.testing.assert_array_equal(gradient, weights)
  state = quick(jax.grad(lambda state: (weights * BOOK.quantize(state, Z)[0]).sum()))(STATE)
  assert not any(leaf.any() for leaf in jax.tree.leaves(state)), "the codebook has no gradient"


def test_a_codebook_begins_as_latents():
  book = Codebook(size=20)
  zeros = {name: np.zeros(shape, np.float32) for name, shape in book.shapes(2).items()}
  assert not quick(book.vectors)(zeros).any()
  state = quick(book.refresh)(zeros, Z, KEY)
  e, flat = np.asarray(book.vectors(state)), Z.reshape(-1, 2)
  distances = np.abs(e[:, None] - flat).max(-1)  # [20, 24]
  np.testing.assert_allclose(distances.min(1), 0, atol=1e-5)
  assert len(set(distances.argmin(1))) == 20, "each another one"
  np.testing.assert_allclose(state["counts"], 1 / 20)


def test_more_codes_than_latents():
  book = Codebook(size=60)
  state = quick(book.refresh)(
    {"counts": np.zeros(60, np.float32), "sums": np.zeros((60, 2), np.float32)}, Z, KEY
  )
  assert np.isfinite(book.vectors(state)).all()


def test_restarts_fill_dead_codes_and_keep_the_living():
  state = {"counts": np.float32([0.5, 0.1 / 6 * 1.01, 0.1 / 6 * 0.99, 0.48, 0, 0]), "sums": STATE["sums"]}
  np.testing.assert_array_equal(BOOK.dead(state), [False, False, True, False, True, True])
  new = jax.device_get(quick(BOOK.refresh)(state, Z, KEY))
  for name in state:
    np.testing.assert_array_equal(new[name][[0, 1, 3]], state[name][[0, 1, 3]])
  assert not BOOK.dead(new).any()
  flat = Z.reshape(-1, 2)
  for k in (2, 4, 5):
    assert np.abs(6 * new["sums"][k] - flat).max(-1).min() < 1e-5, "a latent of the batch"
  other = jax.device_get(quick(BOOK.refresh)(state, Z, jax.random.key(1)))
  assert (other["sums"] != new["sums"]).any()


def test_usage_and_perplexity():
  even = BOOK.metrics({"counts": jnp.full(6, 1 / 6), "sums": STATE["sums"]})
  np.testing.assert_allclose([even["usage"], even["perplexity"]], [1, 6], rtol=1e-5)
  half = BOOK.metrics({"counts": jnp.array([1, 1, 1, 0, 0, 0]) / 3, "sums": STATE["sums"]})
  np.testing.assert_allclose([half["usage"], half["perplexity"]], [0.5, 3], rtol=1e-5)


@pytest.mark.parametrize(
  "counts, expected", [(np.ones(512), 512), (np.eye(7)[3], 1), (np.array([1.0, 3]), 4 / 3**0.75)]
)
def test_perplexity(counts, expected):
  np.testing.assert_allclose(perplexity(jnp.asarray(counts)), expected, rtol=1e-5)


@pytest.mark.parametrize(
  "change, message",
  [
    (dict(size=1), "size=1 of a codebook; expected at least 2"),
    (dict(decay=1.0), "decay=1.0 of a codebook; expected at least 0 and below 1"),
    (dict(restart_every_steps=-1), "restart_every_steps=-1; expected at least 0"),
  ],
)
def test_numbers_out_of_range(change, message):
  with pytest.raises(UserError, match=message):
    Codebook(**change)


# ---- FSQ


@pytest.mark.parametrize("levels", [(8, 5, 5, 5), (2,), (3, 4), (7, 2, 6)])
def test_fsq_reaches_every_code_and_no_other(levels):
  fsq = FSQ(levels)
  sides = [np.linspace(-2, 2, 60)] * len(levels) if len(levels) < 4 else [np.linspace(-2, 2, 24)] * 4
  z = np.stack(np.meshgrid(*sides), -1).astype(np.float32)
  steps, codes = jax.device_get(quick(fsq.quantize)({}, z))
  assert set(codes.reshape(-1)) == set(range(np.prod(levels))) == set(range(fsq.size))
  for channel, number in enumerate(levels):
    assert len(np.unique(steps[..., channel])) == number and np.abs(steps).max() <= 1
  np.testing.assert_allclose(fsq.values(codes), steps, atol=1e-6)


def test_fsq_rounds_to_the_nearest_step_with_gradients():
  fsq = FSQ((5, 4))
  z = np.float32(RNG.normal(size=(7, 2)))
  bounded = np.float64(fsq.bound(z))
  np.testing.assert_allclose(fsq.quantize({}, z)[0], np.rint(bounded) / 2, atol=1e-6)
  gradient, smooth = (
    quick(jax.grad(lambda z, f=f: f(z).sum()))(z) for f in (lambda z: fsq.quantize({}, z)[0], fsq.bound)
  )
  np.testing.assert_allclose(gradient, smooth / 2, rtol=1e-5)
  np.testing.assert_allclose(
    bounded[:, 0], np.tanh(np.float64(z[:, 0])) * 2 * 0.999, rtol=1e-5
  )  # odd: not shifted
  zero = fsq.bound(np.zeros(2, np.float32))
  np.testing.assert_allclose(zero, 0, atol=0.05)


def test_fsq_has_no_state():
  fsq = FSQ((3, 3))
  assert fsq.shapes(2) == {} == fsq.update({}, Z, None) == fsq.refresh({}, Z, KEY) == fsq.metrics({})
  with pytest.raises(
    UserError, match=r"latent_channels=4 with FSQ levels=\(3, 3\); expected as many levels as channels"
  ):
    fsq.shapes(4)
  with pytest.raises(UserError, match=r"levels=\(1, 3\); expected at least 2"):
    FSQ((1, 3))
