"""How good the drawn digits are, by two figures:  python benchmarks/digits.py runs/digits [--samples FOLDER]

Reads the PNGs that `jldm sample` drew and writes check.json into the run.  Digits are compared at
8x8 in 0...16, as scikit-learn ships them.

class agreement      the share of samples that an SVC, trained on the 1,797 real digits, takes for the class
asked for
                     (of a held-out third of the real digits it recognises 97 %)
per-class std ratio  the mean over classes of how much the samples of a class vary (standard
deviation, mean over
                     pixels), over how much the real ones do that went through the same 32x32 (real digits: 1)
"""

import argparse
import json
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.svm import SVC

from jldm.media.images import read_provenance


def real_digits() -> tuple[np.ndarray, np.ndarray]:
  """Pixels float [1797, 64] in 0...16, labels int [1797]."""
  return load_digits(return_X_y=True)


def enlarge(pixels: np.ndarray) -> np.ndarray:
  """Pixels [N, 64] in 0...16 -> uint8 [N, 32, 32, 1], bicubic, as the training data are made."""
  small = (pixels * (255 / 16)).astype(np.float32).reshape(-1, 8, 8)
  large = np.stack([Image.fromarray(image).resize((32, 32), Image.Resampling.BICUBIC) for image in small])
  return np.clip(np.rint(large), 0, 255).astype(np.uint8)[..., None]


def shrink(images: np.ndarray) -> np.ndarray:
  """Images uint8 [N, H, W, 1], sides divisible by 8 -> pixels float [N, 64] in 0...16, means over boxes."""
  count, height, width, _ = images.shape
  boxes = images.reshape(count, 8, height // 8, 8, width // 8)
  return boxes.mean((2, 4)).reshape(count, 64) * 16 / 255


def class_agreement(
  images: np.ndarray, labels: np.ndarray, real: tuple[np.ndarray, np.ndarray] | None = None
) -> float:
  """The share of images uint8 [N, H, W, 1] in the class of their label, says an SVC trained on `real`
  (all of them).
  """
  judge = SVC(gamma=0.001, C=10).fit(*(real or real_digits()))
  return float(np.mean(judge.predict(shrink(images)) == labels))


def std_ratio(images: np.ndarray, labels: np.ndarray) -> float:
  """How much images uint8 [N, H, W, 1] vary within their class against the real digits, mean over the
  classes drawn.
  """
  pixels, classes = real_digits()
  real = shrink(enlarge(pixels))
  spread = lambda values, among, label: values[among == label].std(0).mean()
  return float(
    np.mean([spread(shrink(images), labels, c) / spread(real, classes, c) for c in np.unique(labels)])
  )


def read_samples(folder: Path) -> tuple[np.ndarray, list[dict]]:
  """Images uint8 [N, H, W, 1] and their provenances, in order.

  Raises:
    ValueError: no samples, or not all of one draw.
  """
  paths = sorted(folder.glob("[0-9]*.png"))
  notes = [read_provenance(path) for path in paths]
  if not paths or None in notes:
    raise ValueError(
      f"{str(folder)!r} has no pictures that jldm drew, or others among them; expected one draw"
    )
  draws = {
    json.dumps({k: v for k, v in one.items() if k not in ("index", "label")}, sort_keys=True) for one in notes
  }
  if len(draws) > 1 or [one["index"] for one in notes] != list(range(len(notes))):
    raise ValueError(f"{str(folder)!r} mixes several draws; empty it and draw again")
  return np.stack([np.asarray(Image.open(path).convert("L"))[..., None] for path in paths]), notes


def check(folder: Path) -> dict:
  """Both figures, and how the samples in `folder` were drawn."""
  images, notes = read_samples(folder)
  labels = np.array([one["label"] for one in notes])
  return {
    "class_agreement": class_agreement(images, labels),
    "std_ratio": std_ratio(images, labels),
    "guidance_scale": notes[0]["guidance_scale"],
    "n": len(images),
    "steps": notes[0]["steps"],
    "seed": notes[0]["seed"],
  }


def main(arguments: list[str] | None = None) -> None:
  parser = argparse.ArgumentParser(description="class agreement and per-class std ratio of drawn digits")
  parser.add_argument("workdir", type=Path, help="the run; check.json is written there")
  parser.add_argument("--samples", type=Path, help="the folder of PNGs (default: WORKDIR/samples)")
  options = parser.parse_args(arguments)
  try:
    result = check(options.samples or options.workdir / "samples")
  except ValueError as error:
    parser.error(str(error))
  (options.workdir / "check.json").write_text(json.dumps(result, indent=2) + "\n")
  print(f"class agreement: {100 * result['class_agreement']:.1f} %")
  print(f"per-class std ratio: {result['std_ratio']:.2f}")


if __name__ == "__main__":
  main()
