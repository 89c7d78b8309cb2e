"""`jldm edit` on a shrunk model: every kind at small size, files of any kind, provenance, mistakes."""

import hashlib
import itertools
from pathlib import Path
import re
import shlex
import sys

import numpy as np
from PIL import Image, ImageSequence
import pytest

import jldm
from jldm.cli import edit, main
from jldm.cli.edit import KINDS
from jldm.data import transforms
from jldm.editing.edict import EDICT
from jldm.inference.load import Origin
from jldm.media import images as pictures
from tests.configs import ROOT, config, shrunk
from tests.edits import model_of, quick_edits

SIZE = (21, 27)  # height and width, which no factor divides


@pytest.fixture(scope="module")
def workdir():
  """One that needs no training."""
  model, params = model_of(shrunk(config("fashion_mnist")))
  with quick_edits(), pytest.MonkeyPatch.context() as patch:
    patch.setattr(
      edit, "load_with_origin", lambda path, best=False: {"W": (Origin("denoiser", 2), model, params)}[path]
    )
    yield "W"


@pytest.fixture(scope="module")
def files(tmp_path_factory):
  folder, random = tmp_path_factory.mktemp("files"), np.random.default_rng(0)
  image = random.integers(0, 256, SIZE, np.uint8)
  mask = np.zeros(SIZE, np.uint8)
  mask[5:14, 6:20] = 255
  Image.fromarray(image).save(folder / "A.png")
  Image.fromarray(image[::-1]).save(folder / "B.png")
  Image.fromarray(mask).save(folder / "M.png")
  Image.fromarray(np.zeros(SIZE, np.uint8)).save(folder / "empty.png")
  Image.fromarray(mask[1:]).save(folder / "other.png")
  Image.fromarray(image[:6, :7]).save(folder / "small.png")
  (folder / "broken.png").write_bytes((folder / "A.png").read_bytes()[:60])
  alpha = random.integers(0, 2, SIZE, np.uint8) * 255
  alpha[:, :9] = 128
  rgba = np.concatenate([random.integers(0, 256, (*SIZE, 3), np.uint8), alpha[..., None]], -1)
  Image.fromarray(rgba).save(folder / "alpha.png")
  exif = Image.Exif()
  exif[0x0112] = 6  # lies on its side
  Image.fromarray(image.T).save(folder / "turned.png", exif=exif)
  np.savez(
    folder / "S.npz", images=random.integers(0, 256, (12, *SIZE, 1), np.uint8), labels=np.arange(12) % 3
  )
  return folder


def edited(workdir, files, out, kind, *options, image="A.png"):
  common = [
    "edit",
    kind,
    "--workdir",
    workdir,
    "--image",
    str(files / image),
    "--steps",
    "2",
    "--out",
    str(out),
  ]
  return main([*common, *(option.format(files=files) for option in options)])


def opened(path):
  with Image.open(path) as picture:
    return np.asarray(picture)


EDITS = {  # kind and options -> pictures
  "image-to-image": (["--strength", "0.6", "--n", "2", "--label", "3", "--guidance-scale", "2"], 2),
  "inpaint": (["--mask", "{files}/M.png"], 1),
  "inpaint ": (
    ["--mask", "{files}/M.png", "--repeats", "2", "--jump", "1", "--sampler", "ddim", "--eta", "1"],
    1,
  ),
  "invert": ([], 1),
  "interpolate": (["--to", "{files}/B.png", "--count", "3"], 3),
  "interpolate ": (["--to", "{files}/B.png", "--count", "3", "--space", "latents", "--strength", "0.3"], 3),
  "translate": (["--label", "6", "--onto", "8", "--strength", "0.8"], 1),
  "restore": (["--degradation", "noise", "--noise", "0.3", "--n", "2", "--mean"], 1),
  "restore ": (["--degradation", "blur", "--sigma", "1"], 1),
  "restore  ": (["--degradation", "missing", "--mask", "{files}/M.png"], 1),
  "directions": (["--channel", "1", "--count", "3"], 3),
  "directions ": (
    ["--examples", "{files}/S.npz", "--having", "1", "--without", "0", "--count", "3", "--controls", "1"],
    3,
  ),
  "directions  ": (
    ["--examples", "{files}/S.npz", "--having", "1", "--without", "0", "--count", "3", "--space", "noise"],
    3,
  ),
}


QUICK = ("image-to-image", "inpaint", "invert", "translate")


@pytest.mark.parametrize(
  "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in EDITS]
)
def test_every_edit_keeps_the_size_and_says_where_it_is_from(workdir, files, tmp_path, name):
  options, count = EDITS[name]
  assert edited(workdir, files, tmp_path / "O", name.strip(), *options) == 0
  names = [path.name for path in sorted((tmp_path / "O").glob("0*.png"))]
  assert names == [f"{index:05d}.png" for index in range(count)]
  assert all(opened(tmp_path / "O" / name).shape == SIZE for name in names)
  provenance = pictures.read_provenance(tmp_path / "O" / "00000.png")
  assert (
    provenance["edit"] == name.strip()
    and provenance["index"] == 0
    and provenance["seed"] == 0
    and provenance["steps"] == 2
  )
  assert provenance["source_sha256"] == hashlib.sha256((files / "A.png").read_bytes()).hexdigest()
  sheet = pictures.read_provenance(tmp_path / "O" / "sheet.png")
  assert sheet["source_sha256"] == [provenance["source_sha256"]] and set(provenance) >= set(sheet)


def test_what_is_not_masked_is_bit_identical_and_the_mask_is_reported(workdir, files, tmp_path):
  assert edited(workdir, files, tmp_path, "inpaint", "--mask", "{files}/M.png") == 0
  source, known = opened(files / "A.png"), opened(files / "M.png") == 0
  image = opened(tmp_path / "00000.png")
  np.testing.assert_array_equal(image[known], source[known])
  assert (image[~known] != source[~known]).mean() > 0.5
  provenance = pictures.read_provenance(tmp_path / "00000.png")
  assert provenance["mask_sha256"] == hashlib.sha256((files / "M.png").read_bytes()).hexdigest()


@pytest.mark.slow
def test_outpainting_keeps_the_picture_within(workdir, files, tmp_path):
  assert edited(workdir, files, tmp_path, "inpaint", "--margins", "1,8,3,5") == 0
  image = opened(tmp_path / "00000.png")
  assert image.shape == (SIZE[0] + 4, SIZE[1] + 13)
  np.testing.assert_array_equal(image[1:22, 5:32], opened(files / "A.png"))


def test_margins_and_a_mask_together(workdir, files, tmp_path):
  assert edited(workdir, files, tmp_path, "inpaint", "--margins", "4", "--mask", "{files}/M.png") == 0
  known = opened(files / "M.png") == 0
  np.testing.assert_array_equal(
    opened(tmp_path / "00000.png")[4:25, 4:31][known], opened(files / "A.png")[known]
  )


def test_alpha_comes_back_as_it_was(workdir, files, tmp_path):
  assert edited(workdir, files, tmp_path, "inpaint", "--mask", "{files}/M.png", image="alpha.png") == 0
  image, known = opened(tmp_path / "00000.png"), opened(files / "M.png") == 0
  with Image.open(files / "alpha.png") as picture:
    source = np.asarray(picture.convert("LA"))  # the model knows no colours
  np.testing.assert_array_equal(image[..., 1], source[..., 1])
  np.testing.assert_array_equal(image[known], source[known])


@pytest.mark.slow
def test_a_picture_that_lies_on_its_side_comes_back_upright(workdir, files, tmp_path):
  options = ["image-to-image", "--strength", "0"]
  assert edited(workdir, files, tmp_path / "1", *options, image="turned.png") == 0
  upright = np.asarray(transforms.read_picture(files / "turned.png"))
  assert opened(tmp_path / "1" / "00000.png").shape == upright.shape == SIZE
  Image.fromarray(upright).save(tmp_path / "upright.png")
  assert edited(workdir, tmp_path, tmp_path / "2", *options, image="upright.png") == 0
  np.testing.assert_array_equal(opened(tmp_path / "1" / "00000.png"), opened(tmp_path / "2" / "00000.png"))


@pytest.mark.slow
def test_low_resolution_comes_back_larger(workdir, files, tmp_path):
  assert edited(workdir, files, tmp_path, "restore", "--degradation", "downsample", image="small.png") == 0
  assert opened(tmp_path / "00000.png").shape == (24, 28)


def test_the_pair_of_states_is_kept(workdir, files, tmp_path, capsys):
  assert edited(workdir, files, tmp_path, "invert") == 0
  assert "dB against the autoencoder's reconstruction, max|z|" in capsys.readouterr().out
  with np.load(tmp_path / "noise.npz") as kept:
    assert kept["noise"].shape == (1, 6, 8, 8)


@pytest.mark.slow
def test_several_pictures_are_edited_each_and_told_apart(workdir, files, tmp_path):
  for name, n in (("AB", 2), ("A", 2)):
    paths = [str(files / f"{letter}.png") for letter in name]
    assert (
      main(
        [
          "edit",
          "image-to-image",
          "--workdir",
          workdir,
          "--image",
          *paths,
          "--steps",
          "2",
          "--n",
          str(n),
          "--strength",
          "0,0.5",
          "--out",
          str(tmp_path / name),
        ]
      )
      == 0
    )
    assert len(list((tmp_path / name).glob("0*.png"))) == 4 * len(name)
  for i, (path, strength) in enumerate(itertools.product(("A.png", "B.png"), (0, 0, 0.5, 0.5))):
    provenance = pictures.read_provenance(tmp_path / "AB" / f"{i:05d}.png")
    assert provenance["strength"] == strength
    assert provenance["source_sha256"] == hashlib.sha256((files / path).read_bytes()).hexdigest()
  reconstructed = opened(tmp_path / "AB" / "00000.png").astype(int)
  assert np.abs(reconstructed - opened(tmp_path / "A" / "00000.png")).max() <= 1
  assert np.abs(reconstructed - opened(tmp_path / "AB" / "00004.png")).max() > 10
  assert opened(tmp_path / "AB" / "sheet.png").shape[0] == 5 * (SIZE[0] * 3 + 2) + 2


def test_each_strength_is_a_row_and_is_reported(workdir, files, tmp_path):
  assert edited(workdir, files, tmp_path, "image-to-image", "--strength", "0,0.5,1") == 0
  assert [pictures.read_provenance(tmp_path / f"{i:05d}.png")["strength"] for i in range(3)] == [0, 0.5, 1]
  assert opened(tmp_path / "sheet.png").shape[0] == 4 * (SIZE[0] * 3 + 2) + 2


@pytest.mark.slow
def test_an_interpolation_moves(workdir, files, tmp_path):
  assert edited(workdir, files, tmp_path, "interpolate", "--to", "{files}/B.png", "--count", "4") == 0
  with Image.open(tmp_path / "interpolation.gif") as animation:
    assert len(list(ImageSequence.Iterator(animation))) == 6 and b"source_sha256" in animation.info["comment"]


@pytest.mark.parametrize(
  ("options", "message"),
  [
    (["inpaint", "--mask", "{files}/other.png"], "other.png is 27x20 and --image 27x21 pixels"),
    (["inpaint", "--mask", "{files}/empty.png"], "empty.png is empty"),
    (["inpaint", "--mask", "{files}/broken.png"], "cannot be read as a picture"),
    (["inpaint"], "inpaint without --mask or --margins"),
    (["inpaint", "--margins", "0"], "margins 0,0,0,0; expected numbers of pixels"),
    (["inpaint", "--margins", "1,2"], "--margins 1,2; expected one number"),
    (["inpaint", "--margins", "one"], "--margins one; expected a comma list"),
    (["inpaint", "--mask", "{files}/M.png", "--strength", "-0.1"], "strength=-0.1; expected 0 to 1"),
    (["image-to-image", "--strength", "1.5"], "strength=1.5; expected 0 to 1"),
    (["image-to-image", "--strength", "much"], "--strength much; expected a comma list"),
    (["image-to-image", "--strength", "nan"], "strength=nan; expected 0 to 1"),
    (["image-to-image", "--image", "{files}/none.png"], "none.png"),
    (["image-to-image", "--image", "{files}/broken.png"], "broken.png cannot be read as a picture"),
    (["image-to-image", "--steps", "0"], "steps=0; expected whole numbers in [1, "),
    (["image-to-image", "--n", "0"], "--n 0; expected at least 1"),
    (["image-to-image", "--seed", "-1"], "--seed=-1"),
    (["image-to-image", "--label", str(2**40)], f"--label {2**40}; expected a class by its number"),
    (
      ["inpaint", "--mask", "{files}/M.png", "--repeats", "2", "--jump", "2"],
      "jump=2 of 2 steps; expected 1 to 1",
    ),
    (
      ["inpaint", "--mask", "{files}/M.png", "--repeats", str(10**9)],
      "repeats=1000000000 and jump=1 of 2 steps",
    ),
    (
      ["inpaint", "--mask", "{files}/M.png", "--repeats", "2", "--steps", "1"],
      "repeats=2 of 1 step; there is",
    ),
    (
      ["restore", "--degradation", "blur", "--sigma", "1e9"],
      "sigma=1000000000.0; expected numbers in (0, 1e6]",
    ),
    (
      ["translate", "--label", "3", "--onto", str(2**32 + 3)],
      f"--onto {2**32 + 3}; expected a class by its number",
    ),
    (["image-to-image", "--label", "10"], "label=10; expected -1 (unconditional) or 0 to 9"),
    (["image-to-image", "--sampler", "dimm"], "sampler='dimm'; expected one of"),
    (["image-to-image", "--sampler", "edict"], "EDICT steps a pair of states"),
    (["invert", "--sampler", "ddim", "--eta", "1"], "DDIM draws noise at each step"),
    (["interpolate", "--to", "{files}/other.png"], "other.png is 27x20 pixels of 1 channels and"),
    (["interpolate", "--to", "{files}/B.png", "--strength", "0.5"], "strength=0.5 in the space of noise"),
    (["translate", "--label", "3"], "this model was not trained on pairs of pictures"),
    (["translate", "--label", "3", "--onto", "12"], "label=12; expected"),
    (["restore"], "this model was not trained on pairs of pictures"),
    (["restore", "--degradation", "missing"], "--mask says which pixels are missing"),
    (["restore", "--degradation", "noise", "--noise", "-1"], "noise=-1.0; expected at least 0"),
    (["restore", "--degradation", "blur", "--sigma", "0"], "sigma=0.0 of Blurred"),
    (["directions"], "none of --channel and --examples"),
    (["directions", "--channel", "4"], "expected a channel below 4"),
    (["directions", "--channel", "1", "--place", "9,0"], "a place such as 0,0 of 6x8"),
    (["directions", "--examples", "{files}/S.npz"], "expected both"),
    (
      ["directions", "--examples", "{files}/A.png", "--having", "1", "--without", "0"],
      "expected an .npz with images and labels",
    ),
    (
      [
        "directions",
        "--examples",
        "{files}/S.npz",
        "--having",
        "1",
        "--without",
        "0",
        "--image",
        "{files}/small.png",
      ],
      "S.npz are 27x21 pixels and --image 7x6",
    ),
    (
      ["directions", "--examples", "{files}/S.npz", "--having", "1", "--without", "9"],
      "expected some of both",
    ),
    (["sharpen"], "invalid choice: 'sharpen'"),
  ],
)
def test_mistakes(workdir, files, tmp_path, capsys, options, message):
  assert edited(workdir, files, tmp_path / "O", *options) == 2
  error = capsys.readouterr().err
  assert message in error and error.count("\n") == 1
  assert not (tmp_path / "O").exists()


@pytest.mark.parametrize("options", [[], ["--overwrite"]])
def test_a_source_is_never_replaced(workdir, files, tmp_path, capsys, options):
  """Neither by an edit of its name, nor as one that an earlier and larger edit left."""
  assert edited(workdir, files, tmp_path, "image-to-image", "--n", "2") == 0
  before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
  capsys.readouterr()
  for image, n in (("00000.png", "1"), ("00001.png", "1")):
    assert edited(workdir, tmp_path, tmp_path, "image-to-image", "--n", n, *options, image=image) == 2
    assert f"{image}' is read by this command" in capsys.readouterr().err
  assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_what_others_made_is_never_replaced_and_what_another_command_made_if_asked(
  workdir, files, tmp_path, capsys
):
  run = lambda *options: edited(workdir, files, tmp_path, "image-to-image", "--strength", "0", *options)
  (tmp_path / "00000.png").write_bytes((files / "B.png").read_bytes())
  for options in ((), ("--overwrite",)):
    assert run(*options) == 2 and "00000.png' was not made by jldm" in capsys.readouterr().err
  assert (tmp_path / "00000.png").read_bytes() == (files / "B.png").read_bytes()

  for name in ("00000.png", "00005.png", "grid.png"):
    pictures.write_png(tmp_path / name, np.zeros((4, 4, 1), np.uint8), {"command": "sample"})
  assert (
    run() == 2
    and "00000.png' was made by jldm sample; replace it with --overwrite" in capsys.readouterr().err
  )
  assert run("--overwrite") == 0 and run() == 0
  assert sorted(path.name for path in tmp_path.iterdir()) == ["00000.png", "sheet.png"]


def test_a_picture_says_which_model_made_it_and_how(workdir, files, tmp_path, capsys):
  assert edited(workdir, files, tmp_path, "invert") == 0
  written = pictures.read_provenance(tmp_path / "00000.png")
  assert written == pictures.read_provenance(tmp_path / "noise.npz") | {
    "index": 0,
    "source_sha256": written["source_sha256"],
  }
  assert (written["model"], written["stage"], written["step"], written["version"]) == (
    "W",
    "denoiser",
    2,
    jldm.__version__,
  )
  assert written["resolved"]["sampler"] == repr(EDICT()) and written["resolved"]["steps"] == 2
  assert re.fullmatch("[0-9a-f]{64}", written["params_sha256"])
  capsys.readouterr()
  assert main(["info", str(tmp_path / "00000.png")]) == 0
  shown = capsys.readouterr().out
  assert (
    f"  params_sha256: {written['params_sha256']}" in shown and "EDICT" in shown and "  step: 2\n" in shown
  )


def test_a_film_without_imageio_is_refused_before_the_work(workdir, files, tmp_path, capsys, monkeypatch):
  monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
  monkeypatch.setattr(edit, "load_with_origin", None)
  assert edited(workdir, files, tmp_path / "O", "interpolate", "--to", "{files}/B.png", "--film") == 2
  assert "pip install 'jldm[video]'" in capsys.readouterr().err and not (tmp_path / "O").exists()


def test_an_out_that_is_no_folder(workdir, files, tmp_path, capsys):
  assert edited(workdir, files, tmp_path / "O.npz", "invert") == 2
  assert "expected a folder" in capsys.readouterr().err


COMMANDS = [
  shlex.split(line)
  for block in re.findall(r"```sh\n(.*?)```", (ROOT / "docs" / "editing.md").read_text(), re.S)
  for line in block.replace("\\\n", " ").splitlines()
  if line.startswith("jldm edit")
]


@pytest.mark.slow
@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: "_".join(words[2:3] + words[-1:]))
def test_the_commands_of_the_docs(workdir, files, tmp_path, monkeypatch, words):
  """At small size: two steps, on pictures of 16x16 of the names that they have there."""
  monkeypatch.chdir(tmp_path)
  random = np.random.default_rng(0)
  words = [
    word.replace("?", digit) for word in words for digit in ("01" if "?" in word else "0")
  ]  # two of all that match
  Path("runs/editing").mkdir(parents=True)
  for word in words:
    if word.endswith(".png"):
      Image.fromarray(random.integers(0, 256, (16, 16), np.uint8)).save(word)
    if word.endswith(".npz"):
      np.savez(word, images=random.integers(0, 256, (20, 16, 16, 1), np.uint8), labels=np.arange(20) % 10)
  if "--jump" in words:
    words[words.index("--jump") + 1] = "1"  # of two steps
  assert main([*words[1:], "--workdir", workdir, "--steps", "2"]) == 0
  assert (Path(words[words.index("--out") + 1]) / "sheet.png").is_file()


def test_every_kind_is_in_the_docs():
  assert {words[2] for words in COMMANDS} == set(KINDS)
