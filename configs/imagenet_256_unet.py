"""ImageNet at 256x256, a thousand classes: the class-conditional U-Net of latent diffusion.

  jldm prepare folder --source ILSVRC2012/train --name imagenet --size 256 --data-dir data
  python train.py --config configs/imagenet_256_unet.py --workdir runs/imagenet_256_unet

After Rombach et al. 2022 (2112.10752), LDM-4-G: 400 M parameters, the class as a token of 512 for
cross-attention, scaled-linear betas from 0.0015 to 0.0195, eps, batch 1200.  Theirs has VQ-f4
latents with an adversarial loss, and an FID of 3.60 with guidance 1.5 over 250 steps.  Sized for
sixteen GPUs of 80 GB. Counted, not run: 211 exaFLOP in both stages, 15 hours at sixteen times 250
TFLOP/s.
"""

from jldm.config.experiment import Experiment, Need, Sampling, Stage
from jldm.data.tfds import ImageData
from jldm.diffusion.process import Discrete, ScaledLinearBetas
from jldm.diffusion.target import Predict
from jldm.models.autoencoders.kl import KLAutoencoder
from jldm.models.conditioners.label import ClassLabel
from jldm.models.denoisers.unet import UNet
from jldm.objectives.autoencoder import Reconstruction
from jldm.objectives.diffusion import Diffusion
from jldm.samplers.ddim import DDIM
from jldm.samplers.guidance import ClassifierFree
from jldm.train.ema import Decay
from jldm.train.optimizer import AdamW, Constant, WarmupCosine


def experiment() -> Experiment:
  return Experiment(
    data=ImageData(
      name="imagenet",
      train="train[:1280000]",
      held_out="train[1280000:]",
      height=256,
      width=256,
      channels=3,
      classes=1000,
    ),
    stages=(
      Stage(
        name="autoencoder",
        objective=Reconstruction(
          network=KLAutoencoder(channels=3, latent_channels=3, widths=(128, 256, 512), dtype="bfloat16")
        ),
        optimizer=AdamW(schedule=WarmupCosine(peak=1e-4, warmup_steps=5000)),
        steps=500_000,
        batch_size=64,
        picture_every_steps=10_000,
      ),
      Stage(
        name="denoiser",
        needs=(Need("codec", "autoencoder"),),
        objective=Diffusion(
          network=UNet(
            widths=(192, 384, 576, 960),
            resnets=2,
            attention=(False, True, True, True),
            heads=1,
            classes=1000,
            token_width=512,
            dtype="bfloat16",
          ),
          conditioners=(ClassLabel(classes=1000),),
          process=Discrete(ScaledLinearBetas(beta_start=0.0015, beta_end=0.0195)),
          parametrization=Predict("eps"),
        ),
        optimizer=AdamW(schedule=Constant(peak=1e-4), clip_norm=0.0),
        steps=178_000,
        batch_size=1200,
        ema=Decay(0.9999),
        save_every_steps=5000,
        picture_every_steps=10_000,
      ),
    ),
    sampling=Sampling(sampler=DDIM(), steps=250, guidance=ClassifierFree(1.5)),
  )
