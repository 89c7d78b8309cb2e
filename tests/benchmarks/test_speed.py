import json
import shutil

import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import speed
from tests.parity.drawn import SD


@pytest.mark.slow
def test_a_network_of_diffusers_is_timed_without_torch(tmp_path, monkeypatch, capsys):
  shutil.copytree(SD, tmp_path / "kl")
  monkeypatch.setattr(speed.sharding, "configure", lambda *_: None)  # devices are those of the tests
  words = [
    "--rows",
    "kl",
    "--weights",
    str(tmp_path),
    "--batch",
    "2",
    "--reps",
    "2",
    "--json",
    str(tmp_path / "f"),
  ]
  monkeypatch.setattr("sys.argv", ["speed", *words])
  speed.main()
  (result,) = json.loads((tmp_path / "f").read_text())
  assert result["row"] == "kl" and result["batch"] == 2
  for call in ("forward", "train"):
    assert set(result[call]["ms"]) == {f"jldm {n}" for n in {1, speed.CORES} if 2 % n == 0}
    assert all(ms > 0 for ms in result[call]["ms"].values())
  assert capsys.readouterr().out.count('"call"') == 2


def test_fifty_steps_end_at_the_data_that_the_noise_is_of():
  """A network that knows the data: eps = (z - alpha x0) / sigma, at the index of the chain it is told."""
  x0, batch = jnp.linspace(-1, 1, 8), {"x": jnp.ones((2, 4, 4, 8)), "other": jnp.arange(2)}

  def apply(params, z, level, other):
    alpha = jnp.sqrt(jnp.cumprod(1 - speed.CHAIN.beta_schedule.betas()))[jnp.round(level).astype(int)]
    alpha = alpha[:, None, None, None]
    eps = (z - alpha * params) / jnp.sqrt(1 - alpha**2)
    return jnp.concatenate([eps, 7 + 0 * eps], -1)  # the second half, a variance, is left out

  drawn = speed.sampler_of(apply)(x0, batch)
  np.testing.assert_allclose(drawn, np.broadcast_to(x0, drawn.shape), atol=1e-4)
