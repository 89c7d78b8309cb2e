"""An experiment: frozen dataclasses of real objects, what may be changed of them from outside, and their form as data.

As data, an object is {"class": name, **fields}, where the name stands in a closed table: jldm's own classes and what the
caller put there by `register`.  Nothing that is read is ever executed.
"""

import ast
import dataclasses
import difflib
import json
from typing import Any

from flax import linen as nn

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
from jldm.diffusion.weighting import EDMWeighting, MinSNR, Own, Plain, Sigmoid
from jldm.models.autoencoders.dc import Convolutions, DCAutoencoder, Level, LinearAttention
from jldm.models.autoencoders.discriminator import PatchDiscriminator
from jldm.models.autoencoders.kl import KLAutoencoder
from jldm.models.autoencoders.quantize import FSQ, Codebook
from jldm.models.autoencoders.tiny import TinyAutoencoder
from jldm.models.autoencoders.vq import VQAutoencoder
from jldm.models.conditioners.degradation import Blurred, Downsampled, Edges, Grey, Missing, Mixture, Noisy
from jldm.models.conditioners.label import ClassLabel
from jldm.models.conditioners.pictures import Masked, Paired
from jldm.models.conditioners.vector import Vector
from jldm.models.denoisers.dit import DiT
from jldm.models.denoisers.unet import UNet
from jldm.nn.transformer import ModulatedBlock, PlainBlock
from jldm.objectives.adversarial import Adversarial
from jldm.objectives.autoencoder import Reconstruction
from jldm.objectives.diffusion import Diffusion
from jldm.samplers.ancestral import Ancestral
from jldm.samplers.churn import Churn
from jldm.samplers.clock import Line, Ratio
from jldm.samplers.ddim import DDIM
from jldm.samplers.deis import DEIS, PNDM
from jldm.samplers.dpm_solver import DPMSolverPP, DPMSolverPPSingle
from jldm.samplers.grid import Grid, Pairs
from jldm.samplers.guidance import APG, CFGPlusPlus, CFGZero, ClassifierFree, Interval, Rescale
from jldm.samplers.heun import Heun
from jldm.samplers.jump import Jump
from jldm.samplers.langevin import Corrected
from jldm.samplers.per_conditioner import PerConditioner
from jldm.samplers.resample import Resample
from jldm.samplers.runge_kutta import RK4
from jldm.samplers.transforms import Threshold
from jldm.samplers.unipc import UniPC
from jldm.train.ema import Decay, Power
from jldm.train.optimizer import Adafactor, AdamW, Constant, Muon, WarmupCosine
from jldm.train.parts import PerPart


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
  """One training: what is learned, how, and for how long; intervals are in steps.

  `devices` share a batch where the caller does not say how many; 0 is all (on a CPU, the most that divide the batch).
  `start` is a workdir whose autoencoder this one goes on from, with the mean and std of its latents; of no steps, it is that.
  """

  objective: Any
  optimizer: Any = AdamW()
  steps: int = 10_000
  batch_size: int = 128
  accumulate: int = 1  # microbatches a step
  ema: Any = Decay(0.999)
  devices: int = 0
  log_every_steps: int = 50
  save_every_steps: int = 1000
  picture_every_steps: int = 1000
  snapshot_every_steps: int = 1000  # of the averages, where ema is Power(...)
  start: str = ""


@dataclasses.dataclass(frozen=True)
class Pretrained:
  """The autoencoder of another workdir, trained or imported, as it is: a Stage of no steps that starts there.

  `batch_size` images are encoded at once.
  """

  path: str
  batch_size: int = 32


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling:
  """How samples are drawn.

  sampler: an object of jldm.samplers (docs/samplers.md has what each is worth); None is the one that an edit uses by itself.
  steps: how many, on `grid`; with a grid Pairs(...) they count for nothing.
  guidance: a rule of jldm.samplers.guidance, or PerConditioner(names, scales).
  transforms: what is put around the denoiser, in this order, such as Threshold().
  """

  sampler: Any = DPMSolverPP()
  steps: int = 20
  grid: Any = Grid("uniform")
  guidance: Any = ClassifierFree(2.0)
  transforms: tuple = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
  """What samples are judged by where the caller does not say, and how often while the denoiser trains.

  Of every `every_steps` steps, and the last, `n` samples are drawn; the denoiser whose `metric` is best is kept beside the
  newest.  `weights` is a file of the extractor's parameters, where it needs one.
  """

  extractor: str = ""  # a name of jldm.metrics.extractors
  weights: str = ""
  n: int = 1000
  every_steps: int = 0  # 0: not while training
  metric: str = "frechet"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
  """Data, the two stages, and the seed of all that is random; that of an imported autoencoder has neither data nor denoiser."""

  data: Any = None
  autoencoder: Stage | Pretrained
  denoiser: Stage | None = None
  sampling: Sampling = Sampling()
  evaluation: Evaluation = Evaluation()
  seed: int = 0


ROLES = (  # one of a row may stand where another of it stands
  (Experiment,),
  (Stage, Pretrained),
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
  (ClassLabel, Vector, Masked, Paired),
  (Grey, Edges, Noisy, Blurred, Downsampled, Missing, Mixture),
  (ModulatedBlock, PlainBlock),
  (Cosine, Flow, LinearVP, EDM, Discrete, Shifted),
  (LinearBetas, ScaledLinearBetas, CosineBetas, Betas),
  (Predict, Precondition),
  (Uniform, LogitNormal, LogNormalSigma),
  (Own, Plain, MinSNR, EDMWeighting, Sigmoid),
  (AdamW, Adafactor, Muon, PerPart),
  (Constant, WarmupCosine),
  (Decay, Power),
  (DDIM, Ancestral, Heun, RK4, DPMSolverPP, DPMSolverPPSingle, UniPC, DEIS, PNDM, Jump, Churn, Corrected, Resample),
  (Line, Ratio),
  (Grid, Pairs),
  (ClassifierFree, Interval, Rescale, CFGPlusPlus, APG, CFGZero, PerConditioner),
  (Threshold,),
)
CLASSES = {cls.__name__: cls for role in ROLES for cls in role}
ELEMENTS = {"conditioners": ClassLabel, "transforms": Threshold}  # fields that are tuples, also empty ones, of the role of a class
HOW = ("remat",)  # fields that change how values are computed, and not which: a run may change them


def register(cls: type) -> type:
  """Lets a frozen dataclass or linen Module of the caller's own stand in an experiment; usable as a decorator.

  Raises:
    UserError: another class of that name is registered.
  """
  if CLASSES.setdefault(cls.__name__, cls) is not cls:
    raise UserError(f"another class named {cls.__name__!r} is registered; give it another name")
  return cls


def fields(config: Any) -> list[str]:
  """The names of a dataclass's own fields; linen adds two."""
  hidden = ("parent", "name") if isinstance(config, nn.Module) else ()
  return [field.name for field in dataclasses.fields(config) if field.name not in hidden]


def to_data(value: Any) -> Any:
  """An experiment, or a part of one, as JSON data.

  Raises:
    UserError: a class that is not registered, or a value that is not data.
  """
  if dataclasses.is_dataclass(value):
    name = type(value).__name__
    if CLASSES.get(name) is not type(value):
      raise UserError(f"class {name!r} of the experiment is not known; register it: jldm.register({name})")
    return {"class": name} | {field: to_data(getattr(value, field)) for field in fields(value) if is_set(value, field)}
  if isinstance(value, (tuple, list)):
    return [to_data(item) for item in value]
  if value is None or isinstance(value, (bool, int, float, str)):
    return value
  raise UserError(f"{value!r} is not data; an experiment holds dataclasses, tuples, numbers, strings and None")


def is_set(value: Any, name: str) -> bool:
  """Whether a field must be written down: a function that is the class's own default need not be."""
  default = next(field.default for field in dataclasses.fields(value) if field.name == name)
  field = getattr(value, name)
  return dataclasses.is_dataclass(field) or not callable(field) or field is not default


def from_data(data: Any) -> Any:
  """The inverse of `to_data`.

  Raises:
    UserError: a class that is not in the table, or fields that it does not have.
  """
  if isinstance(data, list):
    return tuple(from_data(item) for item in data)
  if not isinstance(data, dict):
    return data
  name = data.get("class")
  if not isinstance(name, str) or name not in CLASSES:
    raise UserError(f"class {name!r} of the experiment is not known; register it in Python: jldm.register({name})")
  values = {field: from_data(value) for field, value in data.items() if field != "class"}
  try:
    return CLASSES[name](**values)
  except UserError:
    raise
  except (TypeError, ValueError, ArithmeticError, LookupError, AttributeError) as error:  # of values not the class's own
    told = " ".join(str(error).split())
    raise UserError(f"{name} of the experiment does not fit this version of jldm: {told}") from error


def dumps(experiment: Experiment) -> str:
  return json.dumps(to_data(experiment), indent=2) + "\n"


def loads(text: str | bytes) -> Experiment:
  """Reads what `dumps` wrote.

  Raises:
    UserError: not JSON, or not an experiment.
  """
  try:
    data = json.loads(text)
    if not isinstance(data, dict) or data.get("class") != "Experiment":
      raise UserError("not an experiment: its class is not 'Experiment'")
    return from_data(data)
  except UserError:
    raise
  except (ValueError, RecursionError) as error:
    raise UserError(f"not an experiment: {error}") from error


def what(data: Any) -> Any:
  """An experiment as data, without the fields of HOW."""
  if isinstance(data, dict):
    return {name: what(value) for name, value in data.items() if name not in HOW}
  return [what(value) for value in data] if isinstance(data, list) else data


def differences(old: Any, new: Any, path: str = "") -> list[str]:
  """Where two experiments as data differ: "denoiser.steps: 1000 -> 2000", in the order of their fields, but for those of HOW."""
  old, new = what(old), what(new)
  if isinstance(old, dict) and isinstance(new, dict):
    names = list(old) + [name for name in new if name not in old]
    inner = lambda name: f"{path}.{name}" if path else name
    return [line for name in names for line in differences(old.get(name), new.get(name), inner(name))]
  return [] if old == new and type(old) is type(new) else [f"{path}: {old!r} -> {new!r}"]


def override(config: Any, path: str, text: str) -> Any:
  """`override(experiment, "denoiser.steps", "500")`: the same with one field replaced.

  A leaf keeps its exact type.  An object is replaced by another of its role, written as in Python:
  `override(experiment, "denoiser.objective.parametrization", "Predict('eps')")`.  Nothing is executed: the text is
  taken apart, and names are looked up in the closed table.

  Raises:
    UserError: no such field (with the nearest one), or a value of another type.
  """
  return replace_field(config, path.split("."), text, path)


def replace_field(config: Any, names: list[str], text: str, path: str) -> Any:
  if not dataclasses.is_dataclass(config):
    raise UserError(f"{path}: {config!r} has no fields; set it whole")
  head, *rest = names
  if head not in fields(config):
    raise UserError(f"{path}: {type(config).__name__} has no field {head!r}; {nearest(head, fields(config))}")
  old = getattr(config, head)
  new = replace_field(old, rest, text, path) if rest else parse_like(old, text, path)
  return dataclasses.replace(config, **{head: new})


def nearest(name: str, known: list[str]) -> str:
  near = difflib.get_close_matches(name, known, 1)
  return f"did you mean {near[0]!r}?" if near else f"it has {', '.join(known) or 'none'}"


def parse_like(old: Any, text: str, path: str) -> Any:
  """`text` as a value of the type of `old`, or as an object of its role; an int is a legal float."""
  if isinstance(old, str):
    return text
  name = path.rpartition(".")[2]
  try:
    new = float(text) if isinstance(old, float) else built(ast.parse(text.strip(), mode="eval").body, path, CLASSES)
  except (ValueError, SyntaxError) as error:
    if isinstance(error, UserError):
      raise
    if old is None:
      raise UserError(f"{path}: expected a value written as in Python, such as 0.5 or 'text', got {text!r}") from error
    new = text
  if fits(old, new, name):
    return as_floats(old, new)
  if name in ELEMENTS:
    fitting = " or ".join(f"{cls.__name__}(...)" for cls in role_of(ELEMENTS[name]))
    raise UserError(f"{path}: expected a tuple of {fitting}, got {text!r}")
  if dataclasses.is_dataclass(old):
    others = [cls.__name__ for role in ROLES for cls in role if type(old) in role]
    fitting = " or ".join(f"{name}(...)" for name in others or [type(old).__name__])
    raise UserError(f"{path}: expected {fitting}, or one of its fields ({', '.join(fields(old)) or 'none'}), got {text!r}")
  raise UserError(f"{path}: expected {type(old).__name__} such as {old!r}, got {text!r}")


def fits(old: Any, new: Any, name: str) -> bool:
  """Where nothing stood, a literal may stand, or an object of the caller's own; elsewhere what is alike.

  A field of a `name` in ELEMENTS is a tuple of its role, or of classes of the caller's own.
  """
  if name in ELEMENTS:
    role = role_of(ELEMENTS[name])
    return isinstance(new, tuple) and all(dataclasses.is_dataclass(each) and in_role(each, role) for each in new)
  known = any(type(new) in role for role in ROLES)
  return not known if old is None else is_alike(old, new)


def is_alike(old: Any, new: Any) -> bool:
  """Whether `new` may stand where `old` stands: the same type, or the same role; a registered class may stand anywhere."""
  if dataclasses.is_dataclass(old) and dataclasses.is_dataclass(new):
    return in_role(new, role_of(type(old)))
  if not isinstance(old, tuple) or not isinstance(new, tuple):
    return type(old) is type(new)
  if not old:  # such as buckets: literals alone
    return not any(dataclasses.is_dataclass(each) for each in new)
  return all(any(is_alike(a, as_floats(a, b)) for a in old) for b in new)


def role_of(cls: type) -> tuple[type, ...]:
  """The classes that may stand where one of `cls` stands; none for a class of the caller's own."""
  return next((role for role in ROLES if cls in role), ())


def in_role(value: Any, role: tuple[type, ...]) -> bool:
  """Whether a value is of a role, or of a class of the caller's own, which may stand anywhere."""
  return type(value) in role or not any(type(value) in other for other in ROLES)


def as_floats(old: Any, new: Any) -> Any:
  """Ints of `new` as floats where `old` has floats."""
  if isinstance(old, tuple) and isinstance(new, tuple) and old:
    return tuple(as_floats(old[0], value) for value in new)
  return float(new) if isinstance(old, float) and type(new) is int else new


def parsed(text: str, path: str, table: dict[str, type]) -> Any:
  """An object of the table, written as in Python; nothing is executed.

  Raises:
    UserError: another expression, a class that is not in the table, or fields that do not fit.
  """
  try:
    return built(ast.parse(text.strip(), mode="eval").body, path, table)
  except (ValueError, SyntaxError) as error:
    if isinstance(error, UserError):
      raise
    raise UserError(f"{path}={text!r}; expected an object written as in Python, such as {min(table)}()") from error


def built(node: ast.expr, path: str, table: dict[str, type]) -> Any:
  """A literal, or an object written as Class(1, field=2), of names in the table; ValueError for any other expression."""
  if isinstance(node, (ast.Tuple, ast.List)):
    return tuple(built(item, path, table) for item in node.elts)
  if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name)):
    return ast.literal_eval(node)
  if node.func.id not in table:
    raise UserError(f"{path}: no class {node.func.id!r}; {nearest(node.func.id, sorted(table))}")
  named = {word.arg or "**": built(word.value, path, table) for word in node.keywords}
  try:
    value = table[node.func.id](*(built(item, path, table) for item in node.args), **named)
  except TypeError as error:
    raise UserError(f"{path}: {ast.unparse(node)} does not fit: {error}") from error
  return dataclasses.replace(value, **{name: as_its_default(value, name, path) for name in fields(value)})


def as_its_default(value: Any, name: str, path: str) -> Any:
  """A field of an object that was built from text, of the type or role of its default."""
  default = next(field.default for field in dataclasses.fields(value) if field.name == name)
  found = getattr(value, name)
  if default is dataclasses.MISSING or found is default or fits(default, as_floats(default, found), name):
    return found if default is dataclasses.MISSING else as_floats(default, found)
  raise UserError(f"{path}: {name}={found!r} of {type(value).__name__}; expected one like {default!r}")
