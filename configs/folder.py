"""One's own pictures, prepared by `jldm prepare folder`: an f8 KL autoencoder and a DiT-S, unconditional.

  jldm prepare folder --source PICTURES --name mine --size 64
  python train.py --config configs/folder.py --workdir runs/mine --set data.name=mine
  python train.py … --set data.classes=5 --set denoiser.objective.network.classes=5 \
    --set "denoiser.objective.conditioners=(ClassLabel(classes=5),)"

Of several shapes: prepare with --buckets 48x80,80x48, train with --set "data.buckets=((48, 80),
(80, 48))" and sample with --size 48x80.  Each batch is of one shape; a shape of fewer pictures than
a batch is seen more often than its share.

Sized for one GPU or TPU core.  Other sizes: --set data.height=128 --set data.width=128 (divisible
by 16); on a laptop, try a tenth of the steps first.  Not measured: what comes out depends on the
pictures.
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
from jldm.train.optimizer import AdamW, Constant, WarmupCosine


def experiment() -> Experiment:
  return Experiment(
    data=ImageData(name="mine", train="train[:95%]", held_out="train[95%:]", height=64, width=64, channels=3),
    stages=(
      Stage(
        name="autoencoder",
        objective=Reconstruction(
          network=KLAutoencoder(channels=3, latent_channels=4, widths=(64, 128, 128, 256))
        ),
        optimizer=AdamW(schedule=WarmupCosine(peak=5e-4, warmup_steps=500)),
        steps=20_000,
        batch_size=32,
      ),
      Stage(
        name="denoiser",
        needs=(Need("codec", "autoencoder"),),
        objective=Diffusion(
          network=DiT(patch=2, width=384, depth=12, block=ModulatedBlock(heads=6)),
          process=Flow(),
          parametrization=Predict("flow"),
          times=LogitNormal(),
        ),
        optimizer=AdamW(schedule=Constant(peak=2e-4, warmup_steps=1000)),
        steps=100_000,
        batch_size=128,
        ema=Decay(0.9999),
        save_every_steps=2000,
        picture_every_steps=5000,
      ),
    ),
    sampling=Sampling(sampler=DPMSolverPP(), steps=20, guidance=ClassifierFree(1.0)),
  )
