"""LPIPS against what the authors' package measures, with its published heads over a backbone drawn from a
seed.
"""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jldm.core.errors import UserError
from jldm.interop.lpips import CONVOLUTIONS, rename
from jldm.metrics import perceptual
from tests.networks import quick
from tests.parity.perceptual import CASES, NETWORKS, randomised

FIXTURE = np.load(Path(__file__).parents[1] / "parity" / "perceptual.npz")


@functools.cache
def theirs(network: str) -> dict:
  """The package's parameters by its names."""
  sizes, places = perceptual.lpips_shapes(network), CONVOLUTIONS[network]
  shapes = {}
  for i, place in enumerate(places, 1):
    down, across, inward, outward = sizes[f"conv{i}/kernel"]
    shapes |= {
      f"features.{place}.weight": (outward, inward, down, across),
      f"features.{place}.bias": (outward,),
    }
  heads = [name for name in FIXTURE.files if name.startswith(f"{network}_lin")]
  return randomised(shapes) | {name.removeprefix(f"{network}_"): FIXTURE[name] for name in heads}


@functools.cache
def params(network: str) -> dict:
  return perceptual.unpack_lpips(rename(theirs(network)))


distance = quick(perceptual.lpips_distance)
signed = lambda images: np.float32(images) / 127.5 - 1


@pytest.mark.parametrize("network, case", [(network, case) for network in NETWORKS for case in CASES])
def test_it_is_what_the_package_measures(network, case):
  expected = FIXTURE[f"{network}_{case}"]
  measured = distance(params(network), signed(FIXTURE[f"{case}_a"]), signed(FIXTURE[f"{case}_b"]))
  assert measured.shape == expected.shape and measured.dtype == jnp.float32
  assert np.abs(measured - expected).max() / np.abs(expected).max() < 1e-5
  assert expected.min() > 0.01, "the pairs differ"


def test_equal_images_are_at_zero_and_the_order_does_not_matter():
  a, b = (signed(FIXTURE[f"colour_{side}"]) for side in "ab")
  assert (np.asarray(distance(params("alex"), a, a)) == 0).all()
  np.testing.assert_allclose(distance(params("alex"), a, b), distance(params("alex"), b, a), rtol=1e-5)


def test_the_gradient_is_finite_where_features_vanish():
  """All features of one image are zero: the square root's own gradient would be infinite."""
  dead = jax.tree.map(np.copy, params("alex"))
  dead["conv1"]["bias"] -= 1e3
  a, b = (signed(FIXTURE[f"colour_{side}"]) for side in "ab")
  gradient = quick(jax.grad(lambda b, p: perceptual.lpips_distance(p, a, b).sum()))
  assert np.isfinite(gradient(b, dead)).all()
  assert np.isfinite(gradient(b, params("alex"))).all() and np.abs(gradient(b, params("alex"))).max() > 0


@pytest.mark.slow
def test_the_gradient_is_that_of_finite_differences():
  a, b = (signed(FIXTURE[f"colour_{side}"]) for side in "ab")
  slope = quick(jax.grad(lambda b: perceptual.lpips_distance(params("alex"), a, b).sum()))(b)
  step = 1e-2 * slope / np.linalg.norm(slope)
  rise = distance(params("alex"), a, b + step).sum() - distance(params("alex"), a, b - step).sum()
  np.testing.assert_allclose(rise, 2e-2 * np.linalg.norm(slope), rtol=0.02)


def test_small_images_are_refused():
  with pytest.raises(UserError, match="images of 9x48 are too small for LPIPS"):
    perceptual.lpips_distance(params("vgg"), jnp.zeros((1, 9, 48, 3)), jnp.zeros((1, 9, 48, 3)))


@pytest.mark.parametrize(
  "change, message",
  [
    (lambda arrays: arrays.pop("conv3/bias"), r"of alex, 'conv3/bias' is missing"),
    (lambda arrays: arrays.update({"conv9/bias": np.zeros(2)}), r"of alex, 'conv9/bias' is not a part"),
    (
      lambda arrays: arrays.update({"head2/weight": np.zeros(191)}),
      r"head2/weight of the .* is \[191\]; expected \[192\]",
    ),
  ],
)
def test_what_is_not_ours_is_reported(change, message):
  arrays = rename(theirs("alex"))
  change(arrays)
  with pytest.raises(UserError, match=message):
    perceptual.unpack_lpips(arrays)
