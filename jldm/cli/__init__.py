"""The command line: `jldm COMMAND …`, one module a command.

Exit codes, each but 0 with one line on stderr:
  0    done
  2    a person's mistake, or a disk that is full or may not be written to: what was committed before is whole
  3    training was not finite
  4    a replay came to other numbers than the log has
  75   stopped by SIGTERM, after a commit where there was something to commit, or another process of the run has ended: the
       same command goes on
  130  interrupted (SIGINT)
"""

import argparse
from collections.abc import Sequence
import importlib
import os
import sys
from typing import Any

from jldm.core.errors import GO_ON, DifferentError, NonFiniteError, Preempted, UserError

COMMANDS = {
  "prepare": "make a data set from digits, a folder of pictures, idx files or an npz",
  "train": "train the autoencoder, then the denoiser in its latent space",
  "replay": "compute logged steps again from a kept checkpoint, and compare to the bit",
  "sample": "draw pictures from a workdir",
  "evaluate": "say what samples and reconstructions are worth, beside real pictures",
  "report": "a run as one page: what it learned, what it draws, what that is worth",
  "edit": "change a picture through its latents: vary, fill, translate, restore, walk between and along",
  "convert": "put weights into another form: a workdir into one file and back, autoencoders of diffusers, LPIPS",
  "info": "tell what a file, a folder of diffusers or a workdir holds",
}
EXIT_CODES = {UserError: 2, NonFiniteError: 3, DifferentError: 4}
TOGETHER = (0, 3, Preempted.EXIT_CODE)  # what several processes come to at the same step


class Parser(argparse.ArgumentParser):
  """A parser whose mistakes are one line."""

  def error(self, message: str):
    raise UserError(message)


def unraisable(error: Any) -> None:
  """Python's own hook, but for what TensorStore says of writes that end after one that failed: that one is told of."""
  if not (error.exc_type is RuntimeError and str(error.exc_value) == "Event loop is closed"):
    sys.__unraisablehook__(error)


def main(argv: Sequence[str] | None = None) -> int:
  """Runs one command and returns its exit code; only a bug shows a traceback.

  One of several processes that ends in a way of its own ends here and now, and the others when they miss it.
  """
  try:
    code = run(argv)
  except Exception as error:
    if processes := of_several():
      processes.leave_by(error)
    raise
  if code not in TOGETHER and (processes := of_several()):
    processes.leave(code)
  return code


def of_several() -> Any:
  """The module `processes` where this is one of several; JAX is not imported to know that."""
  module = sys.modules.get("jldm.distributed.multihost")
  return module if module and module.several() else None


def run(argv: Sequence[str] | None = None) -> int:
  """As `main`, of one process."""
  argv, sys.unraisablehook = sys.argv[1:] if argv is None else list(argv), unraisable
  parser = Parser(prog="jldm", description="Latent diffusion in pure, functional JAX.")
  commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=Parser)
  for name, summary in COMMANDS.items():
    command = commands.add_parser(name, help=summary, description=summary)
    if argv[:1] == [name]:  # importing JAX takes a second: only the command that runs is imported
      module = importlib.import_module(f"jldm.cli.{name}")
      module.add_arguments(command)
  try:
    args = parser.parse_args(argv)
    module.main(args)
    sys.stdout.flush()
  except tuple(EXIT_CODES) as error:
    print(f"error: {error}", file=sys.stderr)
    return EXIT_CODES[type(error)]
  except Preempted as told:
    print(told, file=sys.stderr)
    return Preempted.EXIT_CODE
  except BrokenPipeError:  # whoever read what was printed, such as head, has seen enough
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0
  except KeyboardInterrupt:
    print(f"interrupted; {GO_ON}", file=sys.stderr)
    return 130
  return 0
