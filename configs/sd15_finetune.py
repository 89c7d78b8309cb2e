"""Stable Diffusion 1.5, fine-tuned on one's own pictures with captions at 512x512: its U-Net alone is trained,
by its own noise levels and target, weighted by min-SNR (2303.09556).

  jldm convert stable-diffusion-v1-5 runs/sd15 --to jldm
  jldm prepare folder --source PICTURES --name mine --size 512 --channels 3
  jldm train --config configs/sd15_finetune.py --workdir runs/tuned
  jldm sample --workdir runs/tuned --prompt "a red bag|a blue shirt" --n 8
  jldm convert runs/tuned tuned/unet --kind unet --to diffusers

For one accelerator of 40 GB: parameters, their average, gradients and two moments are 17 GB in float32;
products are bfloat16, and blocks are computed again in the backward pass.  Latents and the captions' tokens are
kept on disk, so neither the autoencoder nor the text tower runs while it trains.  Of a smaller machine: --set
denoiser.batch_size=2 --set denoiser.optimizer='Adafactor()'.  PICTURES has metadata.jsonl with file_name and
text, or .txt files next to the pictures (docs/data.md).
"""

from jldm.config.experiment import Experiment, Need, Sampling, Stage
from jldm.data.tfds import ImageData
from jldm.diffusion.process import Discrete, ScaledLinearBetas
from jldm.diffusion.target import Predict
from jldm.diffusion.weighting import MinSNR
from jldm.models.conditioners.text import Text
from jldm.models.denoisers.unet import UNet
from jldm.models.towers.clip import CLIPText
from jldm.models.towers.tokenizers import Tokenizer
from jldm.objectives.diffusion import Diffusion
from jldm.samplers.dpm_solver import DPMSolverPP
from jldm.samplers.guidance import ClassifierFree
from jldm.train.ema import Decay
from jldm.train.optimizer import AdamW, Constant

PUBLISHED = "runs/sd15"  # what jldm convert made: its autoencoder and text tower stay there


def experiment() -> Experiment:
  text = Text(tower=CLIPText(end_token=0), tokenizer=Tokenizer(f"{PUBLISHED}/tokenizer"), dropout=0.1)
  return Experiment(
    data=ImageData(
      name="mine", train="train[:95%]", held_out="train[95%:]", height=512, width=512, channels=3, caption=320
    ),
    stages=(
      Stage(
        name="denoiser",
        start=PUBLISHED,
        needs=(Need("codec", PUBLISHED), Need("text", PUBLISHED)),
        objective=Diffusion(
          network=UNet(token_width=768, remat="full", dtype="bfloat16"),
          conditioners=(text,),
          process=Discrete(ScaledLinearBetas()),
          parametrization=Predict("eps"),
          weighting=MinSNR(5.0),
        ),
        optimizer=AdamW(schedule=Constant(peak=1e-5, warmup_steps=200), weight_decay=0.01, clip_norm=1.0),
        steps=4000,
        batch_size=8,
        ema=Decay(0.999),
      ),
    ),
    sampling=Sampling(sampler=DPMSolverPP(), steps=20, guidance=ClassifierFree(7.5)),
  )
