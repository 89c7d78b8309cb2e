"""Dependencies point down only: the architecture in two tables."""

import ast
from collections.abc import Iterator
from pathlib import Path
import shutil

import pytest

ROOT = Path(__file__).resolve().parents[1]

MAY_IMPORT = {  # part of jldm -> parts it may import; nobody imports cli or configs
  "core": "",
  "nn": "core",
  "diffusion": "core",
  "distributed": "core",
  "media": "core",
  "data": "core media",
  "models": "core nn",
  "samplers": "core diffusion",
  "metrics": "core nn",
  "train": "core distributed",
  "objectives": "core nn diffusion models samplers metrics",
  "editing": "core diffusion samplers",
  "interop": "core nn diffusion models samplers",
  "config": "core nn diffusion models samplers objectives data train",
  "storage": "core data distributed objectives config",
  "inference": "core distributed media diffusion models samplers metrics train objectives editing config "
  "storage",
  "evaluation": "core distributed media data models metrics train interop config storage inference",
  "runs": "core distributed media data models metrics train objectives interop config storage inference "
  "evaluation",
}
THIRD_PARTY = {  # library -> the only parts that may import it
  "flax": "nn models objectives metrics train config distributed",
  "optax": "train",
  "orbax": "storage",
  "tensorflow_datasets": "data",
  "grain": "data",
  "sklearn": "data",
  "PIL": "data media",
  "imageio": "media",
  "safetensors": "interop",
  "msgpack": "interop",
  "tokenizers": "models",
  "sentencepiece": "models",
  "filelock": "core storage",
  "tensorboardX": "train",
  "tqdm": "train data cli",
  "wandb": "train",
  "torch": "",
  "tensorflow": "",
  "pickle": "",
  "configs": "",
}


def imports(path: Path, package: tuple[str, ...]) -> Iterator[tuple[str, str]]:
  """(library, part) of every import in the file, relative ones resolved; part is '' outside jldm."""
  for node in ast.walk(ast.parse(path.read_text())):
    names = []
    if isinstance(node, ast.Import):
      names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
      above = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
      module = ".".join(filter(None, (above, node.module)))
      names = [f"{module}.{alias.name}" for alias in node.names]
    for name in names:
      library, _, rest = name.partition(".")
      yield library, rest.partition(".")[0] if library == "jldm" else ""


def violations(root: Path) -> Iterator[str]:
  for path in sorted((root / "jldm").rglob("*.py")):
    relative = path.relative_to(root).with_suffix("")
    part = relative.parts[1]
    if part in ("__init__", "__main__"):  # the public face, and `python -m jldm`
      continue
    if part != "cli" and part not in MAY_IMPORT:
      yield f"{relative}: {part} has no row in MAY_IMPORT"
      continue
    for library, target in imports(path, relative.parts[:-1]):
      if library == "jldm" and part != "cli" and target != part and target not in MAY_IMPORT[part].split():
        yield f"{relative} imports jldm.{target}; {part} may import {MAY_IMPORT[part] or 'nothing'}"
      if library in THIRD_PARTY and part not in THIRD_PARTY[library].split():
        yield f"{relative} imports {library}; only {THIRD_PARTY[library] or 'nothing'} may"


def unused(root: Path) -> Iterator[str]:
  """Grants of the tables that no import under `root` needs."""
  needed = set()
  for path in (root / "jldm").rglob("*.py"):
    package = path.relative_to(root).with_suffix("").parts
    needed |= {
      (package[1], f"jldm.{part}" if library == "jldm" else library)
      for library, part in imports(path, package[:-1])
    }
  granted = [(part, f"jldm.{lower}") for part, row in MAY_IMPORT.items() for lower in row.split()]
  granted += [(part, library) for library, row in THIRD_PARTY.items() for part in row.split()]
  yield from (
    f"{part} may import {target}, and does not" for part, target in granted if (part, target) not in needed
  )


def test_dependencies_point_down():
  assert len(list((ROOT / "jldm").rglob("*.py"))) >= 20, "the check must see the package"
  assert not list(violations(ROOT))


def test_no_grant_is_unused():
  """A grant that nobody uses hides the next import that should not be there."""
  assert not list(unused(ROOT))


def test_an_unused_grant_is_caught(tmp_path):
  (tmp_path / "jldm" / "nn").mkdir(parents=True)
  (tmp_path / "jldm" / "nn" / "dense.py").write_text("from flax import linen\nfrom jldm.nn import norm\n")
  actual = list(unused(tmp_path))
  assert (
    "nn may import jldm.core, and does not" in actual and "models may import flax, and does not" in actual
  )
  assert "nn may import flax, and does not" not in actual


def test_nobody_imports_the_entry_points():
  assert not [part for part, lower in MAY_IMPORT.items() if {"cli", "configs"} & set(lower.split())]


def test_the_order_has_no_circle():
  below, left = set(), dict(MAY_IMPORT)
  while free := [part for part, lower in left.items() if set(lower.split()) <= below]:
    below |= set(free)
    left = {part: lower for part, lower in left.items() if part not in below}
  assert not left


@pytest.mark.parametrize(
  ("part", "line", "message"),
  [
    ("diffusion", "from jldm.models import codec", "imports jldm.models; diffusion may import core"),
    ("diffusion", "from ..train.loop import fit", "imports jldm.train; diffusion may import core"),
    ("samplers", "from jldm import cli", "imports jldm.cli; samplers may import core diffusion"),
    ("nope", "import jax", "nope has no row in MAY_IMPORT"),
  ],
)
def test_a_part_above_is_caught(tmp_path, part, line, message):
  assert planted(tmp_path, part, line) == [message]


@pytest.mark.parametrize(
  ("part", "line", "message"),
  [
    ("core", "import optax", "imports optax; only train may"),
    ("diffusion", "from flax import linen as nn", "imports flax; only " + THIRD_PARTY["flax"] + " may"),
    ("data", "def read():\n  import tensorflow as tf", "imports tensorflow; only nothing may"),
    ("cli", "from configs import digits", "imports configs; only nothing may"),
  ],
)
def test_a_library_out_of_place_is_caught(tmp_path, part, line, message):
  assert planted(tmp_path, part, line) == [message]


def planted(folder: Path, part: str, line: str) -> list[str]:
  """What is said anew of a copy of jldm in which a file of `part` holds `line`."""
  shutil.copytree(ROOT / "jldm", folder / "jldm", ignore=shutil.ignore_patterns("__pycache__"))
  (folder / "jldm" / part).mkdir(exist_ok=True)
  (folder / "jldm" / part / "planted.py").write_text(line + "\n")
  texts = [text for text in violations(folder) if text.startswith(f"jldm/{part}/planted")]
  return [text.removeprefix(f"jldm/{part}/planted").removeprefix(":").strip() for text in texts]
