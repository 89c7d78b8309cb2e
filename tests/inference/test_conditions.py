"""Conditions of a request: what the network is given, how they are guided, and what is refused."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jldm.core.errors import UserError
from jldm.core.keys import row_keys
from jldm.core.specs import spec
from jldm.inference import generate as generating
from jldm.inference.conditions import embed_branches, make_branches
from jldm.inference.generate import Request, set_up
from jldm.inference.likelihood import bits_per_dim
from jldm.inference.model import denoiser_shapes
from jldm.models.codecs import codec as codecs
from jldm.models.conditioners import masks
from jldm.models.conditioners.conditioner import join_conditions
from jldm.models.conditioners.pictures import Masked, Paired
from jldm.models.conditioners.sizes import Sizes
from jldm.models.conditioners.vector import Vector
from jldm.samplers.guidance import ClassifierFree
from jldm.samplers.per_conditioner import PerConditioner
from tests.inference.drawing import draw, randomised


def conditioned(tiny, conditioner):
  model, params = tiny
  objective = dataclasses.replace(model.objective, conditioners=(*model.objective.conditioners, conditioner))
  model = dataclasses.replace(model, objective=objective)
  return model, params | randomised(jax.random.key(5), denoiser_shapes(model))


@pytest.fixture(scope="module")
def masked(tiny):
  return conditioned(tiny, Masked(dropout=0.1))


@pytest.fixture(scope="module")
def paired(tiny):
  return conditioned(tiny, Paired())


PICTURES = np.uint8(np.random.default_rng(0).integers(0, 256, (5, 32, 32, 1)))
KNOWN = np.asarray(
  masks.refine(masks.draw_masks(("half_plane",), row_keys(jax.random.key(1), jnp.arange(5)), (4, 4)), 8)
)
LABELS = [0, 1, -1, 3, 4]


def condition(model, params, name, value):
  """What the network is given of a conditioner's value."""
  whole = make_branches(model, {name: value}, (), len(PICTURES))
  return np.asarray(jax.jit(embed_branches, static_argnums=0)(model, params, whole)[0][name]["concat"])


def test_what_a_masked_model_is_reported_is_the_latents_of_what_is_known_and_where(masked):
  model, params = masked
  inputs = condition(model, params, "masked", (PICTURES, KNOWN))
  shown = np.asarray(masks.fill_hidden(codecs.pixels(PICTURES), KNOWN))
  raw = np.asarray(model.codec.encode(params["codec"], {"image": shown}).mean)
  known = KNOWN[:, ::8, ::8]
  assert inputs.shape == (5, 4, 4, 5) and 0 < known.mean() < 1
  np.testing.assert_allclose(inputs[..., :-1], raw, rtol=1e-4, atol=1e-4)
  np.testing.assert_array_equal(inputs[..., -1:], known)
  secret = np.where(KNOWN == 1, PICTURES, 255 - PICTURES)
  np.testing.assert_array_equal(condition(model, params, "masked", (secret, KNOWN)), inputs)


@pytest.mark.slow
def test_a_conditioned_sample_depends_on_its_own_condition_alone(paired):
  model, params = paired
  inputs = condition(model, params, "paired", PICTURES)
  np.testing.assert_allclose(
    inputs, model.codec.encode(params["codec"], {"image": PICTURES}).mean, rtol=1e-4, atol=1e-4
  )
  run = lambda images, **options: draw(
    model, params, LABELS, steps=2, given={"paired": images}, **options
  ).data.astype(int)
  whole = run(PICTURES, devices=1)
  assert np.abs(run(PICTURES, devices=1, batch_size=2) - whole).max() <= 1, "batch size and padding"
  assert np.abs(run(PICTURES, devices=8) - whole).max() <= 1, "devices"
  other = PICTURES.copy()
  other[2] = 255 - other[2]
  changed = np.abs(run(other, devices=1) - whole).max((1, 2, 3))
  assert changed[2] > 1 and (np.delete(changed, 2) == 0).all()


def test_guidance_by_the_condition(masked):
  """At 1 it is none, at 0 the condition does nothing, and its scale is traced."""
  model, params = masked
  run = lambda images, rule: draw(
    model, params, LABELS, steps=2, guidance=rule, devices=1, given={"masked": (images, KNOWN)}
  ).data.astype(int)
  both = lambda label, mask: PerConditioner(("label", "masked"), (label, mask))
  plain = run(PICTURES, ClassifierFree(2.0))
  before = generating.sample_batch._cache_size()
  assert (
    np.abs(run(PICTURES, both(2.0, 1)) - plain).max() <= 1
    and np.abs(run(PICTURES, both(2.0, 3.0)) - plain).max() > 1
  )
  np.testing.assert_array_equal(run(PICTURES, both(0.0, 0.0)), run(255 - PICTURES, both(0.0, 0.0)))
  assert generating.sample_batch._cache_size() == before + 1


def test_conditions_are_joined_in_the_order_of_the_conditioners_not_of_their_names(tiny):
  """As in training: the network reads the channels of `vector` by their place."""
  model, params = tiny
  conditioners = (Vector(name="last"), Sizes(features=2, name="first"))
  objective = dataclasses.replace(model.objective, conditioners=conditioners)
  model = dataclasses.replace(
    model, objective=objective, data=(*model.data, *spec(vector=(np.float32, (3,))))
  )
  given = make_branches(model, {"last": np.ones((1, 3), np.float32)}, (), 1)
  whole = jax.jit(lambda given: join_conditions(embed_branches(model, params, given)[0])["vector"])(given)
  assert whole.shape == (1, 4 + 12)  # three values and that they are known, then sinusoids of six sizes
  np.testing.assert_array_equal(whole[0, :4], 1)


def test_a_class_and_a_mask_are_guided_each_with_its_own_scale(masked):
  """What is bound is e_2 + s_1 (e_0 - e_1) + s_2 (e_1 - e_2), of three answers that are not guided."""
  model, params = masked
  n, z, t = (
    len(PICTURES),
    jnp.asarray(np.random.default_rng(1).normal(size=(5, 4, 4, 4)), jnp.float32),
    jnp.float32(0.6),
  )
  given, sampling = (
    {"label": LABELS, "masked": (PICTURES, KNOWN)},
    dataclasses.replace(model.sampling, steps=2),
  )
  answer = jax.jit(lambda setup: setup.denoise(model)(z, t))
  plain = dataclasses.replace(sampling, guidance=ClassifierFree(1.0))
  alone = lambda values: answer(set_up(model, params, Request(n=n, given=values), plain, n))
  e = [alone(values) for values in (given, {"masked": given["masked"]}, {})]
  for scales in ((2.0, 3.0), (0.5, -1.0), (1.0, 1.0)):
    rule = PerConditioner(("label", "masked"), scales)
    guided = answer(
      set_up(model, params, Request(n=n, given=given), dataclasses.replace(sampling, guidance=rule), n)
    )
    for part in ("x0", "eps"):
      e0, e1, e2 = (getattr(each, part) for each in e)
      expected = e2 + scales[0] * (e0 - e1) + scales[1] * (e1 - e2)
      np.testing.assert_allclose(
        getattr(guided, part), expected, rtol=1e-4, atol=1e-4 * float(jnp.abs(expected).max())
      )


@pytest.mark.parametrize(
  ("call", "inputs"),
  [
    (
      lambda tiny, masked, paired: draw(*paired, [1]),
      "always trained with 'paired', Paired, and cannot sample without",
    ),
    (
      lambda tiny, masked, paired: draw(*tiny, [1], given={"masked": (PICTURES, KNOWN)}),
      "'masked' is given, and the model knows label",
    ),
    (
      lambda tiny, masked, paired: draw(*paired, [1], given={"paired": PICTURES[:1, :16]}),
      "paired: images of shape [1, 16, 32, 1]; expected [n, 32, 32, 1]",
    ),
    (
      lambda tiny, masked, paired: draw(*paired, [1], given={"paired": PICTURES}),
      "5 values of 'paired' for 1 samples",
    ),
    (
      lambda tiny, masked, paired: draw(
        *paired, [1], given={"paired": PICTURES[:1]}, guidance=PerConditioner(("paired",), (2.0,))
      ),
      "guidance by 'paired': the model was trained both with and without label",
    ),
    (
      lambda tiny, masked, paired: draw(*tiny, [1], guidance=PerConditioner(("masked",), (2.0,))),
      "guidance by 'masked'",
    ),
    (lambda tiny, masked, paired: PerConditioner(("label",), (2.0, 1.0)), "expected one scale per name"),
    (lambda tiny, masked, paired: bits_per_dim(*paired, PICTURES), "cannot sample without"),
    (
      lambda tiny, masked, paired: draw(*masked, [1], given={"masked": PICTURES}),
      "masked: expected (images [n, H, W, C], known",
    ),
    (
      lambda tiny, masked, paired: draw(*masked, LABELS, given={"masked": (PICTURES, KNOWN[:, :16])}),
      "known of shape [5, 16, 32, 1] and images of [5, 32, 32, 1]; expected [5, 32, 32, 1]",
    ),
  ],
)
def test_mistakes_with_conditions(tiny, masked, paired, call, inputs):
  with pytest.raises(UserError) as error:
    call(tiny, masked, paired)
  assert inputs in str(error.value) and "\n" not in str(error.value)
