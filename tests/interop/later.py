"""Arrays of dtypes that numpy does not have, put into files of the safetensors format by hand."""

import json
from pathlib import Path
import struct

LATER = {"F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "C64": 64}


def add_later(path: Path, name: str, dtype: str) -> None:
  """Adds eight values of a dtype of LATER to a file; it maps to their size in bytes."""
  content, size = path.read_bytes(), LATER[dtype]
  (length,) = struct.unpack("<Q", content[:8])
  header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
  offsets = [len(data), len(data) + size]
  header[name] = {"dtype": dtype, "shape": [8], "data_offsets": offsets}
  text = json.dumps(header).encode()
  path.write_bytes(struct.pack("<Q", len(text)) + text + data + bytes(size))
