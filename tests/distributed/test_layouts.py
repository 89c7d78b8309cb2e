"""Real processes with a mesh over all their devices: the same losses, pictures and states as one device
has.
"""

import pytest

from tests.distributed.layouts import ONE, ROWS, Row, measured, table

pytestmark = pytest.mark.slow
SOME = (Row(2, 2, fsdp=2), Row(2, 4, fsdp=2, tensor=2))


def test_two_processes_come_to_what_one_device_does(tmp_path):
  results = measured(tmp_path, SOME)
  assert set(SOME) < set(ROWS) and list(results) == [ONE, *SOME] and len(table(results)) == 5
  for row, each in results.items():
    assert each["losses"] < 2e-4 and each["levels"] <= 1, row
    assert each["restored"] == 2 * len(results), row
    assert each["held"] <= each["whole"] / row.fsdp + 2**17, row  # what is small is whole everywhere
  assert results[SOME[1]]["held"] < results[SOME[0]]["held"] < results[ONE]["held"] == results[ONE]["whole"]
