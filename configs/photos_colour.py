"""Grey photographs in colour: a picture from another that is made of it, on 64x64 crops of six bundled
photographs.

  jldm prepare photos --size 64 --data-dir data        (pip install 'jldm[photos]')
  python train.py --config configs/photos_colour.py --workdir runs/photos_colour

One pinned core of a busy machine: about 490 CPU-seconds for both stages. Held-out crops in the
colours of a sample, luminance of the source: 19.0 dB (18.5 dB in grey; docs/conditioned.md).
"""

from jldm.config.experiment import Experiment, Need, Sampling, Stage
from jldm.data.tfds import ImageData
from jldm.diffusion.process import Flow
from jldm.diffusion.target import Predict
from jldm.diffusion.times import LogitNormal
from jldm.models.autoencoders.kl import KLAutoencoder
from jldm.models.conditioners.degradation import Grey
from jldm.models.conditioners.pictures import Paired
from jldm.models.denoisers.unet import UNet
from jldm.objectives.autoencoder import Reconstruction
from jldm.objectives.diffusion import Diffusion
from jldm.samplers.dpm_solver import DPMSolverPP
from jldm.samplers.guidance import ClassifierFree
from jldm.train.ema import Decay
from jldm.train.optimizer import AdamW, WarmupCosine

AT_THE_END = 1_000_000  # steps: nothing is spent on checkpoints and pictures before


def experiment() -> Experiment:
  return Experiment(
    data=ImageData(name="photos", height=64, width=64, channels=3),
    stages=(
      Stage(
        name="autoencoder",
        objective=Reconstruction(
          network=KLAutoencoder(latent_channels=4, widths=(32, 64), resnets=0, groups=8, patch=2),
          l2_weight=2.0,
          kl_weight=1e-5,
        ),
        optimizer=AdamW(schedule=WarmupCosine(peak=4e-3, warmup_steps=50), b2=0.99),
        steps=700,
        batch_size=16,
        ema=Decay(0.99),
        devices=1,
        save_every_steps=350,
        picture_every_steps=AT_THE_END,
      ),
      Stage(
        name="denoiser",
        needs=(Need("codec", "autoencoder"),),
        objective=Diffusion(
          network=UNet(widths=(32, 64), resnets=1, attention=(False, True), heads=4, groups=16),
          conditioners=(Paired(degradation=Grey()),),
          process=Flow(),
          parametrization=Predict("flow"),
          times=LogitNormal(),
        ),
        optimizer=AdamW(schedule=WarmupCosine(peak=2e-3, warmup_steps=200), b2=0.99),
        steps=1500,
        batch_size=16,
        ema=Decay(0.995),
        devices=1,
        save_every_steps=AT_THE_END,
        picture_every_steps=AT_THE_END,
      ),
    ),
    sampling=Sampling(sampler=DPMSolverPP(), steps=20, guidance=ClassifierFree(1.0)),
  )
