"""Fashion-MNIST, 28x28 padded to 32x32, ten classes: an f4 KL autoencoder and a small class-conditional DiT.

  apt-get install dataset-fashion-mnist
  jldm prepare idx --source /usr/share/datasets/fashion-mnist --name fashion_mnist --pad 2
  python train.py --config configs/fashion_mnist.py --workdir runs/fashion_mnist
"""

from jldm.data.tfds import ImageData
from jldm.diffusion.process import Cosine
from jldm.diffusion.target import Predict
from jldm.experiment import Experiment, Sampling, Stage
from jldm.models.autoencoders.kl import KLAutoencoder
from jldm.models.denoisers.dit import DiT
from jldm.objectives.autoencoder import Reconstruction
from jldm.objectives.diffusion import Diffusion
from jldm.train.optimizer import AdamW, WarmupCosine


def experiment() -> Experiment:
  return Experiment(
    data=ImageData(name="fashion_mnist", train="train", held_out="test[:1000]", channels=1, classes=10),
    autoencoder=Stage(
      objective=Reconstruction(
        network=KLAutoencoder(channels=1, latent_channels=4, widths=(32, 64), resnets=1, groups=8, patch=2),
        kl_weight=1e-4,
      ),
      optimizer=AdamW(schedule=WarmupCosine(peak=2e-3, warmup_steps=100), b2=0.99),
      steps=1500,
      batch_size=64,
      ema=0.99,
      picture_every_steps=500,
    ),
    denoiser=Stage(
      objective=Diffusion(
        network=DiT(patch=2, width=192, depth=6, heads=6, classes=10),
        process=Cosine(),
        parametrization=Predict("v"),
      ),
      optimizer=AdamW(schedule=WarmupCosine(peak=1e-3, warmup_steps=200), b2=0.99),
      steps=4000,
      batch_size=128,
      ema=0.999,
    ),
    sampling=Sampling(sampler="dpmpp_2m", steps=20, guidance_scale=2.0),
  )
