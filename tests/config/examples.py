"""A small experiment, and classes that only tests know."""

import dataclasses
from typing import Any

from flax import linen as nn
import pytest

from jldm.config.experiment import Experiment, Need, Stage
from jldm.core.errors import UserError
from jldm.data.tfds import ImageData
from jldm.diffusion.process import Cosine
from jldm.models.autoencoders.kl import KLAutoencoder
from jldm.models.denoisers.dit import DiT
from jldm.nn.attention import attend
from jldm.objectives.autoencoder import Reconstruction
from jldm.objectives.diffusion import Diffusion
from jldm.train.ema import Decay

SMALL = Experiment(
  data=ImageData(name="digits"),
  stages=(
    Stage(name="autoencoder", objective=Reconstruction(network=KLAutoencoder(widths=(64, 128)))),
    Stage(
      name="denoiser",
      needs=(Need("codec", "autoencoder"),),
      objective=Diffusion(network=DiT(), process=Cosine()),
      steps=1000,
      ema=Decay(0.998),
    ),
  ),
)


@dataclasses.dataclass(frozen=True)
class Pair:
  sizes: tuple = (1, 2)
  rates: tuple = (0.5, 0.25)
  limit: Any = None
  inner: Any = None


class Network(nn.Module):
  width: int = 3
  kernel: Any = attend


def field(config: Any, path: str) -> Any:
  """What stands at a path such as "denoiser.objective.network"."""
  for name in path.split("."):
    config = (
      config.stage(name) if isinstance(config, Experiment) and name in config.names else getattr(config, name)
    )
  return config


def refused(call, *arguments) -> str:
  """The one line of the error."""
  with pytest.raises(UserError) as error:
    call(*arguments)
  assert "\n" not in str(error.value)
  return str(error.value)
