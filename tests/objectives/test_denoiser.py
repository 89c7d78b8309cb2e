"""What reaches the network, and under which conditions it answers."""

import itertools

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jldm.core.specs import Output
from jldm.diffusion.process import Flow
from jldm.diffusion.target import Predict
from jldm.models.conditioners.label import ClassLabel
from jldm.models.conditioners.pictures import Masked
from jldm.objectives.denoiser import bind
from jldm.objectives.diffusion import Diffusion
from jldm.samplers.guidance import ClassifierFree
from jldm.samplers.per_conditioner import PerConditioner
from tests.networks import quick

RNG = np.random.default_rng(0)
Z, ESTIMATE = np.float32(RNG.normal(size=(2, 3, 2, 4, 3)))  # [B, h, w, C] each
T = np.float32([0.2, 0.5, 0.9])
LABEL, MASKED = ClassLabel(classes=4), Masked()
PARAMS = {"denoiser": {"a": jnp.float32(1.5)}, "words": {"a": jnp.float32(100)}}


class Network(nn.Module):
  """Something of all that it is given, not linear in any of it."""

  self_conditioning: bool = False

  @nn.compact
  def __call__(self, z, noise_level, inputs, estimate=None):
    each = lambda x: x[:, None, None, None]
    h = self.param("a", nn.initializers.ones, ()) * jnp.sin(z) + each(noise_level)
    h = h * jnp.cos(each(inputs["label"])) + jnp.tanh(inputs["concat"]).sum(-1, keepdims=True) * each(
      inputs["label"] + 2
    )
    h = (
      h
      + (7 if estimate is None else jnp.cos(estimate))
      + (11 if "to" not in inputs else each(jnp.exp(inputs["to"])))
    )
    return Output(h, variance=jnp.tanh(h))


def objective(share: float = 0.0, kind: str = "x0") -> Diffusion:
  return Diffusion(
    network=Network(bool(share)),
    process=Flow(),
    parametrization=Predict(kind),
    conditioners=(LABEL, MASKED),
    self_conditioning=share,
  )


def conditions() -> list:
  """With a class and a mask, without the class, and without both."""
  images, known = (
    np.float32(RNG.uniform(-1, 1, (3, 4, 8, 3))),
    np.float32(RNG.uniform(size=(3, 4, 8, 1)) < 0.6),
  )
  label = LABEL.embed({}, {"label": np.array([0, 3, 1])}, None)
  masked = MASKED.embed({}, {"image": images, "known": known}, lambda fields: fields["image"][:, ::2, ::2])
  no_label, no_mask = LABEL.null({}, label), MASKED.null({}, masked)
  return [
    {"label": one, "masked": other}
    for one, other in ((label, masked), (no_label, masked), (no_label, no_mask))
  ]


BRANCHES = conditions()
RULE = PerConditioner(("label", "masked"), (2.5, jnp.array([0.5, 1.0, 3.0])))
KINDS = pytest.mark.parametrize(
  "branches, rule", [(BRANCHES[:1], None), (BRANCHES, RULE)], ids=["one", "guided"]
)


def answer(one: Diffusion, branches, rule=None, **given):
  denoise = bind(one, PARAMS, branches, rule)
  return jax.device_get(quick(lambda z, given: denoise(z, T, **given))(Z, given))


def assert_same(these, those):
  jax.tree.map(np.testing.assert_array_equal, these, those)


@KINDS
def test_an_estimate_reaches_a_network_that_was_trained_with_them(branches, rule):
  with_one, without = (answer(objective(), branches, rule, **given) for given in ({"estimate": ESTIMATE}, {}))
  assert_same(with_one, without)
  with_one, without = (
    answer(objective(0.5), branches, rule, **given) for given in ({"estimate": ESTIMATE}, {})
  )
  assert (np.abs(with_one.x0 - without.x0) > 0.1).all()


def test_the_estimate_and_the_noise_levels_are_as_they_come():
  """By hand: z, level, conditions, estimate and level of the target time."""
  actual = answer(objective(0.5, "flow"), BRANCHES[:1], estimate=ESTIMATE, to=T / 2)
  levels = [Predict().c_noise(Flow(), t) for t in (T, T / 2)]
  inputs = {
    "label": BRANCHES[0]["label"]["label"],
    "concat": BRANCHES[0]["masked"]["concat"],
    "to": levels[1],
  }
  output = Network(True).apply({"params": PARAMS["denoiser"]}, Z, levels[0], inputs, ESTIMATE)
  t = T[:, None, None, None]
  np.testing.assert_allclose(actual.x0, Z - t * output.value, rtol=1e-4, atol=1e-5)  # z = (1 - t) x0 + t eps
  np.testing.assert_allclose(actual.variance, output.variance, rtol=1e-5)


@KINDS
@pytest.mark.parametrize(
  "to", [np.float32(0.1), np.float32([0.1, 0.2, 0.4])], ids=["one time", "each its own"]
)
def test_the_target_time_is_among_the_inputs_only_if_it_is_given(branches, rule, to):
  without, given = answer(objective(), branches, rule), answer(objective(), branches, rule, to=to)
  shift = np.exp(Predict().c_noise(Flow(), to)) - 11
  np.testing.assert_allclose(
    given.x0 - without.x0, np.broadcast_to(np.reshape(shift, (-1, 1, 1, 1)), Z.shape), rtol=1e-3
  )


def test_a_class_and_a_mask_are_guided_by_a_scale_each():
  """e_K + sum_i s_i (e_(i-1) - e_i)."""
  each = [answer(objective(), [branch]) for branch in BRANCHES]
  assert all((np.abs(a.x0 - b.x0).max((1, 2, 3)) > 0.1).all() for a, b in itertools.pairwise(each)), (
    "no branch is another"
  )
  actual = answer(objective(), BRANCHES, RULE)
  for part in ("x0", "eps"):
    e = [getattr(one, part) for one in each]
    label, mask = RULE.guidance_scales[0], RULE.guidance_scales[1][:, None, None, None]
    np.testing.assert_allclose(
      getattr(actual, part), e[2] + label * (e[0] - e[1]) + mask * (e[1] - e[2]), rtol=1e-4, atol=1e-4
    )
  np.testing.assert_allclose(actual.variance, each[0].variance, rtol=1e-5)


@pytest.mark.parametrize("scales, branch", [((1.0, 1.0), 0), ((0.0, 1.0), 1), ((0.0, 0.0), 2)])
def test_at_its_ends_guidance_is_one_of_the_branches(scales, branch):
  actual = answer(objective(), BRANCHES, PerConditioner(("label", "masked"), scales))
  np.testing.assert_allclose(actual.x0, answer(objective(), [BRANCHES[branch]]).x0, rtol=1e-4, atol=1e-4)


def test_for_one_conditioner_it_is_classifier_free_guidance():
  rules = PerConditioner(("label",), (3.0,)), ClassifierFree(3.0)
  one, other = (answer(objective(), BRANCHES[:2], rule) for rule in rules)
  np.testing.assert_allclose(one.x0, other.x0, rtol=1e-4, atol=1e-4)


def test_without_a_rule_or_without_branches_nothing_is_guided():
  alone = answer(objective(), BRANCHES[:1])
  assert_same(answer(objective(), BRANCHES), alone)
  assert_same(answer(objective(), BRANCHES[:1], ClassifierFree(3.0)), alone)
