"""Exit codes: a person's mistake is one line and 2."""

import pytest

from jldm.cli import main
from jldm.core.errors import NonFiniteError


def refused(capsys, *argv):
  """The one line of a mistake."""
  assert main(list(argv)) == 2
  captured = capsys.readouterr()
  assert (
    captured.err.startswith("error: ") and captured.err.count("\n") == 1 and "Traceback" not in captured.err
  )
  return captured.err


@pytest.mark.parametrize(
  "argv, told",
  [
    ((), "COMMAND"),
    (("smaple",), "smaple"),
    (("train", "--workdir", "w"), "--config"),
    (("sample", "--n", "many", "--workdir", "w"), "--n"),
    (("sample", "--workdir", "w", "--frobnicate"), "--frobnicate"),
  ],
)
def test_a_wrong_command_line(capsys, argv, told):
  assert told in refused(capsys, *argv)


@pytest.mark.parametrize("error, code", [(NonFiniteError("x"), 3), (KeyboardInterrupt(), 130)])
def test_other_exit_codes(capsys, monkeypatch, error, code):
  import jldm.cli.prepare

  def fail(args):
    raise error

  monkeypatch.setattr(jldm.cli.prepare, "main", fail)
  assert main(["prepare", "digits"]) == code
  assert capsys.readouterr().err.count("\n") == 1
