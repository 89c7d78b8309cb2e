"""A tower of a few lines, trained with a denoiser: words become tokens that the blocks attend to."""

import dataclasses

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jldm.core.specs import Loaded
from jldm.diffusion.process import Flow
from jldm.models.conditioners.conditioner import Conditioner
from jldm.models.denoisers.dit import DiT
from jldm.nn.transformer import ModulatedBlock
from jldm.objectives.diffusion import Diffusion
from jldm.train.ema import Decay
from jldm.train.state import init_state
from jldm.train.step import make_step
from tests.networks import quick, randomised

KEY = jax.random.key(0)
TABLE = nn.Embed(4, 6)  # of whose words the last is in no text


@dataclasses.dataclass(frozen=True, kw_only=True)
class Words(Conditioner):
  """The words [B, M] of an example, -1 after its last."""

  name: str = "words"
  fields = ("words",)

  def draw_inputs(self, batch, keys):
    return {"words": batch["words"]}

  def init(self, key, inputs):
    return TABLE.init(key, inputs["words"])["params"]

  def embed(self, params, inputs, encode):
    words = inputs["words"]
    return {"tokens": TABLE.apply({"params": params}, jnp.maximum(words, 0)), "mask": words >= 0}


NETWORK = DiT(ModulatedBlock(heads=1), patch=2, width=8, depth=1, token_width=6)
OBJECTIVE = Diffusion(network=NETWORK, process=Flow(), conditioners=(Words(dropout=0.1),))
FROZEN = {"codec": Loaded(None, {"mean": np.zeros(1, np.float32), "std": np.ones(1, np.float32)})}
TX, AVERAGE, SIZE, STEPS = optax.adam(1e-2), Decay(0.9), 64, 150


def batch_of(step: int) -> dict:
  """The first word says what the latents are: -2, 0 or 2 everywhere; the second, if there is one, says
  nothing.
  """
  words = np.random.default_rng(step).integers(0, 3, (SIZE, 2))
  words[::3, 1] = -1
  mean = np.float32(np.broadcast_to(2 * (words[:, :1, None, None] - 1), (SIZE, 2, 2, 1)))
  return {
    "mean": mean,
    "log_variance": np.full_like(mean, -30),
    "words": words,
    "row": np.arange(SIZE),
    "stratum": np.float32(np.arange(SIZE) / SIZE),
  }


def random_params(objective):
  return jax.tree.map(jnp.asarray, randomised(jax.eval_shape(objective.init, KEY, batch_of(0), FROZEN)[0]))


ALWAYS = dataclasses.replace(OBJECTIVE, conditioners=(Words(dropout=0.0),))
given_words = quick(
  jax.value_and_grad(lambda params, batch: ALWAYS.loss(params, {}, params, FROZEN, batch, KEY)[0].mean())
)


@pytest.fixture(scope="module")
def trained():
  """The state before, the state after, and the loss of every step."""
  state, losses = init_state(random_params(OBJECTIVE), {}, TX, AVERAGE), []
  first, step = jax.device_get(state), make_step(OBJECTIVE.loss, TX, AVERAGE)
  for n in range(STEPS):
    state, metrics = step(state, batch_of(n), KEY, FROZEN)
    losses.append(metrics["loss"])
  return first, jax.device_get(state), np.array(losses)


def test_a_tower_stands_in_the_state_beside_the_denoiser(trained):
  for state in trained[:2]:
    for tree in (state.params, state.ema[0], state.opt_state[0].mu):
      assert tree.keys() == {"denoiser", "words"} and tree["words"]["embedding"].shape == (4, 6)


def test_a_tower_learns_with_the_denoiser(trained):
  first, last, losses = trained
  assert losses[-20:].mean() < 0.6 * losses[:5].mean()
  for moved in (last.params, last.ema[0]):
    distance = np.abs(moved["words"]["embedding"] - first.params["words"]["embedding"]).max(1)
    assert (distance[:3] > 1e-2).all() and distance[3] < 1e-6, "every word of the texts, and no other"


def test_the_denoiser_goes_by_the_words(trained):
  params, batch = trained[1].params, batch_of(STEPS)
  of = lambda words: given_words(params, batch | {"words": words})[0]
  none, other = np.full_like(batch["words"], -1), np.where(batch["words"] < 0, -1, (batch["words"] + 1) % 3)
  assert of(batch["words"]) < 0.7 * min(of(none), of(other))


def test_gradients_reach_the_words_of_the_texts():
  gradients = given_words(random_params(ALWAYS), batch_of(0))[1]
  np.testing.assert_array_equal(np.abs(gradients["words"]["embedding"]).max(1) > 1e-6, [True] * 3 + [False])
