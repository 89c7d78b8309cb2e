import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jldm.core.errors import UserError
from jldm.core.trees import count
from jldm.models.denoisers.log_variance import LogVariance
from jldm.models.denoisers.unet import UNet
from tests.networks import quick, random_params

RNG = np.random.default_rng(0)
SMALL = UNet(widths=(8, 12), resnets=0, attention=(True, False), heads=2, classes=3, groups=4)
WITH_TOKENS = SMALL.clone(classes=0, token_width=5)
ONE_SCALE = SMALL.clone(widths=(8,), attention=(False,))  # with attention in the middle still
Z = np.float32(RNG.normal(size=(3, 4, 6, 2)))  # [B, H, W, C], not square
LEVEL = np.array([0.1, 0.5, 0.9], np.float32)
LABELS = np.array([0, 2, -1])
INPUTS = {"label": LABELS}
TOKENS = np.float32(RNG.normal(size=(3, 4, 5)))  # [B, M, token_width]
BY_TOKENS = {"tokens": TOKENS}


@pytest.fixture(scope="module")
def params():
  return random_params(SMALL, Z, LEVEL, INPUTS)


outputs = functools.partial(quick, static_argnums=0)(
  lambda network, params, *x: network.apply({"params": params}, *x)
)
apply = lambda network, params, *x: outputs(network, params, *x).value
labelled = lambda *labels: {"label": np.array(labels)}
shapes_of = lambda network, *x: jax.eval_shape(network.init_with_output, jax.random.key(0), *x)


def parameters(network, channels, inputs):
  z = jnp.zeros((1, 64, 64, channels))
  return count(jax.eval_shape(network.init, jax.random.key(0), z, jnp.zeros(1), inputs))


@pytest.mark.slow
def test_parameters_of_stable_diffusion_1():
  assert parameters(UNet(token_width=768), 4, {"tokens": jnp.zeros((1, 77, 768))}) == 859_520_964


@pytest.mark.slow
def test_parameters_of_the_published_latent_diffusion_models():
  """Of f4 latents, in whole millions, 2112.10752, tables 10 and 12: ImageNet by class (without its
  labels), and CelebA-HQ.
  """
  f4 = UNet(attention=(False, True, True, True), head_width=32)
  by_class = f4.clone(widths=(192, 384, 576, 960), classes=1000, token_width=512)
  assert (parameters(by_class, 3, labelled(0)) - 1001 * 512) // 10**6 == 400
  assert parameters(f4.clone(widths=(224, 448, 672, 896)), 3, labelled(0)) // 10**6 == 274


@pytest.mark.parametrize(
  "widths, attention, resnets, height, width, dtype",
  [
    ((8,), (False,), 1, 3, 5, "float32"),
    ((8, 12), (False, True), 0, 4, 6, "bfloat16"),
    ((4, 8, 16), (True, False, True), 2, 8, 4, "float32"),
    ((4, 4, 4, 4), (False,) * 4, 1, 8, 8, "bfloat16"),
  ],
)
@pytest.mark.parametrize("resample_conv", [True, False])
def test_shapes_and_dtypes(widths, attention, resnets, height, width, dtype, resample_conv):
  network = SMALL.clone(
    widths=widths, attention=attention, resnets=resnets, resample_conv=resample_conv, dtype=dtype
  )
  z = jnp.zeros((3, height, width, 2))
  out, params = shapes_of(network, z, LEVEL, INPUTS)
  assert out.value.shape == z.shape
  assert {leaf.dtype for leaf in jax.tree.leaves((out, params))} == {jnp.dtype("float32")}
  steps = {f"{way}{scale}" for scale in range(len(widths) - 1) for way in ("down", "up")}
  resampled = {name for name in params["params"] if name.startswith(("down", "up")) and "_" not in name}
  assert len(resampled) == (len(steps) if resample_conv else 0)


@pytest.mark.parametrize(
  "fields, inputs, message",
  [
    (
      {},
      (np.zeros((3, 4, 7, 2)), LEVEL, INPUTS),
      "latents of 4x7; expected sides divisible by 2 for 2 widths",
    ),
    (
      {},
      (np.zeros((3, 5, 6, 2)), LEVEL, INPUTS),
      "latents of 5x6; expected sides divisible by 2 for 2 widths",
    ),
    (
      {"attention": (True,)},
      (Z, LEVEL, INPUTS),
      "attention=(True,); expected one bool for each of widths=(8, 12)",
    ),
    (
      {"transformer_layers": (1,)},
      (Z, LEVEL, INPUTS),
      "transformer_layers=(1,); expected one number for each of widths=(8, 12)",
    ),
    ({"head_width": 3}, (Z, LEVEL, INPUTS), "head_width=3 does not divide a width of 8"),
    ({"heads": 3}, (Z, LEVEL, INPUTS), "heads=3 does not divide a width of 8"),
    ({"groups": 3}, (Z, LEVEL, INPUTS), "groups=3 does not divide 8 channels"),
    (
      {"classes": 0, "token_width": 6},
      (Z, LEVEL, BY_TOKENS),
      "tokens of shape (3, 4, 5); expected [B, M, 6]",
    ),
    (
      {"classes": 0, "token_width": 6},
      (Z, LEVEL, INPUTS),
      "token_width=6 and inputs ['label']; expected 'tokens' among them",
    ),
  ],
)
def test_what_does_not_fit_is_refused(fields, inputs, message):
  with pytest.raises(UserError) as error:
    random_params(SMALL.clone(**fields), *inputs)
  assert str(error.value) == message


def test_it_starts_by_saying_zero():
  last = quick(lambda key: SMALL.init(key, Z, LEVEL, INPUTS)["params"]["out"])(jax.random.key(0))
  assert not any(leaf.any() for leaf in jax.tree.leaves(last))


# a label beside the level, and as a token
@pytest.mark.parametrize("fields", [{"resnets": 1}, {"token_width": 5}])
def test_what_every_input_changes(fields):
  """The unknown class differs from every class, and a sample sees its own level and label alone."""
  network = SMALL.clone(**fields)
  params = random_params(network, Z, LEVEL, INPUTS)
  out = np.asarray(apply(network, params, Z, LEVEL, INPUTS))
  differs = lambda other: np.abs(np.asarray(other) - out).max((1, 2, 3)) > 1e-4
  for label in (0, 1, 2):
    np.testing.assert_array_equal(
      differs(apply(network, params, Z, LEVEL, labelled(0, 2, label))), [False, False, True]
    )
  np.testing.assert_array_equal(
    differs(apply(network, params, Z, LEVEL + [0.2, 0, 0], INPUTS)), [True, False, False]
  )
  turned = Z.copy()
  turned[1] = Z[1, ::-1, ::-1]
  np.testing.assert_array_equal(differs(apply(network, params, turned, LEVEL, INPUTS)), [False, True, False])


def test_tokens_are_a_set_that_a_sample_attends_to():
  params = random_params(WITH_TOKENS, Z, LEVEL, BY_TOKENS)
  out = np.asarray(apply(WITH_TOKENS, params, Z, LEVEL, BY_TOKENS))
  turned = apply(WITH_TOKENS, params, Z, LEVEL, {"tokens": TOKENS[:, ::-1]})
  np.testing.assert_allclose(turned, out, atol=1e-4 * np.abs(out).max())
  other = TOKENS.copy()
  other[1, 2] *= -1
  changed = np.abs(apply(WITH_TOKENS, params, Z, LEVEL, {"tokens": other}) - out).max((1, 2, 3))
  np.testing.assert_array_equal(changed > 1e-4, [False, True, False])


def test_a_label_with_a_token_width_is_one_token():
  """The network of tokens, given the rows of the label table, is the network of labels."""
  by_label = SMALL.clone(token_width=5)
  params = random_params(by_label, Z, LEVEL, INPUTS)
  rest = {name: part for name, part in params.items() if name != "label"}
  tokens = params["label"]["table"][[0, 2, 3]][:, None]  # the last row is the unknown class
  expected = apply(WITH_TOKENS, rest, Z, LEVEL, {"tokens": tokens})
  np.testing.assert_allclose(
    apply(by_label, params, Z, LEVEL, INPUTS), expected, atol=1e-5 * np.abs(expected).max()
  )


def test_without_classes_and_tokens_the_condition_does_nothing():
  network = ONE_SCALE.clone(classes=0)
  params = random_params(network, Z, LEVEL, INPUTS)
  out = apply(network, params, Z, LEVEL, INPUTS)
  np.testing.assert_array_equal(out, apply(network, params, Z, LEVEL, labelled(1, 1, 1)))


def test_without_resampling_convolutions_it_takes_means_and_neighbours(params):
  """Which are convolutions of certain kernels: places 0 and 1 of each axis by a quarter, and the middle
  alone.
  """
  down, up = np.zeros((2, 3, 3, 8, 8), np.float32), np.zeros((2, 3, 3, 12, 12), np.float32)
  down[0, 1:, 1:], up[0, 1, 1] = np.eye(8) / 4, np.eye(12)
  certain = {
    name: {"conv": {"kernel": k[0], "bias": k[1, 0, 0, 0]}} for name, k in (("down0", down), ("up1", up))
  }
  assert certain.keys() < params.keys()
  rest = {name: part for name, part in params.items() if name not in certain}
  expected = np.asarray(apply(SMALL, params | certain, Z, LEVEL, INPUTS))
  out = apply(SMALL.clone(resample_conv=False), rest, Z, LEVEL, INPUTS)
  np.testing.assert_allclose(out, expected, atol=1e-4 * np.abs(expected).max())


@pytest.mark.slow
def test_every_parameter_learns():
  network = WITH_TOKENS.clone(
    attention=(False, False), head_width=4, self_conditioning=True, log_variance=True
  )
  params = random_params(network, Z, LEVEL, BY_TOKENS, Z)

  @quick
  def gradient(params):
    output = lambda params: network.apply({"params": params}, Z, LEVEL, BY_TOKENS, 0.5 * Z)
    return jax.grad(lambda params: sum(jnp.sin(x).sum() for x in jax.tree.leaves(output(params))))(params)

  assert not [
    jax.tree_util.keystr(path) for path, leaf in jax.tree.leaves_with_path(gradient(params)) if not leaf.any()
  ]


def test_self_conditioning():
  """No estimate is an estimate of zeros, and another estimate changes its own sample alone."""
  network = ONE_SCALE.clone(self_conditioning=True)
  params = random_params(network, Z, LEVEL, INPUTS)
  assert params["in"]["kernel"].shape[2] == 4 and params["out"]["kernel"].shape[3] == 2
  some = Z * [[[[0]]], [[[1]]], [[[0]]]]
  none, zeros, some = (apply(network, params, Z, LEVEL, INPUTS, estimate) for estimate in (None, 0 * Z, some))
  np.testing.assert_array_equal(none, zeros)
  np.testing.assert_array_equal(np.abs(some - none).max((1, 2, 3)) > 1e-4, [False, True, False])


def test_log_variance_is_of_the_level_alone(params):
  network = SMALL.clone(log_variance=True)
  both = params | {"log_variance": random_params(LogVariance(), LEVEL)}
  out, log_variance, variance = outputs(network, both, Z, LEVEL, INPUTS)
  assert variance is None and outputs(SMALL, params, Z, LEVEL, INPUTS).log_variance is None
  assert log_variance.shape == (3,) and log_variance.dtype == jnp.float32
  np.testing.assert_allclose(out, apply(SMALL, params, Z, LEVEL, INPUTS), atol=1e-5 * np.abs(out).max())
  np.testing.assert_array_equal(
    outputs(network, both, -Z, LEVEL, labelled(1, 1, 1)).log_variance, log_variance
  )
  assert (np.abs(outputs(network, both, Z, LEVEL + 0.05, INPUTS).log_variance - log_variance) > 1e-3).all()


def test_bfloat16_is_near_and_comes_back_whole(params):
  half, whole = (
    apply(SMALL.clone(dtype=dtype), params, Z, LEVEL, INPUTS) for dtype in ("bfloat16", "float32")
  )
  assert half.dtype == jnp.float32
  assert 0 < np.abs(half - whole).max() < 0.05 * np.abs(whole).max()


CONCAT = np.float32(np.random.default_rng(1).normal(size=(*Z.shape[:3], 5)))


def with_concat(network):
  return random_params(network, Z, LEVEL, INPUTS | {"concat": CONCAT})


def test_concat_changes_its_own_sample_alone():
  params, turned = with_concat(SMALL), CONCAT * [[[[1]]], [[[-1]]], [[[1]]]]
  out, other = (apply(SMALL, params, Z, LEVEL, INPUTS | {"concat": concat}) for concat in (CONCAT, turned))
  assert out.shape == Z.shape
  np.testing.assert_array_equal(np.abs(out - other).max((1, 2, 3)) > 1e-3, [False, True, False])


def test_only_the_first_layer_knows_of_concat():
  """Without one the tree is as it was; with one the first kernel has rows more, behind those of z (and
  of an estimate).
  """
  for network in (SMALL, SMALL.clone(self_conditioning=True)):
    plain, more = random_params(network, Z, LEVEL, INPUTS), with_concat(network)
    differ = [
      path
      for (path, a), (_, b) in zip(
        *(jax.tree_util.tree_leaves_with_path(p) for p in (plain, more)), strict=True
      )
      if a.shape != b.shape
    ]
    assert [jax.tree_util.keystr(path) for path in differ] == ["['in']['kernel']"]
  assert with_concat(SMALL)["in"]["kernel"].shape == (3, 3, 2 + 5, 8)


def test_gradients_reach_concat():
  params = with_concat(SMALL)
  value = lambda concat: SMALL.apply({"params": params}, Z, LEVEL, INPUTS | {"concat": concat}).value
  slope = quick(jax.grad(lambda concat: jnp.sin(value(concat)).sum()))(CONCAT)
  assert (np.abs(slope).max((1, 2)) > 1e-4).all(), "every channel of every sample"
