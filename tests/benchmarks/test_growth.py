import json

import pytest

from benchmarks import growth


def test_a_power_has_its_exponent():
  assert growth.exponent((2, 4, 16), [3 * size**1.5 for size in (2, 4, 16)]) == pytest.approx(1.5)


@pytest.mark.slow
def test_operations_and_memory_of_small_networks_grow_as_theory_has_it(monkeypatch, capsys, tmp_path):
  monkeypatch.setattr(growth, "BASE", {"tokens": 4, "batch": 2, "depth": 2, "width": 64})
  monkeypatch.setattr(growth, "AXES", {"batch": (2, 4, 8), "depth": (2, 4), "steps": (5, 10)})
  monkeypatch.setattr(growth, "MATMUL", 64)
  monkeypatch.setattr(
    "sys.argv", ["growth", "--axes", "batch,depth,steps", "--reps", "1", "--json", str(tmp_path / "g")]
  )
  growth.main()
  first, batch, depth, steps = json.loads((tmp_path / "g").read_text())
  assert first["matmul_gflops"] > 0 and len(capsys.readouterr().out.splitlines()) == 4
  assert batch["exponents"]["flops"] == pytest.approx(1, abs=0.1)
  assert 0.5 < depth["exponents"]["flops"] <= 1 and depth["exponents"]["bytes"] > 0
  assert steps["exponents"]["flops"] == 1 and all(point["seconds"] > 0 for point in steps["points"])
