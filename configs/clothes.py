"""Text-to-image from nothing: two coloured clothes where a caption says, by a tower trained with the denoiser.

  apt-get install dataset-fashion-mnist
  jldm prepare clothes
  python train.py --config configs/clothes.py --workdir runs/clothes
  jldm sample --workdir runs/clothes --prompt "a red bag right of a blue t-shirt" --n 16
  jldm evaluate --workdir runs/clothes --n 2000 --captions unseen

One thread of a machine that other work shared: 613 CPU-seconds for both stages; of 500 samples, ten guided
steps each, 0.89 of the things are of the class asked (0.83 of pairs that no training picture has), all have
their colour, and none (0.01) is on the wrong side.  docs/text_to_image.md has shorter runs, and what they give.
"""

from jldm.config.experiment import Evaluation, Experiment, Need, Sampling, Stage
from jldm.data.tfds import ImageData
from jldm.diffusion.process import Flow
from jldm.diffusion.target import Predict
from jldm.diffusion.times import LogitNormal
from jldm.models.autoencoders.kl import KLAutoencoder
from jldm.models.conditioners.text import Words
from jldm.models.denoisers.dit import DiT
from jldm.nn.transformer import ModulatedBlock
from jldm.objectives.autoencoder import Reconstruction
from jldm.objectives.diffusion import Diffusion
from jldm.samplers.dpm_solver import DPMSolverPP
from jldm.samplers.guidance import ClassifierFree
from jldm.train.ema import Decay
from jldm.train.optimizer import AdamW, WarmupCosine

AT_THE_END = 1_000_000  # steps: nothing is spent on checkpoints and pictures before


def experiment() -> Experiment:
  return Experiment(
    data=ImageData(name="clothes", width=64, channels=3, caption=64),
    stages=(
      Stage(
        name="autoencoder",
        objective=Reconstruction(  # eight channels: with four, hues are lost
          network=KLAutoencoder(
            channels=3,
            latent_channels=8,
            widths=(16, 32),
            resnets=0,
            groups=8,
            patch=2,
            middle_attention=False,
          ),
          l2_weight=2.0,
          kl_weight=1e-4,
        ),
        optimizer=AdamW(schedule=WarmupCosine(peak=4e-3, warmup_steps=50), b2=0.99),
        steps=1500,
        batch_size=16,
        ema=Decay(0.99),
        devices=1,
        save_every_steps=AT_THE_END,
        picture_every_steps=AT_THE_END,
      ),
      Stage(
        name="denoiser",
        needs=(Need("codec", "autoencoder"),),
        objective=Diffusion(
          network=DiT(patch=2, width=128, depth=4, block=ModulatedBlock(heads=4), token_width=128, unroll=4),
          conditioners=(Words(),),
          process=Flow(),
          parametrization=Predict("flow"),
          times=LogitNormal(logit_mean=0.7),  # which thing stands where is decided at high noise
        ),
        optimizer=AdamW(schedule=WarmupCosine(peak=2e-3, warmup_steps=200), b2=0.99),
        steps=2600,
        batch_size=16,
        ema=Decay(0.995),
        devices=1,
        save_every_steps=AT_THE_END,
        picture_every_steps=AT_THE_END,
      ),
    ),
    sampling=Sampling(sampler=DPMSolverPP(), steps=10, guidance=ClassifierFree(3.0)),
    evaluation=Evaluation(extractor="pixels", scorer="clothes"),
  )
