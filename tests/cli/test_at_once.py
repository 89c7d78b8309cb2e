"""Two commands that write to one place at once: one line, and nothing of the other is touched."""

import threading

import numpy as np
import pytest

from jldm.cli import main
from jldm.core.errors import UserError
from jldm.core.files import locked_folder
from jldm.data.prepare import prepare
from jldm.interop import safetensors


def refused(capsys, *argv: str) -> str:
  assert main(list(argv)) == 2
  error = capsys.readouterr().err
  assert error.startswith("error: ") and error.count("\n") == 1
  return error


@pytest.fixture
def pictures(tmp_path):
  path = tmp_path / "pictures.npz"
  np.savez(path, images=np.arange(4 * 64, dtype=np.uint8).reshape(4, 8, 8))
  return str(path)


def test_a_data_set_that_another_process_is_writing(tmp_path, capsys, pictures):
  arguments = ("prepare", "npz", "--source", pictures, "--name", "own", "--data-dir", str(tmp_path))
  with locked_folder(tmp_path / ".own.partial") as theirs:
    (theirs / "work").write_text("half")
    line = refused(capsys, *arguments)
    assert "data set 'own' cannot be written" in line and "another process is writing it" in line
    assert (theirs / "work").read_text() == "half"
  assert main(list(arguments)) == 0
  assert not list(tmp_path.glob(".*"))


def test_of_two_that_prepare_one_name_at_once_one_is_right(tmp_path, pictures):
  ends = []

  def run():
    try:
      ends.append(prepare("npz", pictures, "own", tmp_path / "data"))
    except UserError as error:
      ends.append(str(error))

  threads = [threading.Thread(target=run) for _ in range(2)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  (line,) = [each for each in ends if isinstance(each, str)]
  assert "own" in line and "\n" not in line
  assert [path.name for path in (tmp_path / "data").iterdir()] == ["own"]
  assert (tmp_path / "data" / "own" / "1.0.0" / "dataset_info.json").is_file()


@pytest.mark.parametrize("out", ["o.safetensors", "w"])
def test_an_out_that_another_process_is_writing(tmp_path, capsys, out):
  source = tmp_path / "a.safetensors"
  safetensors.write(source, {"a": np.ones(2, np.float32)}, {})
  arguments = ("convert", str(source), str(tmp_path / out), "--to", "jldm", "--kind", "lpips")
  with locked_folder(tmp_path / f".{out}.lock"):
    line = refused(capsys, *arguments)
    assert f"another process is writing '{tmp_path / out}'; wait for it, or choose another OUT" in line
  refused(capsys, *arguments)  # for what the file holds
  assert sorted(path.name for path in tmp_path.iterdir()) == ["a.safetensors"]
