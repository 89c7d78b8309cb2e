import numpy as np
import pytest

from jldm.data.prepare import prepare
from jldm.data.tfds import ImageData


@pytest.fixture(scope="session")
def digits_dir(tmp_path_factory):
  """A data_dir with the data set "digits"."""
  directory = tmp_path_factory.mktemp("digits")
  prepare("digits", None, "digits", directory)
  return directory


@pytest.fixture
def everything():
  """All examples of a data set of `side` x `side`, by keyword fields of ImageData."""

  def read(data_dir, name, split="train", **fields):
    source = ImageData(name=name, data_dir=str(data_dir), **fields).open(split)
    return source[np.arange(len(source))]

  return read
