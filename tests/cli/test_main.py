"""Exit codes: a person's mistake is one line and 2."""

import shlex
import subprocess
import sys

import numpy as np
from PIL import Image
import pytest

import jldm
from jldm.cli import main
from jldm.core.errors import NonFiniteError
from jldm.media.images import write_png


def refused(capsys, *argv):
  """The one line of a mistake."""
  assert main(list(argv)) == 2
  captured = capsys.readouterr()
  assert (
    captured.err.startswith("error: ") and captured.err.count("\n") == 1 and "Traceback" not in captured.err
  )
  return captured.err


@pytest.mark.parametrize(
  "argv, message",
  [
    (("--n",), "COMMAND"),
    (("smaple",), "smaple"),
    (("train", "--workdir", "w"), "--config"),
    (("sample", "--n", "many", "--workdir", "w"), "--n"),
    (("sample", "--workdir", "w", "--frobnicate"), "--frobnicate"),
  ],
)
def test_a_wrong_command_line(capsys, argv, message):
  assert message in refused(capsys, *argv)


def test_no_command_is_asking_for_help_and_the_version_is_reported(capsys):
  for argv, words in (([], "usage: jldm"), (["--version"], f"jldm {jldm.__version__}")):
    with pytest.raises(SystemExit) as ended:
      main(argv)
    assert ended.value.code == 0 and words in capsys.readouterr().out


@pytest.mark.parametrize(
  ("shell", "code", "words"),
  [
    ("{} info {} >&-", 0, ""),
    ("{} info {} > /dev/full", 2, "error: cannot write to the standard output: No space left on device"),
    ("{} info {} | head -1 > /dev/null; exit ${{PIPESTATUS[0]}}", 0, ""),
    ("PYTHONIOENCODING=ascii {} info {} > /dev/null", 0, ""),
  ],
)
def test_an_output_that_takes_nothing_is_one_line(tmp_path, shell, code, words):
  picture = tmp_path / "gr\N{LATIN SMALL LETTER U WITH DIAERESIS}n.png"
  write_png(picture, np.zeros((4, 4, 1), np.uint8), {"seed": 1, "words": "x" * 100_000})
  command = shell.format(f"{sys.executable} -m jldm", shlex.quote(str(picture)))
  ended = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=300)
  assert ended.returncode == code and ended.stderr.startswith(words) and ended.stderr.count("\n") <= 1


def test_a_picture_says_how_it_was_made_with_nothing_that_a_terminal_obeys(tmp_path, capsys):
  write_png(tmp_path / "a.png", np.zeros((4, 4, 1), np.uint8), {"seed": 7, "sampler": "\x1b[31mred"})
  assert main(["info", str(tmp_path / "a.png")]) == 0
  shown = capsys.readouterr().out
  assert "  seed: 7\n" in shown and "\\x1b[31mred" in shown and "\x1b" not in shown
  (tmp_path / "b.png").write_bytes(b"no picture")
  Image.new("L", (4, 4)).save(tmp_path / "c.png")
  assert "b.png' cannot be read as a PNG" in refused(capsys, "info", str(tmp_path / "b.png"))
  assert "c.png' does not say how it was made" in refused(capsys, "info", str(tmp_path / "c.png"))


@pytest.mark.parametrize("error, code", [(NonFiniteError("x"), 3), (KeyboardInterrupt(), 130)])
def test_other_exit_codes(capsys, monkeypatch, error, code):
  import jldm.cli.prepare

  def fail(args):
    raise error

  monkeypatch.setattr(jldm.cli.prepare, "main", fail)
  assert main(["prepare", "digits"]) == code
  assert capsys.readouterr().err.count("\n") == 1


INTERRUPTED_WITHIN_A_CALLBACK = """
import gc, signal, sys, time
import jldm.cli, jldm.cli.info

def callback(phase, info):
  gc.callbacks.remove(callback)
  signal.raise_signal(signal.SIGINT)

def work(args):
  gc.callbacks.append(callback)
  gc.collect()
  print("goes on")
  time.sleep(60)

signal.signal(signal.SIGINT, signal.default_int_handler)
jldm.cli.info.main = work
sys.exit(jldm.cli.main(["info", "W"]))
"""


def test_ctrl_c_within_a_callback_of_the_garbage_collector_is_not_lost():
  command = [sys.executable, "-c", INTERRUPTED_WITHIN_A_CALLBACK]
  ended = subprocess.run(command, capture_output=True, text=True, timeout=50)
  assert ended.returncode == 130 and ended.stdout == "goes on\n"
  assert ended.stderr.startswith("interrupted") and ended.stderr.count("\n") == 1
