"""`jldm sample` on a workdir that some shrunk steps made: labels, outputs, provenance and mistakes."""

import errno
import json
import os
from pathlib import Path

import numpy as np
from PIL import Image
import pytest

import jldm
from jldm.cli import main, sample
from jldm.core import files
from jldm.core.errors import UserError
from jldm.inference.load import load
from jldm.interop import flat
from jldm.media import images as pictures
from jldm.metrics.extractors.weights import arrays_digest
from jldm.storage import workdir as workdirs
from tests.configs import config, shrunk
from tests.trained import STEPS, with_conditioner


@pytest.fixture(scope="module")
def workdir(unbroken):
  return str(unbroken)


@pytest.mark.parametrize(
  "text, n, counts",
  [
    ("all", 23, [3, 3, 3, 2, 2, 2, 2, 2, 2, 2]),
    ("3,5", 5, [0, 0, 0, 3, 0, 2, 0, 0, 0, 0]),
    ("7", 2, [0] * 7 + [2, 0, 0]),
  ],
)
def test_labels_are_split_evenly_the_remainder_to_the_first(text, n, counts):
  assert np.bincount(sample.parse_labels(text, n, 10), minlength=10).tolist() == counts


def test_labels_by_name():
  names = ["1", "2", "10", "big, red", "cat"]
  parsed = lambda text: sample.parse_labels(text, 4, 5, names).tolist()
  assert parsed("cat") == [4] * 4 and parsed("10") == [2] * 4, "a name goes before a number"
  assert parsed("cat,2") == [4, 4, 1, 1] and parsed("big, red") == [3] * 4 and parsed("3") == [3] * 4
  assert parsed("-1") == [-1] * 4 and parsed("all") == [0, 1, 2, 3]
  with pytest.raises(UserError, match=r"--label dog; expected one of the classes 1, 2, 10, big, red, cat"):
    parsed("cat,dog")


@pytest.mark.parametrize("label", [2**31, 2**40, -(2**40)])
def test_labels_beyond_32_bits_are_refused(label):
  with pytest.raises(UserError, match=f"--label {label}; expected"):
    sample.parse_labels(str(label), 2, 10)


def test_unconditional_labels():
  assert sample.parse_labels("-1", 2, 10).tolist() == [-1, -1]
  assert sample.parse_labels("all", 2, 0).tolist() == [-1, -1]


def test_a_folder_of_pictures_with_provenance(workdir, tmp_path):
  out = tmp_path / "O"
  options = [
    "--n",
    "3",
    "--label",
    "3",
    "--sampler",
    "ddim",
    "--steps",
    "2",
    "--guidance-scale",
    "2",
    "--out",
    str(out),
  ]
  assert main(["sample", "--workdir", workdir, *options]) == 0
  assert sorted(path.name for path in out.iterdir()) == ["00000.png", "00001.png", "00002.png", "grid.png"]
  with Image.open(out / "00001.png") as picture:
    assert picture.size == (32, 32) and picture.mode == "L" and picture.info["ai_generated"] == "true"
  provenance = pictures.read_provenance(out / "00001.png")
  assert (
    provenance["index"] == 1
    and provenance["label"] == 3
    and provenance["sampler"] == "ddim"
    and provenance["steps"] == 2
  )
  assert provenance["guidance_scale"] == 2 and provenance["seed"] == 0


def test_guidance_is_reported_with_the_picture(workdir, tmp_path):
  out = tmp_path / "O"
  options = [
    "--guidance",
    "apg",
    "--guidance-interval",
    "-3",
    "4.5",
    "--guidance-rescale",
    "0.5",
    "--negative-label",
    "7",
  ]
  assert (
    main(
      [
        "sample",
        "--workdir",
        workdir,
        "--n",
        "1",
        "--label",
        "3",
        "--steps",
        "2",
        "--out",
        str(out),
        *options,
      ]
    )
    == 0
  )
  provenance = pictures.read_provenance(out / "00000.png")
  assert provenance["guidance"] == "apg" and provenance["guidance_interval"] == [-3, 4.5]
  assert provenance["guidance_rescale"] == 0.5 and provenance["negative_label"] == 7


@pytest.mark.slow
def test_previews_and_a_sampler_written_out_on_a_grid(workdir, tmp_path):
  options = [
    "--n",
    "2",
    "--steps",
    "3",
    "--sampler",
    "Churn(Heun(), gamma=0.1)",
    "--grid",
    "karras",
    "--previews",
  ]
  assert main(["sample", "--workdir", workdir, *options, "--out", str(tmp_path / "O")]) == 0
  provenance = pictures.read_provenance(tmp_path / "O" / "previews.png")
  assert provenance["sampler"] == "Churn(Heun(), gamma=0.1)" and provenance["grid"] == "karras"
  with Image.open(tmp_path / "O" / "previews.png") as picture:
    assert picture.size[0] == 2 * picture.size[1] - 2, "two rows of three steps and the picture"


def test_an_npz_has_the_same_pictures(workdir, tmp_path):
  common = ["sample", "--workdir", workdir, "--n", "2", "--steps", "2", "--devices", "1"]
  assert main([*common, "--out", str(tmp_path / "S.npz")]) == 0
  assert main([*common, "--out", str(tmp_path / "S")]) == 0
  with np.load(tmp_path / "S.npz") as arrays:
    images, labels = arrays["images"], arrays["labels"]
  assert images.shape == (2, 32, 32, 1) and images.dtype == np.uint8 and labels.tolist() == [0, 1]
  with Image.open(tmp_path / "S" / "00001.png") as picture:
    np.testing.assert_array_equal(np.asarray(picture), images[1, ..., 0])


@pytest.mark.slow
def test_tiles_are_the_same_pictures(workdir, tmp_path):
  common = ["sample", "--workdir", workdir, "--n", "2", "--steps", "2", "--devices", "1"]
  actual = {}
  for name, options in {
    "whole": [],
    "tiles": ["--tile", "3"],
    "blended": ["--tile", "3", "--overlap", "1"],
  }.items():
    assert main([*common, *options, "--out", str(tmp_path / f"{name}.npz")]) == 0
    actual[name] = np.int32(np.load(tmp_path / f"{name}.npz")["images"])
  assert np.abs(actual["tiles"] - actual["whole"]).max() <= 1, "a rounding"
  assert (
    0
    < np.abs(actual["blended"] - actual["whole"]).mean()
    < np.abs(actual["whole"] - actual["whole"][::-1]).mean()
  )
  assert main([*common, "--tile", "3", "--out", str(tmp_path / "O")]) == 0
  assert pictures.read_provenance(tmp_path / "O" / "00000.png")["tile"] == 3


@pytest.mark.parametrize(
  "options, message",
  [
    (["--n", "0"], "--n 0; expected at least 1"),
    (["--steps", "0"], "steps=0; expected whole numbers in [1, "),
    (["--sampler", "dimm"], "sampler='dimm'; expected one of"),
    (["--sampler", "heun", "--eta", "1"], "has no eta"),
    (["--sampler", "DPMSolver(3)"], "no class 'DPMSolver'; did you mean 'DPMSolverPP'?"),
    (["--grid", "trailing"], "expected a Discrete process"),
    (["--label", "10"], "label=10; expected -1 (unconditional) or 0 to 9"),
    (["--label", "three"], "--label three"),
    (["--seed", "-1"], "--seed=-1"),
    (["--guidance", "cgf"], "guidance='cgf'; expected one of ['apg', 'cfg', 'cfg_pp', 'cfg_zero']"),
    (["--guidance", "cfg_pp", "--guidance-scale", "2"], "guidance_scale=2.0 of cfg_pp; expected 0 to 1"),
    (
      ["--guidance-interval", "4", "-3"],
      "interval=(4.0, -3.0); expected two finite log SNR, the lower first",
    ),
    (["--guidance-interval", "0", "inf"], "--guidance-interval: inf; expected a finite number"),
    (["--guidance-scale", "nan"], "--guidance-scale: nan; expected a finite number"),
    (["--guidance-scale", "1e30"], "guidance_scale=1e+30; expected numbers in [-1000, 1000]"),
    (["--label", str(2**40)], f"--label {2**40}; expected a class by its number"),
    (["--label", "-1", "--guidance-scale", "2"], "--guidance-scale 2.0 without a class to guide to"),
    (["--devices", "0"], "devices=0; expected at least 1"),
    (["--guidance-rescale", "1.5"], "rescale=1.5; expected a share from 0 to 1"),
    (["--negative-label", "10"], "label=10; expected -1 (unconditional) or 0 to 9"),
    (["--tile", "0"], "tile=0; expected at least 1 latent"),
    (["--tile", "4", "--overlap", "4"], "overlap=4 of tiles of 4 latents; expected 0 to 3"),
    (["--overlap", "4"], "--overlap 4 without --tile; give the side of tiles too"),
    (["--devices", "99"], "devices=99; expected 1 to 8"),
    (["--prompt", "a cat"], "prompt='a cat', negative=None; expected neither: this model reads no captions"),
    (["--negative", "x"], "prompt=None, negative='x'; expected neither: this model reads no captions"),
    (["--prompt", "none.txt"], "--prompt 'none.txt': No such file or directory; expected a file of UTF-8"),
  ],
)
def test_mistakes(workdir, tmp_path, capsys, options, message):
  assert main(["sample", "--workdir", workdir, "--out", str(tmp_path / "O"), *options]) == 2
  error = capsys.readouterr().err
  assert message in error and error.count("\n") == 1
  assert not (tmp_path / "O").exists()


def test_prompts_are_shared_out(tmp_path):
  """Texts of other scripts, empty ones and long ones are prompts."""
  assert sample.parse_prompts(None, 3) == [] and sample.parse_prompts("", 2) == ["", ""]
  assert sample.parse_prompts("a|b", 3) == ["a", "a", "b"] and sample.parse_prompts("a|b", 1) == ["a"]
  file = tmp_path / "p.txt"
  file.write_text("赤い猫\n\n" + "x" * 10_000 + "\n")
  assert sample.parse_prompts(str(file), 3) == ["赤い猫", "", "x" * 10_000]
  for data, reason in ((b"", "is empty"), (b"\xff\xfe", "no UTF-8 text")):
    file.write_bytes(data)
    with pytest.raises(UserError, match=reason):
      sample.parse_prompts(str(file), 1)


@pytest.mark.slow
def test_a_label_that_begins_with_a_minus_is_a_label(workdir, tmp_path, capsys):
  common = ["sample", "--workdir", workdir, "--n", "1", "--steps", "2", "--out", str(tmp_path / "O")]
  for words in (["--label", "-1"], ["--label=-1"]):
    assert main([*common, *words]) == 0
    assert f"1 picture in {tmp_path / 'O'}\n" in capsys.readouterr().out
    assert pictures.read_provenance(tmp_path / "O" / "00000.png")["label"] == -1
  assert main([*common, "--n", "2", "--label", "-1,3"]) == 0
  assert pictures.read_provenance(tmp_path / "O" / "00001.png")["label"] == 3


@pytest.mark.slow
def test_a_smaller_draw_leaves_nothing_of_a_larger_one_and_nothing_of_others_is_replaced(
  workdir, tmp_path, capsys
):
  out = tmp_path / "O"
  draw = lambda n, *further: main(
    ["sample", "--workdir", workdir, "--n", n, "--steps", "2", "--out", str(out), *further]
  )
  assert draw("4", "--previews") == 0 and draw("2") == 0
  assert sorted(path.name for path in out.iterdir()) == ["00000.png", "00001.png", "grid.png"]
  for name in ("00001.png", "grid.png"):
    kept = (out / name).read_bytes()
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(out / name)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    for further in ((), ("--overwrite",)):
      assert draw("2", *further) == 2
      assert f"{name}' was not made by jldm and is never replaced" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    (out / name).write_bytes(kept)
  pictures.write_png(out / "00001.png", np.zeros((4, 4, 1), np.uint8), {"edit": "inpaint"})
  assert (
    draw("2") == 2 and "was made by jldm edit inpaint; replace it with --overwrite" in capsys.readouterr().err
  )
  assert draw("2", "--overwrite") == 0


def test_an_npz_of_others_is_never_replaced_and_says_how_it_was_drawn(workdir, tmp_path, capsys):
  out = tmp_path / "S.npz"
  draw = lambda: main(["sample", "--workdir", workdir, "--n", "1", "--steps", "2", "--out", str(out)])
  np.savez(out, images=np.zeros(3))
  before = out.read_bytes()
  assert draw() == 2 and "was not made by jldm" in capsys.readouterr().err and out.read_bytes() == before
  out.unlink()
  assert draw() == 0 and draw() == 0
  with np.load(out) as arrays:
    note = json.loads(str(arrays["provenance"]))
  assert note["command"] == "sample" and note["steps"] == 2 and note["resolved"]["steps"] == 2


def test_a_picture_says_which_model_drew_it_and_how(workdir, tmp_path, capsys):
  out = tmp_path / "O"
  assert main(["sample", "--workdir", workdir, "--n", "1", "--label", "3", "--out", str(out)]) == 0
  note = pictures.read_provenance(out / "00000.png")
  sampling = workdirs.read_experiment(Path(workdir)).sampling
  assert note["resolved"] == {
    "sampler": repr(sampling.sampler),
    "steps": sampling.steps,
    "grid": repr(sampling.grid),
    "guidance": repr(sampling.guidance),
    "transforms": "()",
  }
  assert (note["model"], note["stage"], note["step"]) == (Path(workdir).name, "denoiser", STEPS)
  assert note["version"] == jldm.__version__ and note["label"] == 3
  _, params = load(workdir)
  assert note["params_sha256"] == arrays_digest(flat.flatten(params))
  capsys.readouterr()
  for name in ("00000.png", "grid.png"):
    assert main(["info", str(out / name)]) == 0
    shown = capsys.readouterr().out
    assert f"  params_sha256: {note['params_sha256']}\n" in shown and f"  step: {STEPS}\n" in shown
  assert main(["info", str(out / "grid.png"), "--statistics"]) == 2
  assert "--statistics of" in capsys.readouterr().err


@pytest.mark.parametrize("out", ["O", "S.npz"])
def test_a_full_disk_is_one_line_and_what_is_whole_stays(workdir, tmp_path, capsys, monkeypatch, out):
  """The disk is full at the third file."""
  written, replace = [], os.replace

  def full(source, target):
    if len(written) == (2 if out == "O" else 0):
      raise OSError(errno.ENOSPC, "No space left on device")
    written.append(Path(target).name)
    replace(source, target)

  monkeypatch.setattr(files.os, "replace", full)
  assert main(["sample", "--workdir", workdir, "--n", "3", "--steps", "2", "--out", str(tmp_path / out)]) == 2
  error = capsys.readouterr().err
  last = error.splitlines()[-1]  # after the progress bar
  assert last.startswith("error: cannot write to --out") and "No space left on device" in last
  assert "Traceback" not in error
  assert sorted(path.name for path in tmp_path.rglob("*.*") if path.is_file()) == written


def test_missing_and_foreign_workdirs(tmp_path, capsys):
  assert main(["sample", "--workdir", str(tmp_path / "none")]) == 2
  assert "does not exist" in capsys.readouterr().err
  assert main(["sample", "--workdir", str(tmp_path)]) == 2
  assert "no experiment.json" in capsys.readouterr().err


def test_an_unwritable_out(workdir, tmp_path, capsys):
  (tmp_path / "file").write_text("in the way")
  assert main(["sample", "--workdir", workdir, "--out", str(tmp_path / "file" / "O")]) == 2
  error = capsys.readouterr().err
  assert "cannot write to --out" in error and error.count("\n") == 1


@pytest.mark.parametrize("conditioner", ["Masked(dropout=0.0)", "Paired()"])
def test_a_model_that_always_needs_a_condition_is_refused(tmp_path, capsys, conditioner):
  workdirs.claim_workdir(tmp_path / "w", with_conditioner(shrunk(config("digits")), conditioner))
  assert main(["sample", "--workdir", str(tmp_path / "w"), "--out", str(tmp_path / "O")]) == 2
  error = capsys.readouterr().err
  name, kind = conditioner.partition("(")[0].lower(), conditioner.partition("(")[0]
  assert (
    f"always trained with {name!r}, {kind}, and cannot sample without" in error and error.count("\n") == 1
  )


DRAW = ["--n", "7", "--steps", "2", "--batch-size", "2", "--devices", "1"]


def contents(out):
  """What a draw left, file by file: the bytes of pictures, the arrays of an .npz."""
  if out.suffix == ".npz":
    with np.load(out) as arrays:
      return {name: arrays[name].tobytes() for name in arrays.files}
  return {path.name: path.read_bytes() for path in sorted(out.iterdir())}


@pytest.fixture(scope="module")
def whole(workdir, tmp_path_factory):
  """A draw that nothing interrupts, as a folder and as an .npz."""
  folder = tmp_path_factory.mktemp("whole")
  for name in ("O", "S.npz"):
    assert main(["sample", "--workdir", workdir, *DRAW, "--out", str(folder / name)]) == 0
  assert sorted(path.name for path in folder.iterdir()) == ["O", "S.npz"], "nothing is left beside them"
  return {name: contents(folder / name) for name in ("O", "S.npz")}


def test_an_npz_of_batches_is_one_as_numpy_writes_it(whole, workdir, tmp_path):
  out = tmp_path / "S.npz"
  assert main(["sample", "--workdir", workdir, *DRAW, "--out", str(out)]) == 0
  with np.load(out) as arrays:
    assert arrays.files == ["provenance", "labels", "images"]
    assert arrays["images"].shape == (7, 32, 32, 1) and arrays["labels"].tolist() == list(range(7))
    np.savez_compressed(tmp_path / "numpy.npz", **dict(arrays))
  assert out.read_bytes() == (tmp_path / "numpy.npz").read_bytes()


@pytest.mark.parametrize("name", ["O", "S.npz"])
@pytest.mark.parametrize(
  "failing", [pytest.param(1, marks=pytest.mark.slow), 3, pytest.param(5, marks=pytest.mark.slow)]
)
def test_an_interrupted_draw_goes_on_to_the_same_bits(
  whole, workdir, tmp_path, capsys, monkeypatch, name, failing
):
  """Ctrl-C at a file; the same command draws no batch again that is whole."""
  out, replace, written, drawn = tmp_path / name, os.replace, [], []
  command = ["sample", "--workdir", workdir, *DRAW, "--out", str(out)]

  def interrupted(source, target):
    if len(written) == failing - 1:
      raise KeyboardInterrupt
    written.append(target)
    replace(source, target)

  monkeypatch.setattr(files.os, "replace", interrupted)
  assert main(command) == 130
  assert "interrupted; the same command draws what is missing" in capsys.readouterr().err
  assert sum(path.is_file() for path in tmp_path.rglob("*")) == failing - 1
  monkeypatch.setattr(files.os, "replace", replace)
  monkeypatch.setattr(sample.options, "progress_bar", lambda batches: drawn.extend(batches) or iter(batches))
  assert main(command) == 0
  there = (failing - 1) // (2 if name == "O" else 1)
  assert [rows.start for rows in drawn] == [0, 2, 4, 6][there:]
  before = f", of which {2 * there} were drawn before" if there < 4 else ", of which 7 were drawn before"
  assert capsys.readouterr().out == f"7 pictures in {out}{before if there else ''}\n"
  assert contents(out) == whole[name] and [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.slow
@pytest.mark.parametrize("another", [["--seed", "1"], ["--label", "3"]], ids=" ".join)
@pytest.mark.parametrize("name", ["O", "S.npz"])
def test_another_draw_takes_nothing_of_an_interrupted_or_a_finished_one(
  whole, workdir, tmp_path, monkeypatch, name, another
):
  out, drawn = tmp_path / name, []
  command = ["sample", "--workdir", workdir, *DRAW, "--out", str(out)]
  monkeypatch.setattr(sample.options, "progress_bar", lambda batches: drawn.extend(batches) or iter(batches))
  with monkeypatch.context() as context:
    context.setattr(sample.ArrayFile if name == "S.npz" else sample.PictureFolder, "finish", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
      main([*command, *another])
  drawn.clear()
  assert main(command) == 0 and len(drawn) == 4 and contents(out) == whole[name], "after an interrupted one"
  drawn.clear()
  assert main(command) == 0 and len(drawn) == 4 and contents(out) == whole[name], "after a finished one"
