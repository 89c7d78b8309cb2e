"""ImageNet at 256x256, a thousand classes: LightningDiT-XL/1 on f16 latents of 32 channels.

  jldm prepare folder --source ILSVRC2012/train --name imagenet --size 256 --data-dir data
  python train.py --config configs/imagenet_256_dit.py --workdir runs/imagenet_256_dit

After Yao et al. 2025 (2501.01423) and their published settings: RMS norms, SwiGLU, rotary places,
flow with logit-normal times and a loss of direction, batch 1024, b2 0.95, 64 epochs.  Theirs has an
autoencoder that was aligned with DINOv2 and trained with an adversary, and an FID of 2.11.  Sized
for eight GPUs of 80 GB or a TPU v4-32.  Counted, not run: 93 exaFLOP in both stages, 11 hours at
eight times 300 TFLOP/s.
"""

from jldm.config.experiment import Experiment, Need, Sampling, Stage
from jldm.data.tfds import ImageData
from jldm.diffusion.process import Flow
from jldm.diffusion.target import Predict
from jldm.diffusion.times import LogitNormal
from jldm.models.autoencoders.kl import KLAutoencoder
from jldm.models.conditioners.label import ClassLabel
from jldm.models.denoisers.dit import dit
from jldm.nn.transformer import ModulatedBlock
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
      mirror=True,
    ),
    stages=(
      Stage(
        name="autoencoder",
        objective=Reconstruction(
          network=KLAutoencoder(
            channels=3, latent_channels=32, widths=(128, 128, 256, 256, 512), dtype="bfloat16"
          )
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
          network=dit(
            "XL",
            block=ModulatedBlock(rms_norm=True, swiglu=True),
            patch=1,
            classes=1000,
            rotary=True,
            remat="full",
            dtype="bfloat16",
          ),
          conditioners=(ClassLabel(classes=1000),),
          process=Flow(),
          parametrization=Predict("flow"),
          times=LogitNormal(),
          direction_weight=1.0,
        ),
        optimizer=AdamW(schedule=Constant(peak=2e-4), b2=0.95, clip_norm=0.0),
        steps=80_000,
        batch_size=1024,
        ema=Decay(0.9999),
        save_every_steps=5000,
        picture_every_steps=10_000,
      ),
    ),
    sampling=Sampling(
      sampler=DDIM(), steps=250, guidance=ClassifierFree(1.5)
    ),  # on this process Euler's steps, as theirs
  )
