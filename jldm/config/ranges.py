"""The numbers that each field of an experiment may have, in one table, checked before anything is done.

An interval is written as in mathematics: "[0, 1)" holds 0 and not 1.  Of a field of `int` the numbers are
whole; of a tuple every element is checked; of an array, such as a scale per sample, every value.
"""

import dataclasses
import math
import numbers
from typing import Any

import jax
import numpy as np

from jldm.core.errors import UserError

SHARE = "[0, 1]"
BELOW_ONE = "[0, 1)"
POSITIVE = "(0, 1e6]"
FROM_ZERO = "[0, 1e6]"
ANY = "[-1e6, 1e6]"
COUNT = "[1, 2147483647]"  # int32
COUNT_OR_NONE = "[0, 2147483647]"
SIZE = "[1, 1048576]"  # of an axis of an array
SIZE_OR_NONE = "[0, 1048576]"
ORDER = "[1, 4]"
SCALE = "[-1000, 1000]"  # of guidance
LOG_SNR = "[-inf, inf]"

OPTIMIZER = {"weight_decay": FROM_ZERO, "clip_norm": FROM_ZERO}
MOMENTS = {"b1": BELOW_ONE, "b2": BELOW_ONE}
AUTOENCODER = {
  "channels": SIZE,
  "latent_channels": SIZE,
  "widths": SIZE,
  "resnets": SIZE_OR_NONE,
  "groups": SIZE,
  "patch": SIZE,
  "attention": COUNT_OR_NONE,
  "features": SIZE_OR_NONE,
}
PICTURES = {
  "height": SIZE,
  "width": SIZE,
  "channels": SIZE,
  "classes": SIZE_OR_NONE,
  "labelled": SHARE,
  "labelled_times": COUNT,
  "buckets": SIZE,
  "caption": SIZE_OR_NONE,
}
BLOCK = {"heads": SIZE, "mlp_ratio": POSITIVE, "mlp_epsilon": "[0, 1]"}
IDS = "[0, 1048576]"
TOWER = {"vocabulary": SIZE, "width": SIZE, "depth": SIZE, "heads": SIZE, "hidden": SIZE, "epsilon": "(0, 1]"}
BETAS = {"beta_start": "(0, 1)", "beta_end": "(0, 1]", "num_train_timesteps": SIZE}
RANGES = {  # class -> field -> interval
  "AdamW": OPTIMIZER | MOMENTS,
  "Adafactor": OPTIMIZER | {"decay_rate": "(0, 1]", "momentum": BELOW_ONE, "min_dim_size_to_factor": COUNT},
  "Muon": OPTIMIZER | MOMENTS | {"momentum": BELOW_ONE},
  "Constant": {"peak": FROM_ZERO, "warmup_steps": COUNT_OR_NONE},
  "WarmupCosine": {"peak": FROM_ZERO, "end": FROM_ZERO, "warmup_steps": COUNT_OR_NONE},
  "Decay": {"decay": SHARE},
  "Power": {"sigma_rel": "(0, 0.2887]"},
  "Experiment": {"seed": "[0, 18446744073709551615]"},
  "Stage": {
    "steps": COUNT_OR_NONE,
    "batch_size": SIZE,
    "accumulate": SIZE,
    "devices": SIZE_OR_NONE,
    "log_every_steps": COUNT,
    "save_every_steps": COUNT,
    "keep": COUNT,
    "keep_every_steps": COUNT_OR_NONE,
    "patience": COUNT_OR_NONE,
    "picture_every_steps": COUNT,
    "snapshot_every_steps": COUNT,
  },
  "Pretrained": {"batch_size": SIZE},
  "Sampling": {"steps": SIZE},
  "Evaluation": {"n": COUNT, "every_steps": COUNT_OR_NONE},
  "ImageData": PICTURES,
  "Synthetic": PICTURES | {"count": COUNT},
  "Reconstruction": {
    "l1_weight": FROM_ZERO,
    "l2_weight": FROM_ZERO,
    "kl_weight": FROM_ZERO,
    "commitment_weight": FROM_ZERO,
    "equivariance_weight": FROM_ZERO,
    "latent_noise": FROM_ZERO,
    "perceptual_weight": FROM_ZERO,
  },
  "Adversarial": {"start_step": COUNT_OR_NONE, "weight": FROM_ZERO, "decay": BELOW_ONE},
  "PatchDiscriminator": {"widths": SIZE, "groups": SIZE},
  "KLAutoencoder": AUTOENCODER,
  "VQAutoencoder": AUTOENCODER,
  "TinyAutoencoder": {
    "channels": SIZE,
    "latent_channels": SIZE,
    "width": SIZE,
    "encoder_blocks": SIZE_OR_NONE,
    "decoder_blocks": SIZE_OR_NONE,
  },
  "DCAutoencoder": {"channels": SIZE, "latent_channels": SIZE},
  "Level": {"width": SIZE, "blocks": SIZE_OR_NONE},
  "LinearAttention": {"width": SIZE, "scales": SIZE},
  "Codebook": {
    "size": "[2, 1048576]",
    "decay": BELOW_ONE,
    "epsilon": "(0, 1]",
    "restart_below": FROM_ZERO,
    "restart_every_steps": COUNT_OR_NONE,
  },
  "FSQ": {"levels": "[2, 1048576]", "restart_every_steps": "[0, 0]"},
  "Identity": {"mean": ANY, "std": POSITIVE},
  "Exact": {"tile": SIZE},
  "Blended": {"tile": SIZE, "overlap": SIZE_OR_NONE},
  "Diffusion": {
    "offset_noise": FROM_ZERO,
    "self_conditioning": SHARE,
    "direction_weight": FROM_ZERO,
    "part_weights": FROM_ZERO,
  },
  "DiT": {
    "frequency_shift": "[0, 1]",
    "patch": SIZE,
    "width": SIZE,
    "depth": SIZE,
    "classes": SIZE_OR_NONE,
    "token_width": SIZE_OR_NONE,
    "out_channels": SIZE_OR_NONE,
    "unroll": SIZE,
  },
  "UNet": {
    "transformer_layers": SIZE,
    "vector_layers": "[1, 2]",
    "widths": SIZE,
    "resnets": SIZE_OR_NONE,
    "heads": SIZE,
    "head_width": SIZE_OR_NONE,
    "classes": SIZE_OR_NONE,
    "token_width": SIZE_OR_NONE,
    "groups": SIZE,
  },
  "ModulatedBlock": BLOCK,
  "PlainBlock": BLOCK,
  "JointBlock": BLOCK,
  "ClassLabel": {"dropout": SHARE, "classes": SIZE},
  "Sizes": {"dropout": SHARE, "height": SIZE, "width": SIZE, "features": SIZE},
  "Vector": {"dropout": SHARE, "scale": POSITIVE},
  "Masked": {"dropout": SHARE},
  "Paired": {"dropout": SHARE},
  "Text": {"dropout": SHARE},
  "Words": {"dropout": SHARE},
  "Hashed": {"length": SIZE},
  "WordEncoder": {"rows": SIZE, "length": SIZE, "width": SIZE, "depth": SIZE, "heads": SIZE, "hidden": SIZE},
  "Tokenizer": {"length": SIZE_OR_NONE},
  "CLIPText": TOWER | {"length": SIZE, "skip": COUNT_OR_NONE, "projection": SIZE_OR_NONE, "end_token": IDS},
  "T5Encoder": TOWER | {"head_width": SIZE, "buckets": SIZE, "max_distance": COUNT},
  "Edges": {"sigma": POSITIVE, "strength": POSITIVE},
  "Noisy": {"std": FROM_ZERO},
  "Blurred": {"sigma": POSITIVE},
  "Downsampled": {"factor": SIZE},
  "Missing": {"share": SHARE},
  "LinearVP": {"beta_min": FROM_ZERO, "beta_max": POSITIVE},
  "EDM": {"sigma_max": POSITIVE, "rho": "[1, 100]"},
  "LinearBetas": BETAS,
  "ScaledLinearBetas": BETAS,
  "CosineBetas": {"offset": SHARE, "max_beta": "(0, 1]", "num_train_timesteps": SIZE},
  "Betas": {"trained_betas": "(0, 1]"},
  "Shifted": {"shift": POSITIVE},
  "Predict": {"time_scale": POSITIVE},
  "Precondition": {"sigma_data": POSITIVE},
  "LogitNormal": {"logit_mean": "[-20, 20]", "logit_std": "(0, 20]"},
  "LogNormalSigma": {"p_mean": "[-20, 20]", "p_std": "(0, 20]"},
  "TargetWeighting": {"max_weight": POSITIVE},
  "MinSNR": {"gamma": POSITIVE},
  "EDMWeighting": {"sigma_data": POSITIVE},
  "Sigmoid": {"bias": "[-20, 20]"},
  "DDIM": {"eta": SHARE},
  "DPMSolverPP": {"order": "[1, 3]", "eta": "[0, 100]"},
  "DPMSolverPPSingle": {"order": "[1, 3]", "eta": "[0, 100]"},
  "DEIS": {"order": ORDER},
  "UniPC": {"order": ORDER},
  "Consistency": {"gamma": SHARE},
  "Churn": {"gamma": "[0, 100]", "s_tmin": "[0, inf]", "s_tmax": "[0, inf]", "s_noise": "[0, 100]"},
  "PredictorCorrector": {"step_size": "[0, 100]", "correct_steps": "[0, 1000]"},
  "Pairs": {"pairs": SHARE},
  "Timesteps": {"steps_offset": COUNT_OR_NONE, "dropped": COUNT_OR_NONE},
  "ClassifierFree": {"guidance_scale": SCALE},
  "APG": {"guidance_scale": SCALE, "eta": SCALE, "norm_threshold": "(0, inf]"},
  "CFGZero": {"guidance_scale": SCALE, "zero_init_above": LOG_SNR},
  "FirstChannels": {"channels": SIZE},
  "Interval": {"log_snr_min": LOG_SNR, "log_snr_max": LOG_SNR},
  "Rescale": {"guidance_rescale": SHARE},
  "PerConditioner": {"guidance_scales": SCALE},
  "Threshold": {"dynamic_thresholding_ratio": "(0, 1]", "sample_max_value": POSITIVE},
}


def check_ranges(value: Any, path: str = "") -> None:
  """Checks every number of a dataclass of dataclasses; `path` is its name in messages, such as "denoiser".

  Raises:
    UserError: a number outside its field's interval, a fraction where numbers are whole, or NaN in
      any field.
  """
  if isinstance(value, (tuple, list)):
    for each in value:
      check_ranges(each, path)
  elif dataclasses.is_dataclass(value) and not isinstance(value, type):
    path = getattr(value, "name", None) if type(value).__name__ in ("Stage", "Pretrained") else path
    intervals = RANGES.get(type(value).__name__, {})
    for field in dataclasses.fields(value):
      if field.name not in ("parent", "name"):
        each, name = getattr(value, field.name), ".".join(filter(None, (path, field.name)))
        check_number(each, intervals.get(field.name), f"{name}", is_whole(field))
        check_ranges(each, name)


def is_whole(field: dataclasses.Field) -> bool:
  return field.type in (int, "int", tuple[int, ...], "tuple[int, ...]")


def check_number(value: Any, interval: str | None, name: str, whole: bool) -> None:
  """A number, a tuple of tuples of numbers or an array; UserError unless all of it is in the interval."""
  for number in numbers_of(value):
    if math.isnan(number):
      raise UserError(f"{name}={value}; expected a number")
    if interval is not None and not (contains(interval, number) and (not whole or number == int(number))):
      raise UserError(f"{name}={value}; expected {'whole numbers' if whole else 'numbers'} in {interval}")


def numbers_of(value: Any) -> list:
  """All numbers in a number, an array, or tuples of them."""
  if isinstance(value, bool) or value is None:
    return []
  if isinstance(value, numbers.Real):
    return [value]
  if isinstance(value, (tuple, list)):
    return [number for each in value for number in numbers_of(each)]
  if isinstance(value, (np.ndarray, jax.Array)) and np.issubdtype(value.dtype, np.number):
    return np.ravel(value).tolist()
  return []


def contains(interval: str, number: float) -> bool:
  """Whether an interval such as "[0, 1)" has a number."""
  low, high = (float(end) for end in interval[1:-1].split(","))
  above = low <= number if interval[0] == "[" else low < number
  below = number <= high if interval[-1] == "]" else number < high
  return above and below
