import json
import shutil

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
