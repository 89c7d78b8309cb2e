"""Makes schedulers.npz, the paths of diffusers' schedulers.  Needs torch, diffusers (0.42) and scipy:

  python tests/parity/schedulers.py

Every case walks INITIAL along the timesteps that the scheduler makes, with `network` where a model
would be.  It is told the angle atan(sigma / alpha) of the scheduler's own tables, not the timestep,
which is rounded where sigmas are interpolated.  Noise number k is that of step k.  Everything is
computed by their code in float64, which they round to float32 here and there: relative errors of
1e-5 where a sigma is large or small.

A path keeps the states at the ends of steps alone: Heun, Runge-Kutta and the doubled first step of
PNDM pass others.
"""

import importlib
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

STEPS = (7, 20, 50)
SHAPE = (2, 2, 2)
TABLE_STEPS = (1, 2, 3, 7, 11, 13, 16, 20, 50, 80, 125, 333, 999, 1000)
TABLES = {  # name -> scheduler, configuration: the integer timesteps of TABLE_STEPS
  "leading": ("DDIM", {}),
  "leading_one_on": ("DDIM", {"steps_offset": 1}),
  "trailing": ("DDIM", {"timestep_spacing": "trailing"}),
  "linspace": ("DDIM", {"timestep_spacing": "linspace"}),
  "leading_spare": ("UniPCMultistep", {"timestep_spacing": "leading"}),
  "linspace_spare": ("UniPCMultistep", {"timestep_spacing": "linspace"}),
  "lcm": ("LCM", {}),
}
REPAINT = ((20, 4, 3), (50, 10, 10), (7, 1, 2), (12, 12, 4))  # steps, jump_length, jump_n_sample


class Case(NamedTuple):
  """A scheduler by its name without "Scheduler" and "Discrete", what it is configured with, and
  arguments of its step.
  """

  scheduler: str
  config: dict[str, Any]
  step: dict[str, Any] = MappingProxyType({})


V, SAMPLE = {"prediction_type": "v_prediction"}, {"prediction_type": "sample"}
LEADING, TRAILING, LINSPACE = ({"timestep_spacing": name} for name in ("leading", "trailing", "linspace"))
KARRAS, EXPONENTIAL, BETA = ({f"use_{name}_sigmas": True} for name in ("karras", "exponential", "beta"))
ZERO_SNR = {"rescale_betas_zero_snr": True, **V, **TRAILING}
ONE_ON = {"steps_offset": 1, "set_alpha_to_one": False}  # as Stable Diffusion is published
SDE = {"algorithm_type": "sde-dpmsolver++"}
LOWER_LAST = {"lower_order_final": True}  # or it says that it sets this itself
HEUN = {"solver_type": "heun"}
UNCLIPPED = {"clip_sample": False}
NOISY_END = {"final_sigmas_type": "sigma_min"}
BH1 = {"solver_type": "bh1"} | NOISY_END  # at sigma = 0 its B(h) is infinite, and times 0 not a number
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def order(number: int) -> dict[str, int]:
  return {"solver_order": number}


CASES = {
  "ddpm_small": Case("DDPM", LEADING | UNCLIPPED),
  "ddpm_small_v": Case("DDPM", V | LEADING | UNCLIPPED | {"beta_schedule": "squaredcos_cap_v2"}),
  "ddpm_small_sample": Case("DDPM", SAMPLE | LINSPACE | UNCLIPPED),
  "ddpm_small_zero_snr": Case("DDPM", ZERO_SNR | UNCLIPPED),
  "ddpm_large": Case("DDPM", LEADING | UNCLIPPED | {"variance_type": "fixed_large"}),
  "ddpm_large_v": Case("DDPM", V | LINSPACE | UNCLIPPED | {"variance_type": "fixed_large"}),
  "ddpm_large_trailing": Case("DDPM", SAMPLE | TRAILING | UNCLIPPED | {"variance_type": "fixed_large"}),
  "ddpm_learned": Case("DDPM", LEADING | UNCLIPPED | {"variance_type": "learned_range"}),
  "ddpm_learned_v": Case("DDPM", V | LINSPACE | UNCLIPPED | {"variance_type": "learned_range"}),
  "ddim": Case("DDIM", LEADING | UNCLIPPED),
  "ddim_published": Case("DDIM", LEADING | ONE_ON | UNCLIPPED),
  "ddim_half": Case("DDIM", V | TRAILING | UNCLIPPED, {"eta": 0.5}),
  "ddim_one": Case("DDIM", SAMPLE | LINSPACE | UNCLIPPED, {"eta": 1.0}),
  "ddim_cosine": Case("DDIM", V | LEADING | UNCLIPPED | {"beta_schedule": "squaredcos_cap_v2"}, {"eta": 1.0}),
  "ddim_linear": Case(
    "DDIM", LINSPACE | UNCLIPPED | {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02}
  ),
  "ddim_zero_snr": Case("DDIM", ZERO_SNR | UNCLIPPED),
  "ddim_zero_snr_half": Case(
    "DDIM", ZERO_SNR | UNCLIPPED, {"eta": 0.5}
  ),  # eta = 1 there is the root of -1e-8, not a number
  "pndm_plms": Case("PNDM", LEADING | {"skip_prk_steps": True, "set_alpha_to_one": True}),
  "pndm_plms_published": Case("PNDM", LEADING | ONE_ON | {"skip_prk_steps": True}),
  "pndm_plms_v": Case("PNDM", V | LEADING | {"skip_prk_steps": True}),
  "pndm_prk": Case("PNDM", LEADING | {"set_alpha_to_one": True}),
  "pndm_prk_published": Case("PNDM", LEADING | ONE_ON),
  "pndm_prk_v": Case("PNDM", V | LEADING),
  "euler": Case("Euler", LINSPACE),
  "euler_published": Case("Euler", LEADING | {"steps_offset": 1}),
  "euler_v": Case("Euler", V | TRAILING),
  "euler_karras": Case("Euler", KARRAS),
  "euler_exponential": Case("Euler", V | EXPONENTIAL),
  "euler_beta": Case("Euler", SAMPLE | BETA),
  "euler_zero_snr": Case("Euler", ZERO_SNR),
  "euler_churn": Case("Euler", LEADING, {"s_churn": 5.0, "s_tmin": 0.1, "s_tmax": 10.0, "s_noise": 1.003}),
  "euler_ancestral": Case("EulerAncestral", LINSPACE),
  "euler_ancestral_leading": Case("EulerAncestral", LEADING),
  "euler_ancestral_v": Case("EulerAncestral", V | TRAILING),
  "euler_ancestral_zero_snr": Case("EulerAncestral", ZERO_SNR),
  "heun": Case("Heun", LINSPACE),
  "heun_trailing": Case("Heun", V | TRAILING),
  "heun_karras": Case("Heun", V | KARRAS),
  "heun_exponential": Case("Heun", SAMPLE | EXPONENTIAL),
  "heun_beta": Case("Heun", BETA),
  "lms": Case("LMS", LINSPACE),
  "lms_2": Case("LMS", V | TRAILING, {"order": 2}),
  "lms_3": Case("LMS", SAMPLE | LEADING, {"order": 3}),
  "lms_karras": Case("LMS", V | KARRAS),
  "lms_exponential": Case("LMS", EXPONENTIAL),
  "lms_beta": Case("LMS", SAMPLE | BETA),
  "dpm_1": Case("DPMSolverMultistep", LINSPACE | order(1)),
  "dpm_2": Case("DPMSolverMultistep", LINSPACE | order(2)),
  "dpm_2_heun": Case("DPMSolverMultistep", V | TRAILING | order(2) | HEUN),
  "dpm_3": Case("DPMSolverMultistep", V | LINSPACE | order(3)),
  "dpm_3_heun": Case("DPMSolverMultistep", SAMPLE | LEADING | order(3) | HEUN),
  "dpm_2_karras": Case("DPMSolverMultistep", KARRAS | order(2)),
  "dpm_2_exponential": Case("DPMSolverMultistep", V | EXPONENTIAL | order(2)),
  "dpm_2_beta": Case("DPMSolverMultistep", SAMPLE | BETA | order(2)),
  "dpm_3_karras": Case("DPMSolverMultistep", SAMPLE | KARRAS | order(3)),
  "dpm_2_zero_snr": Case("DPMSolverMultistep", ZERO_SNR | order(2)),
  "dpm_3_zero_snr": Case("DPMSolverMultistep", ZERO_SNR | order(3)),
  "dpm_sde_1": Case("DPMSolverMultistep", SDE | V | LINSPACE | order(1)),
  "dpm_sde_2": Case("DPMSolverMultistep", SDE | LINSPACE | order(2)),
  "dpm_sde_2_heun": Case("DPMSolverMultistep", SDE | SAMPLE | LEADING | order(2) | HEUN),
  "dpm_sde_2_karras": Case("DPMSolverMultistep", SDE | V | KARRAS | order(2)),
  "dpm_sde_2_zero_snr": Case("DPMSolverMultistep", SDE | ZERO_SNR | order(2)),
  "dpm_sde_3": Case("DPMSolverMultistep", SDE | LINSPACE | order(3)),
  "single_1": Case("DPMSolverSinglestep", LOWER_LAST | order(1)),
  "single_2": Case("DPMSolverSinglestep", LOWER_LAST | order(2)),
  "single_2_heun": Case("DPMSolverSinglestep", LOWER_LAST | V | order(2) | HEUN),
  "single_3": Case("DPMSolverSinglestep", LOWER_LAST | V | order(3)),
  "single_3_heun": Case("DPMSolverSinglestep", LOWER_LAST | SAMPLE | order(3) | HEUN),
  "single_2_karras": Case("DPMSolverSinglestep", LOWER_LAST | SAMPLE | KARRAS | order(2)),
  "single_3_exponential": Case("DPMSolverSinglestep", LOWER_LAST | EXPONENTIAL | order(3)),
  "single_sde_2": Case("DPMSolverSinglestep", LOWER_LAST | SDE | order(2)),
  "single_sde_2_heun": Case("DPMSolverSinglestep", LOWER_LAST | SDE | V | order(2) | HEUN),
  "single_sde_3": Case("DPMSolverSinglestep", LOWER_LAST | SDE | order(3)),
  "single_sde_3_heun": Case("DPMSolverSinglestep", LOWER_LAST | SDE | SAMPLE | order(3) | HEUN),
  "unipc_2": Case("UniPCMultistep", LINSPACE | order(2)),
  "unipc_2_bh1": Case("UniPCMultistep", V | TRAILING | order(2) | BH1),
  "unipc_3": Case("UniPCMultistep", V | LINSPACE | order(3)),
  "unipc_3_bh1": Case("UniPCMultistep", SAMPLE | LEADING | order(3) | BH1),
  "unipc_3_whole": Case("UniPCMultistep", LINSPACE | order(3) | {"lower_order_final": False} | NOISY_END),
  "unipc_2_karras": Case("UniPCMultistep", SAMPLE | KARRAS | order(2)),
  "unipc_2_exponential": Case("UniPCMultistep", EXPONENTIAL | order(2)),
  "unipc_2_beta": Case("UniPCMultistep", V | BETA | order(2)),
  "unipc_2_zero_snr": Case("UniPCMultistep", ZERO_SNR | order(2)),
  "edm_euler": Case("EDMEuler", {}),
  "edm_euler_exponential": Case("EDMEuler", {"sigma_schedule": "exponential"}),
  "edm_dpm_1": Case("EDMDPMSolverMultistep", order(1)),
  "edm_dpm_2": Case("EDMDPMSolverMultistep", order(2)),
  "edm_dpm_2_heun": Case("EDMDPMSolverMultistep", order(2) | HEUN | {"sigma_schedule": "exponential"}),
  "edm_dpm_3": Case("EDMDPMSolverMultistep", order(3)),
  "edm_dpm_sde_2": Case("EDMDPMSolverMultistep", SDE | order(2)),
  "flow": Case("FlowMatchEuler", {}),
  "flow_3": Case("FlowMatchEuler", {"shift": 3.0}),
  "flow_3_noisy": Case("FlowMatchEuler", {"shift": 3.0, "stochastic_sampling": True}),
  "lcm": Case("LCM", {}),
  "lcm_v": Case("LCM", V | {"timestep_scaling": 3.0}),
  "lcm_sample": Case("LCM", SAMPLE | {"timestep_scaling": 0.1}),
}


def network(xp: Any, z: Any, angle: Any, weight: np.ndarray, bias: np.ndarray) -> tuple[Any, Any]:
  """The output at z [..., 2], and a variance in [-1, 1]; xp is numpy or jax.numpy, angle atan(sigma / alpha)
  [].
  """
  return xp.tanh(z @ weight + angle * bias), xp.tanh(z @ weight.T - angle * bias)


def sigmas(made: Any) -> np.ndarray:
  """sigma / alpha where the network is asked: an entry a timestep."""
  if hasattr(made, "sigmas"):
    return made.sigmas.double().numpy()[: len(made.timesteps)]
  alphas = made.alphas_cumprod.double().numpy()[made.timesteps.numpy()]
  with np.errstate(divide="ignore"):
    return ((1 - alphas) / alphas) ** 0.5


def kept(scheduler: str, config: dict[str, Any], count: int) -> list[int]:
  """The outputs that are ends of steps, of so many outputs."""
  if scheduler == "Heun":
    return [*range(1, count - 1, 2), count - 1]
  if scheduler == "PNDM":
    return [*range(1, count)] if config.get("skip_prk_steps") else [3, 7, *range(11, count)]
  return [*range(count)]


class InFloat64:
  """A module where float32 means float64."""

  def __init__(self, module: Any):
    self.module = module

  def __getattr__(self, name: str) -> Any:
    return getattr(self.module, "float64" if name == "float32" else name)


def make(scheduler: str, config: dict[str, Any]) -> tuple[Any, Any]:
  """The scheduler, and the module that it is from."""
  import diffusers
  import torch

  torch.set_default_dtype(torch.float64)
  name = next(n for n in (f"{scheduler}Scheduler", f"{scheduler}DiscreteScheduler") if hasattr(diffusers, n))
  cls = getattr(diffusers, name)
  betas = {} if scheduler.startswith(("EDM", "Flow")) else BETAS
  module = importlib.import_module(cls.__module__)
  module.torch, module.np = InFloat64(torch), InFloat64(np)
  return cls(**betas | config), module


def walk(
  case: Case, steps: int, initial: np.ndarray, noises: np.ndarray, parts: tuple[np.ndarray, np.ndarray]
) -> tuple:
  """The path [steps + 1, ...] from `initial`, in the scheduler's own scale, and its table of sigmas
  [steps + 1], if any.
  """
  import torch

  made, module = make(case.scheduler, case.config)
  made.set_timesteps(steps)
  if hasattr(made, "set_begin_index"):
    made.set_begin_index(
      0
    )  # or it looks for the first timestep, and takes the second of two that were rounded to the same
  levels = sigmas(made)
  is_flow, is_edm = case.scheduler.startswith("Flow"), case.scheduler.startswith("EDM")
  scaled = is_edm or hasattr(made, "is_scale_input_called") or case.scheduler == "Heun"
  z = torch.from_numpy(initial.astype(np.float64)) * ((1 + levels[0] ** 2) ** 0.5 if scaled else 1)
  path = [z]
  for k, (timestep, level) in enumerate(zip(made.timesteps, levels)):
    noise = torch.from_numpy(noises[k % len(noises)].astype(np.float64))
    module.randn_tensor = lambda *args, noise=noise, **kwargs: noise
    fed = made.scale_model_input(z, timestep).numpy() if not is_flow else z.numpy()
    angle = np.arctan2(level, 1 - level) if is_flow else np.arctan(level)
    output, variance = network(np, fed.astype(np.float64), angle, *parts)
    if case.config.get("variance_type") == "learned_range":
      output = np.concatenate([output, variance], 1)
    z = made.step(torch.from_numpy(output), timestep, z, **case.step).prev_sample
    path.append(z)
  ends = [0] + [i + 1 for i in kept(case.scheduler, case.config, len(path) - 1)]
  assert len(ends) == steps + 1, (case, steps, ends)
  table = (
    [*dict.fromkeys(made.sigmas.tolist())] if hasattr(made, "sigmas") else np.full(steps + 1, np.nan)
  )  # Heun has all twice
  return np.stack([path[i].double().numpy() for i in ends]).astype(np.float32), np.array(table, np.float32)


def main() -> None:
  rng = np.random.default_rng(0)
  initial, noises = (
    rng.standard_normal(SHAPE, dtype=np.float32),
    rng.standard_normal((50, *SHAPE), dtype=np.float32),
  )
  weight, bias = np.array([[0.9, -0.6], [0.4, 0.7]]), np.array([1.1, -0.8])
  arrays = {"initial": initial, "noises": noises, "weight": weight, "bias": bias}
  for steps in STEPS:
    walked = [walk(case, steps, initial, noises, (weight, bias)) for case in CASES.values()]
    arrays |= {f"{part}.{steps}": np.stack(each) for part, each in zip(("paths", "sigmas"), zip(*walked))}
  for name, (scheduler, config) in TABLES.items():
    for steps in TABLE_STEPS:
      made, _ = make(scheduler, config)
      if steps <= made.config.get("original_inference_steps", 1000 - (scheduler == "UniPCMultistep")):
        made.set_timesteps(steps)
        arrays[f"{name}.{steps}"] = made.timesteps.numpy().astype(np.int16)
  for name in ("karras", "exponential", "beta"):
    for steps in STEPS:
      made, _ = make("Euler", {f"use_{name}_sigmas": True})
      made.set_timesteps(steps)
      arrays[f"{name}.{steps}"] = made.timesteps.numpy().astype(np.float32)
  for steps, jump, repeats in REPAINT:
    made, _ = make("RePaint", {})
    made.set_timesteps(steps, jump, repeats)
    arrays[f"repaint.{steps}.{jump}.{repeats}"] = made.timesteps.numpy().astype(np.int16)
  np.savez_compressed(Path(__file__).with_suffix(".npz"), **arrays)


if __name__ == "__main__":
  main()
