"""Real processes with a mesh over all their devices: the same losses, pictures and states as one device
has.
"""

import pytest

from tests.distributed.layouts import ONE, ROWS, Row, found, table

pytestmark = pytest.mark.slow
SOME = (Row(2, 2, fsdp=2), Row(2, 4, fsdp=2, tensor=2))


def test_two_processes_come_to_what_one_device_does(tmp_path):
  told = found(tmp_path, SOME)
  assert set(SOME) < set(ROWS) and list(told) == [ONE, *SOME] and len(table(told)) == 5
  for row, each in told.items():
    assert each["losses"] < 2e-4 and each["levels"] <= 1, row
    assert each["restored"] == 2 * len(told), row
    assert each["held"] <= each["whole"] / row.fsdp + 2**17, row  # what is small is whole everywhere
  assert told[SOME[1]]["held"] < told[SOME[0]]["held"] < told[ONE]["held"] == told[ONE]["whole"]
