"""A config of three stages, whose last one learns from the second, with an objective of its own."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

import jldm
from jldm.config.experiment import Experiment, Need
from jldm.core.keys import normal_like, row_keys
from jldm.core.specs import Loaded
from jldm.diffusion.process import rates
from jldm.models.autoencoders.posterior import Gaussian
from jldm.models.codecs.codec import sample_latents
from jldm.objectives.diffusion import Diffusion, mean_per_sample
from jldm.objectives.objective import Aux, Objective
from tests.configs import config, shrunk

STEPS = 6  # as tests/trained.py has, so that programs are compiled once


@jldm.register
@dataclasses.dataclass(frozen=True, kw_only=True)
class Imitation(Objective):
  """|student(z_t) - scale teacher(z_t)|^2 at t = stratum; `frozen["teacher"]` is a finished Diffusion.

  `extra` is {"loss": []}, the loss of the step before.
  """

  makes: ClassVar[str] = "denoiser"
  student: Diffusion
  scale: float = 2.0

  @property
  def network(self) -> Any:
    return self.student.network

  @property
  def conditioners(self) -> tuple:
    return self.student.conditioners

  def init(self, key: Any, batch: dict, frozen: dict) -> tuple[Any, Any]:
    return self.student.init(key, batch, frozen)[0], {"loss": jnp.zeros(())}

  def cache(self, frozen: dict, batch: dict, keys: Any) -> dict:
    return self.student.cache(frozen, batch, keys)

  def loss(self, params: Any, extra: Any, ema: Any, frozen: dict, batch: dict, key: Any) -> tuple[Any, Aux]:
    key_x0, key_eps, key_conditions = jax.random.split(key, 3)
    teacher, rows = frozen["teacher"], batch["row"]
    x0 = sample_latents(
      frozen["codec"], Gaussian(batch["mean"], batch["log_variance"]), row_keys(key_x0, rows)
    )
    r = rates(self.student.process, batch["stratum"], x0)
    z = r.alpha * x0 + r.sigma * normal_like(row_keys(key_eps, rows), x0)
    inputs = self.student.inputs(params, frozen, batch, key_conditions)
    noise_level = self.student.parametrization.c_noise(self.student.process, batch["stratum"])
    output = lambda objective, params: (
      objective.network.apply({"params": params["denoiser"]}, z, noise_level, inputs).value
    )
    target = self.scale * output(teacher.model, teacher.params)
    loss = mean_per_sample(jnp.square(output(self.student, params) - target))
    return loss, Aux({}, {"loss": loss.mean()})

  def result(self, params: Any, extra: Any, frozen: dict) -> Loaded:
    return self.student.result(params, {}, frozen)

  def start(self, params: Any, extra: Any, started: Any) -> tuple[Any, Any]:
    return params | started, extra


def experiment() -> Experiment:
  both = shrunk(config("digits"), STEPS)
  teacher = both.stage("denoiser")
  student = dataclasses.replace(
    teacher,
    name="student",
    objective=Imitation(student=teacher.objective),
    start="denoiser",
    needs=(Need("codec", "autoencoder"), Need("teacher", "denoiser")),
  )
  return dataclasses.replace(both, stages=(*both.stages, student))
