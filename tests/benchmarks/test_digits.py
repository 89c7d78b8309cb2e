"""The two figures of the digits are right where the answer is known: on the real ones."""

import json

import numpy as np
import pytest

from benchmarks.digits import class_agreement, enlarge, main, real_digits, std_ratio
from jldm.data import prepare
from tests.draws import write_draw

HOW = {"sampler": "ddim", "steps": 20, "guidance_scale": 2.0, "seed": 0}


@pytest.fixture(scope="module")
def real():
  pixels, labels = real_digits()
  return enlarge(pixels), labels


def test_enlarging_keeps_the_digits(real):
  images, _ = real
  assert images.shape == (1797, 32, 32, 1) and images.dtype == np.uint8
  assert class_agreement(*real) > 0.99


def test_real_digits_are_enlarged_as_the_training_data_are(real):
  pixels, _ = real_digits()
  np.testing.assert_array_equal(
    real[0][..., 0], [prepare.enlarge_digit(digit) for digit in pixels.reshape(-1, 8, 8)]
  )


def test_real_digits_vary_as_real_digits(real):
  assert std_ratio(*real) == pytest.approx(1, abs=1e-12)


def test_digits_drawn_towards_their_mean_vary_less(real):
  images, labels = real
  means = np.stack([images[labels == c].mean(0) for c in range(10)])[labels]
  assert std_ratio(np.rint(means + 0.7 * (images - means)).astype(np.uint8), labels) == pytest.approx(
    0.7, abs=0.01
  )


def test_a_held_out_third_is_recognised(real):
  pixels, labels = real_digits()
  held_out = np.arange(len(labels)) >= 2 * len(labels) // 3
  agreement = class_agreement(real[0][held_out], labels[held_out], (pixels[~held_out], labels[~held_out]))
  assert agreement == pytest.approx(0.97, abs=0.01)


def test_shuffled_labels_agree_by_chance(real):
  images, labels = real
  assert 0.07 < class_agreement(images, np.random.default_rng(0).permutation(labels)) < 0.13


def test_check_is_written_and_printed(real, tmp_path, capsys):
  images, labels = (each[:40] for each in real)
  write_draw(tmp_path / "samples", images, labels, HOW)
  main([str(tmp_path)])
  result = json.loads((tmp_path / "check.json").read_text())
  assert list(result) == ["class_agreement", "std_ratio", "guidance_scale", "n", "steps", "seed"]
  assert (result["n"], result["steps"], result["seed"], result["guidance_scale"]) == (40, 20, 0, 2.0)
  assert result["class_agreement"] == class_agreement(images, labels)
  agreement, ratio = capsys.readouterr().out.splitlines()
  assert agreement == f"class agreement: {100 * result['class_agreement']:.1f} %"
  assert ratio == f"per-class std ratio: {result['std_ratio']:.2f}"


def test_two_draws_in_one_folder_are_refused(real, tmp_path, capsys):
  images, labels = (each[:6] for each in real)
  write_draw(tmp_path / "other", images, labels, HOW | {"seed": 1})
  write_draw(tmp_path / "samples", images[:4], labels[:4], HOW)
  (tmp_path / "other" / "00005.png").rename(tmp_path / "samples" / "00005.png")
  with pytest.raises(SystemExit) as stopped:
    main([str(tmp_path)])
  assert stopped.value.code == 2 and "mixes several draws" in capsys.readouterr().err
  assert not (tmp_path / "check.json").exists()


def test_a_folder_without_samples_is_refused(tmp_path, capsys):
  with pytest.raises(SystemExit) as stopped:
    main([str(tmp_path), "--samples", str(tmp_path / "nothing")])
  assert stopped.value.code == 2 and "no pictures that jldm drew" in capsys.readouterr().err
