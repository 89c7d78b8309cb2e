import pytest

from benchmarks import autoencoders
from jldm.inference.model import build_model
from jldm.runs import validate
from tests.marks import slow_after

ROW = {
  "name": "VQ f4",
  "latents": "16x16x4",
  "parameters": 250_400,
  "steps": 700,
  "batch_size": 16,
  "psnr": 24.567,
  "ssim": 0.81234,
  "cpu_seconds": 300.4,
  "codes": 512,
  "usage": 0.987,
  "perplexity": 321.4,
}


@pytest.mark.parametrize("name", slow_after(2, autoencoders.ROWS))
def test_every_row_is_an_experiment(name):
  actual = autoencoders.experiment(name, "somewhere")
  model = build_model(actual)
  validate.check_shapes(model, actual.data)
  assert f"f{model.codec.factor}" in name and type(model.codec.network).__name__.startswith(name[:2])
  assert actual.data.data_dir == "somewhere" and actual.data.height == (96 if "96x64" in name else 64)


def test_the_table():
  kl = {key: value for key, value in ROW.items() if key not in ("codes", "usage", "perplexity")} | {
    "name": "KL f4"
  }
  lines = autoencoders.table([kl, ROW]).splitlines()
  assert len({line.count("|") for line in lines}) == 1
  assert lines[2] == "| KL f4 | 16x16x4 | 250 k | 24.57 | 0.812 | |  | 700 x 16 | 300 |"
  assert lines[3] == "| VQ f4 | 16x16x4 | 250 k | 24.57 | 0.812 | 99 % of 512 | 321 | 700 x 16 | 300 |"
