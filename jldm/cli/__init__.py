"""The command line: `jldm COMMAND …`, one module a command.

Exit codes: 0 done; 2 a person's mistake, told in one line; 3 training was not finite; 130 interrupted.
"""

import argparse
from collections.abc import Sequence
import importlib
import sys

from jldm.core.errors import NonFiniteError, UserError

COMMANDS = {
  "prepare": "make a data set from digits, a folder of pictures, idx files or an npz",
  "train": "train the autoencoder, then the denoiser in its latent space",
  "sample": "draw pictures from a workdir",
  "evaluate": "say what samples and reconstructions are worth, beside real pictures",
  "report": "a run as one page: what it learned, what it draws, what that is worth",
  "edit": "change a picture through its latents: vary, fill, translate, restore, walk between and along",
  "convert": "put weights into another form: a workdir into one file and back, LPIPS",
}
EXIT_CODES = {UserError: 2, NonFiniteError: 3}


class Parser(argparse.ArgumentParser):
  """A parser whose mistakes are one line."""

  def error(self, message: str):
    raise UserError(message)


def main(argv: Sequence[str] | None = None) -> int:
  """Runs one command and returns its exit code; only a bug shows a traceback."""
  argv = sys.argv[1:] if argv is None else list(argv)
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
  except tuple(EXIT_CODES) as error:
    print(f"error: {error}", file=sys.stderr)
    return EXIT_CODES[type(error)]
  except KeyboardInterrupt:
    print("interrupted; the same command goes on from the last checkpoint", file=sys.stderr)
    return 130
  return 0
