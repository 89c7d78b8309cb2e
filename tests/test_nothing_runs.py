"""Nothing that jldm reads can run: no pickle, no eval, no import by a name from outside, no other
program, in any file of it.
"""

import ast
from collections.abc import Iterator
import json
from pathlib import Path
import sys

import pytest

from jldm.cli import COMMANDS, main
from jldm.config.registry import CLASSES
from jldm.config.serialize import from_data, to_data
from tests.configs import ROOT, config

MODULES = {  # those that turn data into code, or start programs
  "pickle",
  "cPickle",
  "_pickle",
  "dill",
  "cloudpickle",
  "joblib",
  "shelve",
  "marshal",
  "importlib",
  "imp",
  "runpy",
  "code",
  "codeop",
  "pkgutil",
  "zipimport",
  "subprocess",
  "pty",
  "yaml",
  "torch",
}
BUILTINS = {"eval", "exec", "compile", "__import__", "breakpoint", "input"}
OF_OS = {"system", "popen", "startfile", "fork", "forkpty"}
STARTS = ("exec", "spawn", "posix_spawn")  # os.execv, os.spawnl, os.posix_spawn
EXCEPTIONS = {  # (file, what): why it may
  ("__init__.py", "importlib"): "imports the modules of its own table PUBLIC",
  (
    "cli/__init__.py",
    "importlib",
  ): "imports jldm.cli.NAME, for a NAME of the table COMMANDS, and what the person names on the "
  "command line: by --import, and by --config of jldm train",
  ("data/photos.py", "importlib"): "asks where the files of a package lie, and imports nothing",
  ("evaluation/evaluate.py", "importlib"): "asks for the versions of packages, and imports nothing",
}


def findings(tree: ast.AST) -> Iterator[str]:
  """What in a module could run what is read."""
  for node in ast.walk(tree):
    if isinstance(node, ast.Import):
      yield from (root for alias in node.names if (root := alias.name.partition(".")[0]) in MODULES)
    elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
      root = node.module.partition(".")[0]
      yield from [root] if root in MODULES else ()
      yield from (f"os.{alias.name}" for alias in node.names if root == "os" and starts(alias.name))
      yield from (alias.name for alias in node.names if root == "builtins" and alias.name in BUILTINS)
    elif isinstance(node, ast.Name) and node.id in BUILTINS:
      yield node.id
    elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
      if node.value.id == "os" and starts(node.attr):
        yield f"os.{node.attr}"
      if node.value.id in ("builtins", "__builtins__") and node.attr in BUILTINS:
        yield node.attr
    elif isinstance(node, ast.keyword) and node.arg == "allow_pickle" and ast.unparse(node.value) != "False":
      yield "allow_pickle"
    if isinstance(node, ast.Call) and ast.unparse(node.func) in ("np.load", "numpy.load"):
      yield from () if any(word.arg == "allow_pickle" for word in node.keywords) else ["np.load"]


def starts(name: str) -> bool:
  return name in OF_OS or name.startswith(STARTS)


def test_jldm_runs_nothing_that_it_reads():
  files = sorted((ROOT / "jldm").rglob("*.py"))
  assert len(files) > 80, "the check must see the package"
  of = {path.relative_to(ROOT / "jldm").as_posix(): findings(ast.parse(path.read_text())) for path in files}
  actual = {(path, what) for path, every in of.items() for what in every}
  assert actual == EXCEPTIONS.keys(), "one more is to be justified, one less to be forgotten"


@pytest.mark.parametrize(
  ("line", "message"),
  [
    ("import pickle", "pickle"),
    ("from pickle import loads", "pickle"),
    ("import importlib.util as u", "importlib"),
    ("import subprocess", "subprocess"),
    ("x = eval('1')", "eval"),
    ("exec(text)", "exec"),
    ("f = compile", "compile"),
    ("__import__(name)", "__import__"),
    ("os.system('ls')", "os.system"),
    ("from os import popen", "os.popen"),
    ("os.execv(a, b)", "os.execv"),
    ("np.load(path, allow_pickle=True)", "allow_pickle"),
    ("builtins.eval(x)", "eval"),
    ("np.load(path, allow_pickle=flag)", "allow_pickle"),
    ("np.load(path)", "np.load"),
    ("import marshal, json", "marshal"),
    ("def f():\n  from builtins import exec", "exec"),
  ],
)
def test_each_is_caught(line, message):
  assert message in list(findings(ast.parse(line)))


@pytest.mark.parametrize(
  "line",
  [
    "re.compile('x')",
    "jax.jit(f).lower().compile()",
    "model.eval()",
    "np.load(p, allow_pickle=False)",
    "from . import code",
    "ast.literal_eval(node)",
    "os.path.exists(p)",
  ],
)
def test_what_is_harmless_is_not(line):
  assert not list(findings(ast.parse(line)))


def test_the_commands_are_files_of_the_package():
  tree = ast.parse((ROOT / "jldm" / "cli" / "__init__.py").read_text())
  calls = [ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Call)]
  assert sorted(call for call in calls if call.startswith("importlib.")) == [
    "importlib.import_module(f'jldm.cli.{name}')",
    "importlib.import_module(target)",  # of import_target
    "importlib.util.module_from_spec(spec)",
    "importlib.util.spec_from_file_location(name, file)",  # of run_file
  ]
  shared = {"__init__.py", "options.py", "edit_kinds.py", "extractors.py", "pipelines.py", "text_encoders.py"}
  files = {path.name for path in (ROOT / "jldm" / "cli").glob("*.py")}
  assert files == shared | {f"{name}.py" for name in COMMANDS}


def test_only_the_command_line_names_what_is_imported():
  """import_target and run_file are called with --import and --config, and by nobody else."""
  calls = set()
  for path in (ROOT / "jldm").rglob("*.py"):
    for node in ast.walk(ast.parse(path.read_text())):
      if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(
        ("import_target", "run_file", "load_config")
      ):
        calls.add((path.relative_to(ROOT / "jldm").as_posix(), ast.unparse(node)))
  assert calls == {
    ("cli/__init__.py", "import_target(target)"),
    ("cli/__init__.py", "run_file(target, '--import')"),
    ("cli/train.py", "load_config(args.config)"),
    ("cli/train.py", "run_file(path, '--config')"),
  }
  assert "for target in import_args.imports:" in (ROOT / "jldm" / "cli" / "__init__.py").read_text()


def test_nothing_that_an_experiment_names_is_imported(tmp_path, monkeypatch, capsys):
  (tmp_path / "planted.py").write_text("open('ran', 'w').close()\nclass Mixer: pass\n")
  monkeypatch.chdir(tmp_path)
  monkeypatch.syspath_prepend(tmp_path)
  for name in ("planted", "planted.Mixer", "planted:Mixer", "planted.py", "Mixer"):
    data = to_data(config("digits")) | {"imports": ["planted.py"], "import": "planted"}
    data["stages"][1]["objective"]["network"] = {"class": name, "module": "planted", "import": "planted.py"}
    (tmp_path / "w").mkdir(exist_ok=True)
    (tmp_path / "w" / "experiment.json").write_text(json.dumps(data))
    for command in (["info", "w"], ["sample", "--workdir", "w"], ["report", "w"]):
      assert main(command) == 2
      error = capsys.readouterr().err
      assert (
        f"class {name!r} is not known" in error and "--import FILE.py" in error and error.count("\n") == 1
      )
  assert "planted" not in sys.modules and not (tmp_path / "ran").exists()


def test_an_experiment_is_made_of_the_closed_table_alone():
  """Every class that a config's experiment holds is in it, and no name outside it is looked up."""
  names = set()

  def walk(data):
    for value in data.values() if isinstance(data, dict) else data if isinstance(data, list) else ():
      walk(value)
    if isinstance(data, dict):
      names.add(data["class"])

  walk(to_data(config("digits")))
  assert len(names) > 10 and names <= CLASSES.keys()
  for name in (
    "os.system",
    "builtins.eval",
    "Path",
    "jldm.config.experiment.Stage",
    "Stage ",
    "",
    None,
    5,
    ["Stage"],
    {"class": "DiT"},
  ):
    with pytest.raises(ValueError, match="is not known"):
      from_data({"class": name, "command": "true"})


def test_every_class_of_the_table_is_of_jldm():
  assert {cls.__module__.partition(".")[0] for cls in CLASSES.values()} == {"jldm"}
  assert all(Path(ROOT / f"{cls.__module__.replace('.', '/')}.py").is_file() for cls in CLASSES.values())
