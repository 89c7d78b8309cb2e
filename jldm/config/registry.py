"""The closed table of classes that an experiment may have: those of jldm, and those added by `register`."""

import dataclasses
from typing import Any

from flax import linen as nn

from jldm.config.experiment import Evaluation, Experiment, Need, Pretrained, Sampling, Stage
from jldm.core.errors import UserError
from jldm.data.synthetic import Synthetic
from jldm.data.tfds import ImageData
from jldm.diffusion.process import (
  EDM,
  Betas,
  Cosine,
  CosineBetas,
  Discrete,
  Flow,
  LinearBetas,
  LinearVP,
  ScaledLinearBetas,
  Shifted,
)
from jldm.diffusion.target import Precondition, Predict
from jldm.diffusion.times import LogitNormal, LogNormalSigma, Uniform
from jldm.diffusion.weighting import EDMWeighting, MinSNR, Sigmoid, TargetWeighting, Unweighted
from jldm.models.autoencoders.dc import Convolutions, DCAutoencoder, Level, LinearAttention
from jldm.models.autoencoders.discriminator import PatchDiscriminator
from jldm.models.autoencoders.kl import KLAutoencoder
from jldm.models.autoencoders.quantize import FSQ, Codebook
from jldm.models.autoencoders.tiny import TinyAutoencoder
from jldm.models.autoencoders.vq import VQAutoencoder
from jldm.models.codecs.images import Identity, ImageCodec
from jldm.models.codecs.joint import Joint
from jldm.models.codecs.tiled import Tiled
from jldm.models.codecs.tiling import Blended, Exact
from jldm.models.conditioners.degradation import Blurred, Downsampled, Edges, Grey, Missing, Mixture, Noisy
from jldm.models.conditioners.label import ClassLabel
from jldm.models.conditioners.pictures import Masked, Paired
from jldm.models.conditioners.sizes import Sizes
from jldm.models.conditioners.text import Text, Words
from jldm.models.conditioners.vector import Vector
from jldm.models.denoisers.dit import DiT
from jldm.models.denoisers.unet import UNet
from jldm.models.towers.clip import CLIPText
from jldm.models.towers.joined import JoinedText
from jldm.models.towers.t5 import T5Encoder
from jldm.models.towers.tokenizers import JoinedTokenizer, Tokenizer
from jldm.models.towers.words import Hashed, WordEncoder
from jldm.nn.transformer import JointBlock, ModulatedBlock, PlainBlock
from jldm.objectives.adversarial import Adversarial
from jldm.objectives.autoencoder import Reconstruction
from jldm.objectives.diffusion import Diffusion
from jldm.objectives.tower import Tower
from jldm.samplers.ancestral import Ancestral
from jldm.samplers.churn import Churn
from jldm.samplers.clock import Line, Ratio
from jldm.samplers.consistency import Consistency
from jldm.samplers.ddim import DDIM
from jldm.samplers.deis import DEIS, PNDM
from jldm.samplers.dpm_solver import DPMSolverPP, DPMSolverPPSingle
from jldm.samplers.grid import Grid
from jldm.samplers.guidance import APG, CFGPlusPlus, CFGZero, ClassifierFree, FirstChannels, Interval, Rescale
from jldm.samplers.heun import Heun
from jldm.samplers.pairs import Pairs
from jldm.samplers.per_conditioner import PerConditioner
from jldm.samplers.predictor_corrector import PredictorCorrector
from jldm.samplers.resample import Resample
from jldm.samplers.runge_kutta import RK4
from jldm.samplers.timesteps import Timesteps
from jldm.samplers.transforms import Threshold
from jldm.samplers.unipc import UniPC
from jldm.train.ema import Decay, Power
from jldm.train.optimizer import Adafactor, AdamW, Constant, Muon, WarmupCosine
from jldm.train.parts import PerPart

ROLES = (  # classes of one row may replace each other
  (Experiment,),
  (Stage, Pretrained),
  (Need,),
  (Identity, ImageCodec, Joint, Tiled),
  (Exact, Blended),
  (Sampling,),
  (Evaluation,),
  (ImageData, Synthetic),
  (Reconstruction, Adversarial),
  (PatchDiscriminator,),
  (KLAutoencoder, VQAutoencoder, TinyAutoencoder, DCAutoencoder),
  (Level,),
  (Convolutions, LinearAttention),
  (Codebook, FSQ),
  (Diffusion,),
  (DiT, UNet),
  (ClassLabel, Vector, Sizes, Masked, Paired, Text, Words),
  (CLIPText, T5Encoder, JoinedText),
  (Tokenizer, JoinedTokenizer),
  (WordEncoder,),
  (Hashed,),
  (Tower,),
  (Grey, Edges, Noisy, Blurred, Downsampled, Missing, Mixture),
  (ModulatedBlock, PlainBlock, JointBlock),
  (Cosine, Flow, LinearVP, EDM, Discrete, Shifted),
  (LinearBetas, ScaledLinearBetas, CosineBetas, Betas),
  (Predict, Precondition),
  (Uniform, LogitNormal, LogNormalSigma),
  (Unweighted, TargetWeighting, MinSNR, EDMWeighting, Sigmoid),
  (AdamW, Adafactor, Muon, PerPart),
  (Constant, WarmupCosine),
  (Decay, Power),
  (
    DDIM,
    Ancestral,
    Heun,
    RK4,
    DPMSolverPP,
    DPMSolverPPSingle,
    UniPC,
    DEIS,
    PNDM,
    Consistency,
    Churn,
    PredictorCorrector,
    Resample,
  ),
  (Line, Ratio),
  (Grid, Pairs, Timesteps),
  (ClassifierFree, FirstChannels, Interval, Rescale, CFGPlusPlus, APG, CFGZero, PerConditioner),
  (Threshold,),
)
BUILT_IN = {cls.__name__: cls for role in ROLES for cls in role}
CLASSES = dict(BUILT_IN)  # `register` adds to it
MOST_NAME = 200  # characters of a name that is none, in an error
ELEMENTS = {  # fields that are tuples, perhaps empty -> a class of the role of their elements
  "stages": Stage,
  "needs": Need,
  "conditioners": ClassLabel,
  "transforms": Threshold,
}
OPEN_FIELDS = {  # (class, field) whose annotation and default say too little -> classes of its roles
  ("Experiment", "data"): (ImageData, type(None)),
  ("Stage", "objective"): (Reconstruction, Diffusion, Tower),
  ("Tower", "network"): (CLIPText,),
  ("Text", "tower"): (CLIPText,),
  ("Text", "tokenizer"): (Tokenizer,),
  ("JoinedText", "first"): (CLIPText,),
  ("JoinedText", "second"): (CLIPText,),
  ("Sampling", "sampler"): (DDIM, type(None)),
  ("ImageCodec", "network"): (KLAutoencoder,),
  ("Reconstruction", "network"): (KLAutoencoder,),
  ("Diffusion", "network"): (DiT,),
  ("Diffusion", "process"): (Flow,),
  ("FirstChannels", "rule"): (ClassifierFree,),
  ("Interval", "rule"): (ClassifierFree,),
  ("Rescale", "rule"): (ClassifierFree,),
  ("CFGPlusPlus", "rule"): (ClassifierFree,),
}
EXECUTION_FIELDS = ("remat",)  # a run may change these fields: they do not change the values computed


def role_of_class(cls: type) -> tuple[type, ...]:
  """The row of ROLES that has a class; () for a registered class."""
  return next((role for role in ROLES if cls in role), ())


def registered_classes(role: type) -> dict[str, type]:
  """The registered classes by name that satisfy a role, which is a runtime-checkable Protocol."""
  return {name: cls for name, cls in CLASSES.items() if name not in BUILT_IN and issubclass(cls, role)}


def register(cls: type) -> type:
  """Adds a frozen dataclass or linen Module of your own to the table; usable as a decorator.

  A class of the same module and name replaces the earlier one, as when a notebook's cell runs again.

  Raises:
    UserError: it is neither, or another class of that name is registered.
  """
  if not is_frozen(cls):
    raise UserError(
      f"cannot register {cls!r}; expected a frozen dataclass, @dataclasses.dataclass(frozen=True), "
      "or a flax.linen Module"
    )
  name = cls.__name__
  former = CLASSES.setdefault(name, cls)
  if (former.__module__, former.__qualname__) != (cls.__module__, cls.__qualname__):
    raise UserError(
      f"another class named {name!r} is registered, of {former.__module__}; give it another name"
    )
  CLASSES[name] = cls
  return cls


def is_frozen(cls: Any) -> bool:
  """Whether `cls` is a linen Module or a frozen dataclass."""
  if not isinstance(cls, type) or not dataclasses.is_dataclass(cls):
    return False
  return issubclass(cls, nn.Module) or cls.__dataclass_params__.frozen


def unknown_class_message(name: Any) -> str:
  """The error text for a class that is not in the table."""
  return (
    f"class {repr(name)[:MOST_NAME]} is not known; give the file that defines it, decorated with "
    "@jldm.register, as --import FILE.py; if that is the config of the training, --import CONFIG.py"
  )


def field_names(config: Any) -> list[str]:
  """The names of a dataclass's fields, without `parent` and `name`, which linen adds."""
  hidden = ("parent", "name") if isinstance(config, nn.Module) else ()
  return [field.name for field in dataclasses.fields(config) if field.name not in hidden]
