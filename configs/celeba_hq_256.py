"""CelebA-HQ at 256x256, unconditional: the recipe of latent diffusion, in the latents of an f4 KL
autoencoder.

  jldm prepare folder --source CELEBA_HQ --name celeba_hq --size 256 --data-dir data
  python train.py --config configs/celeba_hq_256.py --workdir runs/celeba_hq_256

After Rombach et al. 2022 (2112.10752), LDM-4: U-Net of 224 channels, scaled-linear betas from
0.0015 to 0.0195, eps, batch 48.  Theirs has VQ-f4 latents with an adversarial loss, and an FID of
5.11. Sized for one GPU of 80 GB.  Counted, not run: 19 exaFLOP in both stages, 36 hours at 150
TFLOP/s.
"""

from jldm.config.experiment import Experiment, Need, Sampling, Stage
from jldm.data.tfds import ImageData
from jldm.diffusion.process import Discrete, ScaledLinearBetas
from jldm.diffusion.target import Predict
from jldm.models.autoencoders.kl import KLAutoencoder
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
      name="celeba_hq",
      train="train[:29000]",
      held_out="train[29000:]",
      height=256,
      width=256,
      channels=3,
      mirror=True,
    ),
    stages=(
      Stage(
        name="autoencoder",
        objective=Reconstruction(
          network=KLAutoencoder(channels=3, latent_channels=3, widths=(128, 256, 512))
        ),
        optimizer=AdamW(schedule=WarmupCosine(peak=1e-4, warmup_steps=1000)),
        steps=200_000,
        batch_size=16,
        picture_every_steps=5000,
      ),
      Stage(
        name="denoiser",
        needs=(Need("codec", "autoencoder"),),
        objective=Diffusion(
          network=UNet(
            widths=(224, 448, 672, 896), resnets=2, attention=(False, True, True, True), head_width=32
          ),
          process=Discrete(ScaledLinearBetas(beta_start=0.0015, beta_end=0.0195)),
          parametrization=Predict("eps"),
        ),
        optimizer=AdamW(schedule=Constant(peak=9.6e-5), clip_norm=0.0),
        steps=410_000,
        batch_size=48,
        ema=Decay(0.9999),
        save_every_steps=5000,
        picture_every_steps=10_000,
      ),
    ),
    sampling=Sampling(sampler=DDIM(), steps=200, guidance=ClassifierFree(1.0)),
  )
