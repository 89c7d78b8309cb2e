"""What diffusers saved and said, in tests/parity/, beside what jldm reads, says and writes."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jldm.interop import locate, pretrained, safetensors
from tests.networks import quick

PARITY = Path(__file__).parent / "parity"
SIZES = ("square", "wide")


def check_outputs(name: str) -> None:
  """Latents and images of a folder are diffusers' at both sizes."""
  network, codec = pretrained.read_pretrained(PARITY / name)
  outputs = np.load(PARITY / name / "outputs.npz")
  apply = quick(
    lambda params, x, method: network.apply({"params": params}, x, method=method), static_argnums=2
  )
  for size in SIZES:
    with jax.default_matmul_precision("highest"):
      latents = apply(codec["params"], outputs[f"{size}_images"], "encode").mean
      decoded = apply(codec["params"], outputs[f"{size}_z"], "decode")
    for actual, expected in ((latents, outputs[f"{size}_latents"]), (decoded, outputs[f"{size}_decoded"])):
      assert np.abs(actual - expected).max() <= 2e-5 * np.abs(expected).max()


def check_written(name: str, folder: Path, left_out: set[str] = frozenset()) -> None:
  """A folder that is read and written has the same tensors, bit for bit, and a config of the same
  network and scale.
  """
  network, codec = pretrained.read_pretrained(PARITY / name)
  pretrained.save(folder, network, codec)
  (config, tensors), (written_config, written) = contents(PARITY / name), contents(folder)
  assert set(config) - set(written_config) == left_out
  assert (
    pretrained.MODULES[type(network)].network(written_config) == network
    and written_config["scaling_factor"] == config["scaling_factor"]
  )
  assert set(written) == set(tensors)
  for key, value in tensors.items():
    assert written[key].dtype == value.dtype
    np.testing.assert_array_equal(written[key], value)


def contents(folder: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
  """The config and the tensors of a folder."""
  return json.loads((folder / locate.CONFIG).read_text()), safetensors.read(folder / locate.WEIGHTS)


def changed(name: str, **values: Any) -> dict[str, Any]:
  """The config of a folder with other values."""
  return contents(PARITY / name)[0] | values
