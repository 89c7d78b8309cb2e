"""Crops of six bundled photographs, 64x64: a small f4 VQ autoencoder and a U-Net in its latents.

  jldm prepare photos --size 64 --data-dir data        (pip install 'jldm[photos]')
  python train.py --config configs/photos_vq.py --workdir runs/photos_vq --stage autoencoder
  python train.py … --set autoencoder.objective.network.patch=4 --set 'autoencoder.objective.network.widths=(64, 128)'    f8

96x64: jldm prepare photos --size 96x64 --name photos_tall, then train with --set
  data.name=photos_tall --set data.height=96.

One pinned core of a shared machine, 250 CPU-seconds: held-out PSNR 24.1 dB, SSIM 0.711, every one
of 512 codes used (docs/autoencoders.md); the denoiser was not trained.
"""

from jldm.config.experiment import Experiment, Need, Sampling, Stage
from jldm.data.tfds import ImageData
from jldm.diffusion.process import Flow
from jldm.diffusion.target import Predict
from jldm.diffusion.times import LogitNormal
from jldm.models.autoencoders.quantize import Codebook
from jldm.models.autoencoders.vq import VQAutoencoder
from jldm.models.denoisers.unet import UNet
from jldm.objectives.autoencoder import Reconstruction
from jldm.objectives.diffusion import Diffusion
from jldm.samplers.dpm_solver import DPMSolverPP
from jldm.samplers.guidance import ClassifierFree
from jldm.train.ema import Decay
from jldm.train.optimizer import AdamW, WarmupCosine


def experiment() -> Experiment:
  return Experiment(
    data=ImageData(name="photos", height=64, width=64, channels=3),
    stages=(
      Stage(
        name="autoencoder",
        objective=Reconstruction(
          network=VQAutoencoder(
            quantizer=Codebook(size=512), latent_channels=4, widths=(32, 64), resnets=0, groups=8, patch=2
          ),
          l2_weight=2.0,
        ),
        optimizer=AdamW(schedule=WarmupCosine(peak=4e-3, warmup_steps=50), b2=0.99),
        steps=700,
        batch_size=16,
        ema=Decay(0.99),
        save_every_steps=350,
        picture_every_steps=350,
      ),
      Stage(
        name="denoiser",
        needs=(Need("codec", "autoencoder"),),
        objective=Diffusion(
          network=UNet(widths=(48, 96), resnets=1, attention=(False, True), heads=4, groups=16),
          process=Flow(),
          parametrization=Predict("flow"),
          times=LogitNormal(),
        ),
        optimizer=AdamW(schedule=WarmupCosine(peak=1e-3, warmup_steps=200), b2=0.99),
        steps=5000,
        batch_size=32,
        ema=Decay(0.999),
        save_every_steps=1000,
        picture_every_steps=1000,
      ),
    ),
    sampling=Sampling(sampler=DPMSolverPP(), steps=20, guidance=ClassifierFree(1.0)),
  )
