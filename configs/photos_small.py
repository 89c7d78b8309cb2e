"""One's own photographs on a laptop, 64x64: some hundred pictures are enough for a first look.

  jldm prepare folder --source PICTURES --name mine --size 64 --data-dir data
  python train.py --config configs/photos_small.py --workdir runs/mine
  python sample.py --workdir runs/mine

An f4 KL autoencoder and a small DiT, unconditional.  Measured once, on 300 random crops of the six
photographs of scikit-learn and scikit-image: both stages took 2,177 CPU-seconds and 1.8 GB, and 62 minutes
by the clock, at a low priority on two cores that other programs shared, where two free cores would share
2,177 seconds as 18 minutes.  Held-out PSNR was 25.4 dB; samples showed the photographs' subjects, blurred.
With a GPU or a TPU: configs/folder.py.
"""

from jldm.config.experiment import Experiment, Need, Sampling, Stage
from jldm.data.tfds import ImageData
from jldm.diffusion.process import Flow
from jldm.diffusion.target import Predict
from jldm.diffusion.times import LogitNormal
from jldm.models.autoencoders.kl import KLAutoencoder
from jldm.models.denoisers.dit import DiT
from jldm.nn.transformer import ModulatedBlock
from jldm.objectives.autoencoder import Reconstruction
from jldm.objectives.diffusion import Diffusion
from jldm.samplers.dpm_solver import DPMSolverPP
from jldm.samplers.guidance import ClassifierFree
from jldm.train.ema import Decay
from jldm.train.optimizer import AdamW, WarmupCosine


def experiment() -> Experiment:
  return Experiment(
    data=ImageData(
      name="mine", train="train[:95%]", held_out="train[95%:]", height=64, width=64, channels=3, mirror=True
    ),
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
        save_every_steps=350,
        picture_every_steps=350,
      ),
      Stage(
        name="denoiser",
        needs=(Need("codec", "autoencoder"),),
        objective=Diffusion(
          network=DiT(patch=2, width=192, depth=6, block=ModulatedBlock(heads=4)),
          process=Flow(),
          parametrization=Predict("flow"),
          times=LogitNormal(),
        ),
        optimizer=AdamW(schedule=WarmupCosine(peak=2e-3, warmup_steps=100), b2=0.99),
        steps=1500,
        batch_size=32,
        ema=Decay(0.995),
        save_every_steps=500,
        picture_every_steps=500,
      ),
    ),
    sampling=Sampling(sampler=DPMSolverPP(), steps=20, guidance=ClassifierFree(1.0)),
  )
