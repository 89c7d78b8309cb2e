"""A folder of samples as `jldm sample` writes it."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jldm.media.draws import Captions, PictureFolder


def write_draw(
  folder: Path, images: np.ndarray, labels: np.ndarray, provenance: dict, names: Sequence[str] = ()
) -> None:
  files, rows = PictureFolder(folder, Captions(labels, names), provenance), range(len(images))
  files.write(rows, images)
  files.finish([rows])
