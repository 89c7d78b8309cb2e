"""CIFAR-10, 32x32, ten classes: an f2 KL autoencoder, and a U-Net trained as EDM does, with mirrors.

  pip install 'jldm[tf]'      # TFDS needs TensorFlow to prepare its stock sets; nothing here does afterwards
  python -c "from tensorflow_datasets import builder; \\
    builder('cifar10', data_dir='data', file_format='array_record').download_and_prepare()"
  python train.py --config configs/cifar10.py --workdir runs/cifar10

After EDM, Karras et al. 2022 (2206.00364): preconditioning, log-normal noise levels, batch 512; in
latents and not in pixels, and without dropout or their other augmentations, so that their FID is
not to be expected.  Sized for one GPU of 40 GB or four TPU cores.  Counted, not run: 2.2 exaFLOP,
six hours at 100 TFLOP/s.
"""

from jldm.config.experiment import Experiment, Need, Sampling, Stage
from jldm.data.tfds import ImageData
from jldm.diffusion.process import EDM
from jldm.diffusion.target import Precondition
from jldm.diffusion.times import LogNormalSigma
from jldm.models.autoencoders.kl import KLAutoencoder
from jldm.models.conditioners.label import ClassLabel
from jldm.models.denoisers.unet import UNet
from jldm.objectives.autoencoder import Reconstruction
from jldm.objectives.diffusion import Diffusion
from jldm.samplers.guidance import ClassifierFree
from jldm.samplers.heun import Heun
from jldm.train.ema import Power
from jldm.train.optimizer import AdamW, Constant, WarmupCosine


def experiment() -> Experiment:
  return Experiment(
    data=ImageData(
      name="cifar10", train="train", held_out="test[:1000]", channels=3, classes=10, mirror=True
    ),
    stages=(
      Stage(
        name="autoencoder",
        objective=Reconstruction(network=KLAutoencoder(channels=3, latent_channels=4, widths=(128, 256))),
        optimizer=AdamW(schedule=WarmupCosine(peak=5e-4, warmup_steps=500)),
        steps=50_000,
        batch_size=128,
      ),
      Stage(
        name="denoiser",
        needs=(Need("codec", "autoencoder"),),
        objective=Diffusion(
          network=UNet(
            widths=(128, 256, 256), resnets=3, attention=(False, True, False), heads=4, classes=10
          ),
          conditioners=(ClassLabel(classes=10),),
          process=EDM(),
          parametrization=Precondition(sigma_data=1.0),
          times=LogNormalSigma(p_mean=-0.5, p_std=1.2),  # -1.2 of the paper, at sigma_data 0.5
        ),
        optimizer=AdamW(schedule=Constant(peak=1e-3, warmup_steps=20_000), clip_norm=0.0),
        steps=400_000,
        batch_size=512,
        ema=Power(sigma_rel=(0.05, 0.10)),
        save_every_steps=5000,
        picture_every_steps=10_000,
      ),
    ),
    sampling=Sampling(sampler=Heun(), steps=18, guidance=ClassifierFree(1.0)),
  )
