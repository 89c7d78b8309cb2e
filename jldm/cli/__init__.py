"""The command line: `jldm COMMAND …`, one module per command.

Every command takes `--import FILE.py|MODULE`, as often as needed.  This Python of the user runs
first, so that its classes that are decorated with @jldm.register are known.  Nothing else is ever
imported by a name from outside: not from a workdir, a file of weights or --set.

Exit codes; all but 0 come with one line on stderr:
  0    done
  2    a mistake of the user, a disk that is full or read-only, or too little memory; what was committed
       before is intact
  3    training became non-finite
  4    a replay computed other numbers than the log has
  75   stopped by SIGTERM after a commit, or another process of the run has ended; the same command
       resumes the run
  130  interrupted (SIGINT); a training commits its step first
"""

import argparse
from collections.abc import Iterator, Sequence
import contextlib
import hashlib
import importlib
import importlib.util
import io
import os
from pathlib import Path
import re
import signal
import sys
import threading
import traceback
from types import ModuleType
from typing import Any

import jldm
from jldm.core.errors import (
  RESUME_HINT,
  NonFiniteError,
  Preempted,
  ReplayMismatchError,
  UserError,
  is_out_of_memory,
  printable,
)

COMMANDS = {
  "prepare": "make a data set from digits, a folder of pictures, idx files or an npz",
  "train": "train the stages of an experiment: the autoencoder, then the denoiser in its latent space",
  "replay": "compute logged steps again from a kept checkpoint, and compare to the bit",
  "sample": "draw samples from a workdir",
  "evaluate": "compute metrics of samples and reconstructions, next to those of real pictures",
  "report": "write one page about a run: its training, its samples and their metrics",
  "edit": "change pictures through their latents: vary, inpaint, translate, restore, interpolate",
  "convert": "convert weights: a workdir to one file and back, autoencoders of diffusers, LPIPS",
  "info": "list the arrays of a file, a folder of diffusers or a workdir, or how a PNG of jldm was made",
}
INTERRUPT_HINTS = {"train": RESUME_HINT, "sample": "the same command draws what is missing"}
MEMORY_REMEDIES = {  # by command
  "train": "make a stage's batch_size smaller or its accumulate larger, give its network remat='full', or "
  "train on more devices with --fsdp",
  "sample": "make --batch-size or --size smaller, or decode with --tile 32",
  "evaluate": "make --batch-size, --n or --reference smaller",
  "edit": "give smaller or fewer pictures, or a smaller --n",
}
EXIT_CODES = {UserError: 2, NonFiniteError: 3, ReplayMismatchError: 4}
COLLECTIVE_CODES = (0, 3, Preempted.EXIT_CODE)  # all processes of a run exit with these at the same step

LOST_INTERRUPT_S = 0.05  # until a Ctrl-C that was lost is sent again
NEGATIVE = re.compile(r"-\.?\d[\d.,eE+-]*$")  # a number, or a list of numbers, that begins with a minus


class Parser(argparse.ArgumentParser):
  """A parser that raises a UserError, which is printed in one line, and takes -1,3 for a value."""

  def __init__(self, *args: Any, **kwargs: Any):
    super().__init__(*args, **kwargs)
    self._negative_number_matcher = NEGATIVE  # argparse's own knows -1 and -0.5 alone

  def error(self, message: str):
    raise UserError(message)


def unraisable(error: Any) -> None:
  """Python's hook, but for two kinds of errors.

  A Ctrl-C that Python delivers within a callback of the garbage collector, of which JAX has one, ends
  nothing: it is sent again soon afterwards.  The errors of TensorStore's writes after one that failed and
  was raised are dropped.
  """
  if error.exc_type is KeyboardInterrupt:
    again = threading.Timer(LOST_INTERRUPT_S, os.kill, (os.getpid(), signal.SIGINT))
    again.daemon = True
    again.start()
  elif not (error.exc_type is RuntimeError and str(error.exc_value) == "Event loop is closed"):
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
  if multihost := loaded_multihost():
    (multihost.finish if code in COLLECTIVE_CODES else multihost.exit_process)(code)
  return code


def loaded_multihost() -> Any:
  """The module jldm.distributed.multihost if this is one of several processes; does not import JAX."""
  module = sys.modules.get("jldm.distributed.multihost")
  return module if module and module.is_multiprocess() else None


def run(argv: Sequence[str] | None = None) -> int:
  """As `main`, of one process."""
  argv, sys.unraisablehook = sys.argv[1:] if argv is None else list(argv), unraisable
  prepare_output()
  try:
    import_args, argv = import_option().parse_known_args(argv or ["--help"])  # --import may stand anywhere
    with interrupt_at_once():
      parser, module = command_parser(argv)
    args = parser.parse_args(argv)
    for target in import_args.imports:
      import_target(target)
    module.main(args)
    sys.stdout.flush()
  except tuple(EXIT_CODES) as error:
    print_last(f"error: {printable(str(error))}")
    return EXIT_CODES[type(error)]
  except Preempted as message:
    print_last(str(message))
    return message.EXIT_CODE
  except BrokenPipeError:  # the reader of stdout, such as head, has closed it
    discard_output()
    return 0
  except OutputError as error:
    discard_output()
    print(f"error: cannot write to the standard output: {error.strerror}; send it elsewhere", file=sys.stderr)
    return 2
  except KeyboardInterrupt:
    print(f"interrupted; {INTERRUPT_HINTS.get(argv[0], 'the same command starts again')}", file=sys.stderr)
    return 130
  except Exception as error:
    if not is_out_of_memory(error):
      raise
    remedy = MEMORY_REMEDIES.get(argv[0], "give it less, or a machine with more")
    reason = printable(f"{error}".splitlines()[0]) if str(error) else "none is left"
    print_last(f"error: out of memory: {reason}; {remedy}")
    return 2
  return 0


@contextlib.contextmanager
def interrupt_at_once() -> Iterator[None]:
  """Ends the process at SIGINT: within an import KeyboardInterrupt may be lost, or print a long traceback."""
  in_main_thread = threading.current_thread() is threading.main_thread()
  if not in_main_thread or signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    yield
    return

  def end(number: int, frame: Any) -> None:
    os.write(2, b"interrupted before anything was done\n")
    os._exit(130)

  before = signal.signal(signal.SIGINT, end)
  try:
    yield
  finally:
    signal.signal(signal.SIGINT, before)


def print_last(line: str) -> None:
  """Prints a line on stderr, after what waits in the standard output."""
  with contextlib.suppress(OSError):
    sys.stdout.flush()
  print(line, file=sys.stderr)


def prepare_output() -> None:
  """Makes printing safe where the standard output is closed, or cannot encode a name of a file."""
  if sys.stdout is None:
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115  open to the end
  elif type(sys.stdout) is io.TextIOWrapper:
    out = sys.stdout
    sys.stdout = Output(out.buffer, out.encoding, "backslashreplace", line_buffering=out.line_buffering)


class OutputError(OSError):
  """The standard output takes nothing more, as on a full disk."""


class Output(io.TextIOWrapper):
  """A standard output whose failures are told from those of other files."""

  def write(self, text: str) -> int:
    with output_errors():
      return super().write(text)

  def flush(self) -> None:
    with output_errors():
      super().flush()


@contextlib.contextmanager
def output_errors() -> Iterator[None]:
  try:
    yield
  except BrokenPipeError:
    raise
  except OSError as error:
    raise OutputError(error.errno, error.strerror) from error


def discard_output() -> None:
  """What is left to print goes nowhere, so that Python's own flush at the end says nothing."""
  os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def command_parser(argv: Sequence[str]) -> tuple[Parser, ModuleType | None]:
  """The parser of all commands, and the module of the command in `argv`; other modules are not imported."""
  parser = Parser(
    prog="jldm", description="Latent diffusion in pure, functional JAX.", parents=[import_option()]
  )
  parser.add_argument("--version", action="version", version=f"jldm {jldm.__version__}")
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
    help="first run this Python, which defines your classes decorated with @jldm.register; repeatable",
  )
  return parser


def import_target(target: str) -> ModuleType:
  """Imports what `--import` names: a file if it looks like one, else an installed module.

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
  """Runs the Python file that the user gives by `option`, and returns its module.

  Raises:
    UserError: there is none, it is not Python, or it fails (with the file and the line of the error).
  """
  file = Path(path)
  if not file.is_file():
    near = sorted(str(other) for other in file.parent.glob("*.py")) if file.parent.is_dir() else []
    hint = f"there are {', '.join(near[:5])}" if near else "give a Python file"
    what = "is a folder" if file.is_dir() else "is no file" if file.exists() else "does not exist"
    raise UserError(f"{option} {path!r} {what}; {hint}")
  name = f"jldm_{file.stem}_{hashlib.blake2b(bytes(file.resolve()), digest_size=8).hexdigest()}"
  spec = importlib.util.spec_from_file_location(name, file)
  if spec is None:
    raise UserError(f"{option} {path!r} is not a Python file; expected one that ends in .py")
  module = importlib.util.module_from_spec(spec)
  sys.modules[name] = module  # dataclasses look their module up
  try:
    with user_code(path, option):
      spec.loader.exec_module(module)
  except UserError:
    del sys.modules[name]
    raise
  return module


@contextlib.contextmanager
def user_code(path: str, option: str) -> Iterator[None]:
  """The block runs code of the Python file that the user gives by `option`; any error of it is one line.

  As in `python FILE.py`, the modules beside the file come first on sys.path.  Afterwards they come last: what
  the code imports later is found, and hides nothing that jldm or another package imports later.

  Raises:
    UserError: whatever the code raises, but an interrupt.
  """
  folder = str(Path(path).resolve().parent)
  sys.path.insert(0, folder)
  try:
    yield
  except KeyboardInterrupt:
    raise
  except BaseException as error:  # SystemExit too, and classes of the user's own
    raise UserError(f"{option} {path!r} fails: {describe_error(error, path)}") from error
  finally:
    with contextlib.suppress(ValueError):
      sys.path.remove(folder)
    if folder not in sys.path:
      sys.path.append(folder)


def describe_error(error: BaseException, file: str = "") -> str:
  """An error of the user's Python in one line: "FILE.py:3: NameError: name 'x' is not defined".

  The line is that of the innermost frame in `file` or a module beside it; without `file`, in the first
  file that is not part of the import system.
  """
  name = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
  if isinstance(error, SyntaxError) and error.filename and Path(error.filename).is_file():
    return f"{error.filename}:{error.lineno}: {name}{error.msg}"
  frames = [
    frame
    for frame in traceback.extract_tb(error.__traceback__)
    if not frame.filename.startswith(("<", __file__, importlib.__file__))
  ]
  file = file or next((frame.filename for frame in frames), "")
  folder = Path(file).resolve().parent
  own = [frame for frame in frames if Path(frame.filename).resolve().parent == folder]
  place = own[-1].filename if own else file
  place = file if os.path.abspath(place) == os.path.abspath(file) else place
  text = " ".join(text_of_error(error).split())
  return f"{place}:{own[-1].lineno if own else 1}: {name}{text}" if file else f"{name}{text}"


def text_of_error(error: BaseException) -> str:
  """What an error says; nothing if even that fails."""
  try:
    return str(error)
  except Exception:
    return ""
