"""`--import`: every command knows the person's own classes, from a file or a module that the person
names each time.
"""

import dataclasses
import os
import sys
from unittest import mock

import pytest

from jldm.cli import COMMANDS, main
from jldm.cli.train import load_config
from jldm.config import registry
from jldm.config.serialize import dumps
from tests.configs import ROOT, config

DIGITS = str(ROOT / "configs" / "digits.py")
NETS = """
import flax.linen as nn
import jldm

@jldm.register
class Mixer(nn.Module):
  width: int = 3

  def __call__(self, z, level, labels):
    return z
"""
ARGUMENTS = {  # as few as each command takes
  "prepare": ["digits"],
  "train": ["--config", DIGITS, "--workdir", "w"],
  "replay": ["--workdir", "w", "--steps", "1:2"],
  "sample": ["--workdir", "w"],
  "evaluate": ["--workdir", "w"],
  "report": ["w"],
  "edit": ["invert", "--workdir", "w", "--image", "a.png", "--out", "o"],
  "convert": ["a", "b", "--to", "jldm"],
  "info": ["w"],
}


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
  """An empty folder to work in, and a table of classes that is as before afterwards."""
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(sys, "path", list(sys.path))
  with mock.patch.dict(registry.CLASSES), mock.patch.dict(sys.modules):
    yield tmp_path


def refused(capsys, *argv: str) -> str:
  """The one line of a mistake."""
  assert main(list(argv)) == 2
  error = capsys.readouterr().err
  assert error.startswith("error: ") and error.count("\n") == 1 and "Traceback" not in error
  return error


@pytest.fixture
def workdir(here):
  """A workdir whose denoiser is of a class that is not known any more."""
  (here / "nets.py").write_text(NETS)
  (here / "w").mkdir()
  with mock.patch.dict(registry.CLASSES):
    from jldm.cli import import_target

    mixer = import_target("nets.py").Mixer(width=5)
    experiment = config("digits")
    objective = dataclasses.replace(experiment.stage("denoiser").objective, network=mixer)
    experiment = experiment.with_stage(dataclasses.replace(experiment.stage("denoiser"), objective=objective))
    (here / "w" / "experiment.json").write_text(dumps(experiment))
  return "w"


def test_every_command_is_here():
  assert ARGUMENTS.keys() == COMMANDS.keys()


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("place", ["before", "after", "between"])
def test_every_command_runs_it_before_anything_else(here, capsys, command, place):
  (here / "first.py").write_text("open('ran', 'w').close()\n")
  (here / "second.py").write_text(
    "from pathlib import Path; Path('ran').write_text('twice' * Path('ran').exists())\n1 / 0\n"
  )
  own, arguments = ["--import", "first.py", "--import=second.py"], ARGUMENTS[command]
  order = {
    "before": [*own, command, *arguments],
    "after": [command, *arguments, *own],
    "between": [command, *own[:2], *arguments, own[2]],
  }
  error = refused(capsys, *order[place])
  assert "--import 'second.py' fails: second.py:2: ZeroDivisionError: division by zero" in error
  assert (here / "ran").read_text() == "twice" and not (here / "w").exists()


def test_a_wrong_command_line_runs_nothing(here, capsys):
  (here / "a.py").write_text("open('ran', 'w').close()\n")
  assert "--frobnicate" in refused(capsys, "info", "w", "--import", "a.py", "--frobnicate")
  assert "--import" in refused(capsys, "info", "w", "--import")
  assert not (here / "ran").exists()


def test_a_workdir_with_a_class_of_ones_own_opens_with_its_file_alone(workdir, capsys):
  error = refused(capsys, "info", workdir)
  assert (
    "class 'Mixer' is not known; give the file that defines it, decorated with @jldm.register, "
    "as --import FILE.py"
    in error
    and "--import CONFIG.py" in error
  )
  assert main(["info", workdir, "--import", "nets.py"]) == 0
  assert "a workdir" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["replay", "sample", "evaluate", "report", "info"])
def test_each_command_that_reads_a_workdir_says_so(workdir, capsys, command):
  assert (
    "class 'Mixer' is not known; give the file that defines it, decorated with @jldm.register, "
    "as --import FILE.py" in refused(capsys, command, *ARGUMENTS[command])
  )


def test_set_knows_the_class(here, capsys):
  (here / "nets.py").write_text(NETS)
  train = [
    "train",
    "--config",
    DIGITS,
    "--workdir",
    "w",
    "--set",
    "denoiser.objective.network=Mixer(width=7)",
    "--set",
    "data.data_dir=nowhere",
  ]
  assert "no class 'Mixer'" in (error := refused(capsys, *train)) and "--import FILE.py" in error
  assert "jldm prepare digits" in refused(capsys, *train, "--import", "nets.py")


def test_a_config_that_registers_a_class_trains_and_may_be_imported_as_well(here):
  """Twice the same file is twice the same class, of which the later one counts."""
  (here / "own.py").write_text(
    NETS
    + """
import dataclasses
from configs.digits import experiment as digits

def experiment():
  base = digits()
  objective = dataclasses.replace(base.stage("denoiser").objective, network=Mixer(width=7))
  return base.with_stage(dataclasses.replace(base.stage("denoiser"), objective=objective))
"""
  )
  for _ in range(2):
    assert '"class": "Mixer",\n          "width": 7' in dumps(load_config("own.py"))


def test_an_installed_module_is_imported_by_its_name(here, monkeypatch, capsys):
  (here / "site" / "mixers").mkdir(parents=True)
  (here / "site" / "mixers" / "__init__.py").write_text("")
  (here / "site" / "mixers" / "nets.py").write_text(NETS)
  monkeypatch.syspath_prepend(here / "site")
  assert "jldm prepare digits" in refused(
    capsys,
    "train",
    "--config",
    DIGITS,
    "--workdir",
    "w",
    "--set",
    "denoiser.objective.network=Mixer()",
    "--set",
    "data.data_dir=nowhere",
    "--import",
    "mixers.nets",
  )


@pytest.mark.parametrize(
  ("content", "text"),
  [
    ("x = (\n", "a.py:1: SyntaxError: '(' was never closed"),
    ("x = 1\n\nclass A\n", "a.py:3: SyntaxError: expected ':'"),
    ("\n\nimport nosuch.thing\n", "a.py:3: ModuleNotFoundError: No module named 'nosuch'"),
    ("def f():\n  raise ValueError('two\\nlines')\n\nf()\n", "a.py:2: ValueError: two lines"),
    ("import sys\nsys.exit(3)\n", "a.py:2: SystemExit: 3"),
    ("import jldm\nimport ast\nast.literal_eval('1 +')\n", "a.py:3: SyntaxError: invalid syntax"),
    (
      "import jldm\n\njldm.lod\n",
      "a.py:3: AttributeError: module 'jldm' has no attribute 'lod'; did you mean 'load'?",
    ),
    ("import jldm\n\n@jldm.register\nclass Mixer:\n  pass\n", "a.py:3: cannot register"),
    (
      "import dataclasses\nimport jldm\n@jldm.register\n@dataclasses.dataclass(frozen=True)\nclass "
      "DiT:\n  pass\n",
      "a.py:3: another class named 'DiT' is registered",
    ),
  ],
)
def test_a_file_that_fails_is_one_line_with_its_place(here, capsys, content, text):
  (here / "a.py").write_text(content)
  error = refused(capsys, "info", "w", "--import", "a.py")
  assert error.startswith("error: --import 'a.py' fails: ") and text in error
  (here / "site").mkdir()
  (here / "site" / "failing.py").write_text(content)
  sys.path.insert(0, str(here / "site"))
  try:
    error = refused(capsys, "info", "w", "--import", "failing")
  finally:
    sys.path.remove(str(here / "site"))
  assert "--import 'failing' fails: " in error and text.replace("a.py", "failing.py") in error


@pytest.mark.parametrize("content", [b"x = '\0'\n", b"x = '\xff'\n", b"\x7fELF"])
def test_a_file_that_is_no_text_is_one_line(here, capsys, content):
  (here / "a.py").write_bytes(content)
  assert "--import 'a.py' fails: " in (error := refused(capsys, "info", "w", "--import", "a.py"))
  assert "a.py:1: " in error and "Error: " in error


@pytest.mark.parametrize(
  ("target", "text"),
  [
    ("none.py", "--import 'none.py' does not exist; there are a.py"),
    ("no/where.py", "--import 'no/where.py' does not exist; give a Python file"),
    ("folder.py", "--import 'folder.py' is a folder; there are a.py"),
    ("notes.txt", "--import 'notes.txt' is not a Python file; expected one that ends in .py"),
    (
      "notes.md",
      "--import 'notes.md': no module of that name is installed; give a file, as in --import FILE.py",
    ),
    ("nosuchmodule", "--import 'nosuchmodule': no module of that name is installed; give a file"),
    ("nosuch.module", "--import 'nosuch.module': no module of that name"),
    ("json.nosuch", "--import 'json.nosuch': no module of that name"),
    ("a", "--import 'a': no module of that name is installed; for the file: --import a.py"),
    ("..a", "--import '..a': no module of that name"),
    ("", "--import '': no module of that name"),
  ],
)
def test_what_is_not_there_is_one_line(here, capsys, target, text):
  (here / "a.py").write_text("")
  (here / "notes.txt").write_text("")
  (here / "folder.py").mkdir()
  assert text in refused(capsys, "info", "w", f"--import={target}")


def test_an_error_in_experiment_has_its_line(here, capsys):
  (here / "a.py").write_text("def experiment():\n  return 1 / 0\n")
  assert "--config 'a.py' fails: a.py:2: ZeroDivisionError" in refused(
    capsys, "train", "--config", "a.py", "--workdir", "w"
  )


def test_help_tells_of_it(capsys):
  with pytest.raises(SystemExit):
    main(["info", "--help"])
  assert "--import" in capsys.readouterr().out


BESIDE = """
import dataclasses
from configs.digits import experiment as digits
from nets import Mixer

def experiment():
  from widths import WIDTH
  base = digits()
  objective = dataclasses.replace(base.stage("denoiser").objective, network=Mixer(width=WIDTH))
  return base.with_stage(dataclasses.replace(base.stage("denoiser"), objective=objective))
"""


def test_a_config_may_import_the_modules_beside_it(here):
  """At once, in experiment(), and by a command that runs elsewhere, as `python FILE.py` does."""
  folder = here / "own project"
  folder.mkdir()
  (folder / "nets.py").write_text(NETS)
  (folder / "widths.py").write_text("WIDTH = 7\n")
  (folder / "own.py").write_text(BESIDE)
  assert '"width": 7' in dumps(load_config("own project/own.py"))
  link = here / "link.py"
  link.symlink_to(folder / "own.py")
  assert '"width": 7' in dumps(load_config("link.py"))


def test_modules_beside_come_first_while_the_config_runs_and_last_afterwards(here):
  """`this` is a module of Python that nothing has imported; `here` has another."""
  (here / "this.py").write_text("mine = True\n")
  (here / "own.py").write_text("import sys, this\nassert this.mine\n")
  with pytest.raises(Exception, match="has no experiment"):
    load_config("own.py")
  assert sys.path[-1] == str(here.resolve()) and sys.path[0] != str(here.resolve())
  assert sys.path.count(str(here.resolve())) == 1
  with pytest.raises(Exception, match="has no experiment"):
    load_config("own.py")
  assert sys.path.count(str(here.resolve())) == 1


MISTAKES = {  # of a config -> its place and words
  "def experiment(:\n": "own.py:1: SyntaxError: ",
  "import os\nraise ValueError('wrong')\n": "own.py:2: ValueError: wrong",
  "\nraise SystemExit('enough')\n": "own.py:2: SystemExit: enough",
  "class Own(BaseException): pass\nraise Own('mine')\n": "own.py:2: Own: mine",
  "class Mute(Exception):\n  def __str__(self): 1 / 0\nraise Mute\n": "own.py:3: Mute: ",
  "\n\nimport not_there\n": "own.py:3: ModuleNotFoundError: No module named 'not_there'",
  "import broken\n": "broken.py:2: NameError: name 'x' is not defined",
  "import unclosed\n": "unclosed.py:1: SyntaxError: '(' was never closed",
  "def experiment():\n  import sys\n  sys.exit(3)\n": "own.py:3: SystemExit: 3",
  "def experiment():\n  raise KeyError\n": "own.py:2: KeyError",
  "def experiment(name):\n  pass\n": "own.py:1: TypeError: experiment() missing 1 required",
  "from jldm import Stage\ndef experiment():\n  return Stage(name='a', objective=1, stpes=5)\n": (
    "own.py:3: TypeError: Stage.__init__() got an unexpected keyword argument 'stpes'"
  ),
  "from jldm import Sampling\ndef experiment():\n\n  return Sampling(steps=0)\n": (
    "own.py:4: sampling.steps=0; expected whole numbers in [1, 1048576]"
  ),
  "from jldm.samplers.grid import Grid\n\nGrid('nope')\n": "own.py:3: ",
  "experiment = 3\n": "has no experiment() that returns an Experiment",
  "def experiment(): return 3\n": "has no experiment() that returns an Experiment",
  b"\x00\x01": "own.py:1: ",
  "x = 1\n".encode("utf-16"): "own.py:1: ",
  b"x = '\xff'\n": "own.py:1: ",
  b"(" * 100_000: "own.py:1: ",
}


@pytest.mark.parametrize("content", MISTAKES, ids=range(len(MISTAKES)))
def test_a_mistake_in_a_config_is_one_line_with_its_place(here, capsys, content):
  (here / "broken.py").write_text("\nx\n")
  (here / "unclosed.py").write_text("x = (\n")
  (here / "own.py").write_bytes(content if isinstance(content, bytes) else content.encode())
  line = refused(capsys, "train", "--config", "own.py", "--workdir", "w")
  assert line.startswith("error: --config 'own.py' ") and MISTAKES[content] in line
  assert not (here / "w").exists()


def test_a_config_that_is_no_file(here, capsys):
  os.mkfifo(here / "pipe.py")
  assert "--config 'pipe.py' is no file" in refused(capsys, "train", "--config", "pipe.py", "--workdir", "w")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read anything")
def test_a_config_that_cannot_be_read(here, capsys):
  (here / "own.py").touch(0o000)
  line = refused(capsys, "train", "--config", "own.py", "--workdir", "w")
  assert "--config 'own.py' fails: own.py:1: PermissionError" in line
