"""The command line: `jldm COMMAND …`, one module a command.

Every command takes `--import FILE.py|MODULE`, as often as needed: Python of the person's own, which
runs before the command does, so that classes that are decorated with @jldm.register there are
known.  Nothing else is ever imported by a name from
outside: no name in a workdir, a file of weights or --set.

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
import hashlib
import importlib
import importlib.util
import os
from pathlib import Path
import sys
import traceback
from types import ModuleType
from typing import Any

from jldm.core.errors import RESUME_HINT, NonFiniteError, Preempted, ReplayMismatchError, UserError

COMMANDS = {
  "prepare": "make a data set from digits, a folder of pictures, idx files or an npz",
  "train": "train the stages of an experiment: the autoencoder, then the denoiser in its latent space",
  "replay": "compute logged steps again from a kept checkpoint, and compare to the bit",
  "sample": "draw pictures from a workdir",
  "evaluate": "say what samples and reconstructions are worth, beside real pictures",
  "report": "a run as one page: what it learned, what it draws, what that is worth",
  "edit": "change a picture through its latents: vary, fill, translate, restore, walk between and along",
  "convert": "put weights into another form: a workdir into one file and back, autoencoders of diffusers, LPIPS",
  "info": "tell what a file, a folder of diffusers or a workdir holds",
}
EXIT_CODES = {UserError: 2, NonFiniteError: 3, ReplayMismatchError: 4}
COLLECTIVE_CODES = (0, 3, Preempted.EXIT_CODE)  # all processes of a run exit with these at the same step


class Parser(argparse.ArgumentParser):
  """A parser whose mistakes are one line."""

  def error(self, message: str):
    raise UserError(message)


def unraisable(error: Any) -> None:
  """Python's own hook, but for what TensorStore says of writes that end after one that failed: that
  one is told of.
  """
  if not (error.exc_type is RuntimeError and str(error.exc_value) == "Event loop is closed"):
    sys.__unraisablehook__(error)


def main(argv: Sequence[str] | None = None) -> int:
  """Runs one command and returns its exit code; only a bug shows a traceback.

  If only this one of several processes fails, it exits at once, and the others when its connection is lost.
  """
  try:
    code = run(argv)
  except Exception as error:
    if multihost := loaded_multihost():
      multihost.exit_after_error(error)
    raise
  if code not in COLLECTIVE_CODES and (multihost := loaded_multihost()):
    multihost.exit_process(code)
  return code


def loaded_multihost() -> Any:
  """The module jldm.distributed.multihost if this is one of several processes; JAX is not imported to find out."""
  module = sys.modules.get("jldm.distributed.multihost")
  return module if module and module.is_multiprocess() else None


def run(argv: Sequence[str] | None = None) -> int:
  """As `main`, of one process."""
  argv, sys.unraisablehook = sys.argv[1:] if argv is None else list(argv), unraisable
  try:
    own, argv = import_option().parse_known_args(argv)  # anywhere among the arguments
    parser, module = command_parser(argv)
    args = parser.parse_args(argv)
    for target in own.imports:
      import_target(target)
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
    print(f"interrupted; {RESUME_HINT}", file=sys.stderr)
    return 130
  return 0


def command_parser(argv: Sequence[str]) -> tuple[Parser, ModuleType | None]:
  """The parser of all commands, and the module of the one that `argv` begins with: JAX takes a second to import."""
  parser = Parser(
    prog="jldm", description="Latent diffusion in pure, functional JAX.", parents=[import_option()]
  )
  commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=Parser)
  module = None
  for name, summary in COMMANDS.items():
    command = commands.add_parser(name, help=summary, description=summary, parents=[import_option()])
    if argv[:1] == [name]:
      module = importlib.import_module(f"jldm.cli.{name}")
      module.add_arguments(command)
  return parser, module


def import_option() -> Parser:
  """`--import`, which every command has."""
  parser = Parser(add_help=False, allow_abbrev=False)
  parser.add_argument(
    "--import",
    dest="imports",
    action="append",
    default=[],
    metavar="FILE.py|MODULE",
    help="run this Python first: it has your own classes, decorated with @jldm.register; repeatable",
  )
  return parser


def import_target(target: str) -> ModuleType:
  """What `--import` names: a file if it looks like one, else an installed module.

  Raises:
    UserError: there is none, or it fails (with the file and the line of the error).
  """
  if target.endswith(".py") or os.sep in target or Path(target).is_file():
    return run_file(target, "--import")
  try:
    return importlib.import_module(target)
  except (Exception, SystemExit) as error:
    absent = (
      isinstance(error, ModuleNotFoundError) and error.name and f"{target}.".startswith(f"{error.name}.")
    )
    if absent or not all(part.isidentifier() for part in target.split(".")):
      file = Path(f"{target.replace('.', os.sep)}.py")
      hint = f"for the file: --import {file}" if file.is_file() else "give a file, as in --import FILE.py"
      raise UserError(f"--import {target!r}: no module of that name is installed; {hint}") from error
    raise UserError(f"--import {target!r} fails: {describe_error(error)}") from error


def run_file(path: str, option: str) -> ModuleType:
  """Runs a Python file that the person names by `option`, and returns its module.

  Raises:
    UserError: there is none, it is not Python, or it fails (with the file and the line of the error).
  """
  file = Path(path)
  if not file.is_file():
    near = sorted(str(other) for other in file.parent.glob("*.py")) if file.parent.is_dir() else []
    hint = f"there are {', '.join(near[:5])}" if near else "give a Python file"
    raise UserError(f"{option} {path!r} {'is a folder' if file.is_dir() else 'does not exist'}; {hint}")
  name = f"jldm_{file.stem}_{hashlib.blake2b(bytes(file.resolve()), digest_size=8).hexdigest()}"
  spec = importlib.util.spec_from_file_location(name, file)
  if spec is None:
    raise UserError(f"{option} {path!r} is not a Python file; expected one that ends in .py")
  module = importlib.util.module_from_spec(spec)
  sys.modules[name] = module  # dataclasses look their module up
  try:
    spec.loader.exec_module(module)
  except (Exception, SystemExit) as error:
    del sys.modules[name]
    raise UserError(f"{option} {path!r} fails: {describe_error(error, path)}") from error
  return module


def describe_error(error: BaseException, file: str = "") -> str:
  """ "FILE.py:3: NameError: name 'x' is not defined", in one line: the error of a person's own Python.

  The line is the innermost one of `file`, or if none is given of the first file outside the
  machinery of imports.
  """
  name = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
  if isinstance(error, SyntaxError) and error.filename and Path(error.filename).is_file():
    return f"{error.filename}:{error.lineno}: {name}{error.msg}"
  frames = [
    frame
    for frame in traceback.extract_tb(error.__traceback__)
    if not frame.filename.startswith(("<frozen importlib", __file__, importlib.__file__))
  ]
  file = file or next((frame.filename for frame in frames), "")
  lines = [frame.lineno for frame in frames if os.path.abspath(frame.filename) == os.path.abspath(file)]
  place = f"{file}:{lines[-1] if lines else 1}: " if file else ""
  return f"{place}{name}{' '.join(str(error).split())}"
