import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jldm.core.errors import UserError
from jldm.models.autoencoders.discriminator import PatchDiscriminator
from tests.networks import quick, random_params

SMALL = PatchDiscriminator(widths=(4, 6, 8), groups=2)
IMAGES = np.float32(np.random.default_rng(0).normal(size=(2, 20, 26, 3)))


def convolved(x, kernel, bias, stride):
  """A 4x4 convolution of [H, W, C] in loops over places, padded by one."""
  x = np.pad(x, ((1, 1), (1, 1), (0, 0)))
  places = [
    [x[i : i + 4, j : j + 4] for j in range(0, x.shape[1] - 3, stride)]
    for i in range(0, x.shape[0] - 3, stride)
  ]
  return np.einsum("yxijc,ijcf->yxf", np.array(places), kernel) + bias


def by_hand(params, x):
  """Published layers, one image in float64: strides 2, 2, 1, 1; no norm after the first, no bias before a
  norm.
  """
  leaky = lambda h: np.where(h > 0, h, 0.2 * h)
  h = leaky(convolved(x, params["conv0"]["kernel"], params["conv0"]["bias"], 2))
  for name, stride in (("1", 2), ("2", 1)):
    h = convolved(h, params["conv" + name]["kernel"], 0, stride)
    groups = h.reshape(*h.shape[:2], 2, -1)
    groups = (groups - groups.mean((0, 1, 3), keepdims=True)) / np.sqrt(
      groups.var((0, 1, 3), keepdims=True) + 1e-6
    )
    h = leaky(groups.reshape(h.shape) * params["norm" + name]["scale"] + params["norm" + name]["bias"])
  return convolved(h, params["out"]["kernel"], params["out"]["bias"], 1)[..., 0]


def test_it_is_the_published_layers():
  params = random_params(SMALL, IMAGES)
  logits = quick(SMALL.apply)({"params": params}, IMAGES)
  expected = np.stack([by_hand(jax.tree.map(np.float64, params), image) for image in np.float64(IMAGES)])
  assert logits.shape == (2, 3, 4) and logits.dtype == jnp.float32
  np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("widths, field", [((64, 128, 256, 512), 70), ((8, 8, 8), 34), ((8, 8), 16)])
def test_a_logit_sees_so_many_pixels(widths, field):
  """Without norms, which see all: counted through kernels of 4 and strides, from the logit back."""
  pixels = 1
  for stride in (1, 1) + (2,) * (len(widths) - 1):
    pixels = (pixels - 1) * stride + 4
  assert pixels == field
  network = PatchDiscriminator(widths=widths, groups=8)
  logits, _ = jax.eval_shape(network.init_with_output, jax.random.key(0), jnp.zeros((1, 64, 96, 1)))
  assert logits.shape == (1, 64 // 2 ** (len(widths) - 1) - 2, 96 // 2 ** (len(widths) - 1) - 2)


def test_an_image_is_judged_alone():
  params = random_params(SMALL, IMAGES)
  whole, alone = (quick(SMALL.apply)({"params": params}, images) for images in (IMAGES, IMAGES[:1]))
  np.testing.assert_allclose(whole[:1], alone, rtol=1e-4, atol=1e-5)


def test_the_smallest_image():
  assert jax.eval_shape(SMALL.init_with_output, jax.random.key(0), jnp.zeros((1, 12, 12, 1)))[0].shape == (
    1,
    1,
    1,
  )
  with pytest.raises(
    UserError,
    match="images of 12x11 are too small for a discriminator of 3 widths, which needs 12; use fewer",
  ):
    jax.eval_shape(SMALL.init, jax.random.key(0), jnp.zeros((1, 12, 11, 1)))


def test_low_precision_gives_float32_logits():
  params = random_params(SMALL, IMAGES)
  half, full = (
    quick(SMALL.clone(dtype=dtype).apply)({"params": params}, IMAGES) for dtype in ("bfloat16", "float32")
  )
  assert half.dtype == jnp.float32 and np.abs(half - full).max() < 0.1 * np.abs(full).max()
