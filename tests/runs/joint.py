"""A config of pictures and captions together: no stage but a denoiser of latents in two parts."""

import dataclasses

import numpy as np

import jldm
from jldm.config.experiment import Experiment, Need, Sampling, Stage
from jldm.data.dataset import Dataset
from jldm.data.source import Arrays
from jldm.diffusion.process import Flow
from jldm.diffusion.target import Predict
from jldm.objectives.diffusion import Diffusion
from jldm.samplers.ddim import DDIM
from jldm.train.optimizer import AdamW, Constant
from tests.joint import CODEC, DATA, Both, Letters, examples

for each in (Both, Letters):
  jldm.register(each)


@jldm.register
@dataclasses.dataclass(frozen=True)
class Captioned(Dataset):
  """tests.joint.examples as a data set: only what a data set has to have."""

  count: int = 48
  train: str = "train"
  held_out: str = "test"

  @property
  def specs(self):
    return (DATA,)

  def open(self, split: str) -> Arrays:
    return Arrays(examples(np.arange(self.count)))


def experiment() -> Experiment:
  return Experiment(
    data=Captioned(),
    sampling=Sampling(sampler=DDIM(), steps=8),
    stages=(
      Stage(
        name="denoiser",
        objective=Diffusion(network=Both(), process=Flow(), parametrization=Predict("x0")),
        needs=(Need("codec", CODEC),),
        optimizer=AdamW(schedule=Constant(peak=3e-3), weight_decay=0.0),
        batch_size=48,
        steps=40,
        save_every_steps=20,
        picture_every_steps=20,
        log_every_steps=10,
      ),
    ),
  )
