"""Reads published diffusion transformers: DiT, SiT, REPA's SiT and LightningDiT in their authors' names, and
diffusers' DiTTransformer2DModel.

The classes of these files hardly differ, so the family must be given: it says what the network's time and
output mean, which no tensor shows.

  family         time of the network          output
  dit            999 (noise) to 0             eps, and v of the variance of ancestral steps
  sit            0 (noise) to 1 (data)        x0 - eps; a second half of the channels is thrown away
  lightningdit   0 (noise) to 1 (data)        x0 - eps
  repa           1 (noise) to 0 (data)        eps - x0

DiT (2212.09748), SiT (2401.08740), REPA (2410.06940), LightningDiT (2501.01423).
"""

from collections.abc import Callable, Iterator, Mapping
import functools
import math
import re
from typing import Any, NamedTuple

import numpy as np

from jldm.core.errors import UserError, printable
from jldm.diffusion.process import Discrete, Flow, LinearBetas
from jldm.diffusion.target import Predict
from jldm.interop.config import config_choice, config_number
from jldm.interop.rename import DENSE, Axes
from jldm.models.denoisers.dit import SIZES, DiT
from jldm.nn.embedding import grid_sinusoids
from jldm.nn.transformer import ModulatedBlock

MOST_DEPTH, MOST_SIDE = 256, 1024
SCALE = (("scale", "weight", Axes("c", "c")),)
HEADS = {width: heads for _, width, heads in SIZES.values()}
PATCHES, LAST, PLACES = "x_embedder.proj.weight", "final_layer.linear", "pos_embed"
OTHERS = r"pos_embed|projectors\..*|feat_rope\..*"  # checked, REPA's heads, and tables of rotary angles
REMEDY = "give the file of the EMA weights, and its --kind"
CLASS = "DiTTransformer2DModel"
DIFFUSERS_EPSILON = 1e-5  # of the norm before the MLP; the original has 1e-6


class Family(NamedTuple):
  """What is not in a file.

  learns_variance: a second half of output channels is the variance of ancestral steps; others drop it.
  own_statistics: latents are standardised per channel, by numbers that a file of their own has.
  scale: of classifier-free guidance in the published numbers.
  channels: how many of the first channels of the latents it is on; 0 is all.
  log_snr_min: where it begins, coming from noise.
  """

  process: Any
  parametrization: Any
  learns_variance: bool = False
  rotary: bool = False
  own_statistics: bool = False
  scale: float = 1.5
  channels: int = 3
  log_snr_min: float = -math.inf


FROM_NOISE = Predict("flow", reverse_time=True, time_scale=0.001)
FAMILIES = {
  "dit": Family(Discrete(LinearBetas(0.0001, 0.02)), Predict("eps"), learns_variance=True),
  "sit": Family(Flow(), FROM_NOISE),
  "repa": Family(Flow(), Predict("flow", time_scale=0.001), scale=1.8, channels=0),
  "lightningdit": Family(
    Flow(), FROM_NOISE, rotary=True, own_statistics=True, scale=6.7, log_snr_min=2 * math.log(0.11 / 0.89)
  ),
}
BLOCK = (  # what one family has, another lacks
  ("attention/qkv", "attn.qkv", DENSE),
  ("attention/out", "attn.proj", DENSE),
  ("attention/norm_q", "attn.q_norm", SCALE),
  ("attention/norm_k", "attn.k_norm", SCALE),
  ("mlp/in", "mlp.fc1", DENSE),
  ("mlp/out", "mlp.fc2", DENSE),
  ("norm1", "norm1", SCALE),
  ("norm2", "norm2", SCALE),
  ("modulation/dense", "adaLN_modulation.1", DENSE),
)
SWIGLU = {"mlp.fc1": "mlp.w12", "mlp.fc2": "mlp.w3"}
TABLE = (
  ("in", "x_embedder.proj", DENSE),
  ("level/in", "t_embedder.mlp.0", DENSE),
  ("level/out", "t_embedder.mlp.2", DENSE),
  ("label/table", "y_embedder.embedding_table.weight", Axes("kd", "kd")),
  ("modulation/dense", "final_layer.adaLN_modulation.1", DENSE),
  ("norm", "final_layer.norm_final", SCALE),
  ("out", LAST, DENSE),
)
NORM1, EMBEDDER = "transformer_blocks.*.norm1", "transformer_blocks.0.norm1.emb"
DIFFUSERS = (
  ("in", "pos_embed.proj", DENSE),
  ("level/in", f"{EMBEDDER}.timestep_embedder.linear_1", DENSE),
  ("level/out", f"{EMBEDDER}.timestep_embedder.linear_2", DENSE),
  ("label/table", f"{EMBEDDER}.class_embedder.embedding_table.weight", Axes("kd", "kd")),
  ("modulation/dense", "proj_out_1", DENSE),
  ("out", "proj_out_2", DENSE),
  ("blocks/modulation/dense", f"{NORM1}.linear", DENSE),
  *(
    (f"blocks/{ours}", tuple(f"transformer_blocks.*.{name}" for name in theirs), DENSE)
    for ours, theirs in (
      ("attention/qkv", ("attn1.to_q", "attn1.to_k", "attn1.to_v")),
      ("attention/out", ("attn1.to_out.0",)),
      ("mlp/in", ("ff.net.0.proj",)),
      ("mlp/out", ("ff.net.2",)),
    )
  ),
)
COPIES = r"transformer_blocks\.[1-9]\d*\.norm1\.emb\..*"  # of block 0's embedders
ONLY = {  # fields of a config.json of which we have one value
  "activation_fn": "gelu-approximate",
  "attention_bias": True,
  "norm_type": "ada_norm_zero",
  "norm_elementwise_affine": False,
  "upcast_attention": False,
  "double_self_attention": False,
  "dropout": 0.0,
}


class Edited(Mapping):
  """Tensors by their names without a prefix, some of them changed as they are read."""

  def __init__(self, tensors: Mapping[str, np.ndarray], prefix: str, edits: Mapping[str, Callable]):
    self._tensors, self._prefix, self._edits = tensors, prefix, edits

  def __getitem__(self, name: str) -> np.ndarray:
    value = self._tensors[self._prefix + name]
    return self._edits[name](value) if name in self._edits else value

  def __iter__(self) -> Iterator[str]:
    return (name.removeprefix(self._prefix) for name in self._tensors)

  def __len__(self) -> int:
    return len(self._tensors)


class Read(NamedTuple):
  """A network, its tensors and their table.   others: a pattern of names that it does not need.   side: of
  its latents, [side, side, channels].
  """

  network: DiT
  tensors: Mapping[str, np.ndarray]
  table: tuple
  others: str
  side: int
  channels: int


def table(swiglu: bool) -> tuple:
  """Where the arrays of a network are in a file of its authors."""
  block = tuple(
    (ours, SWIGLU.get(theirs, theirs) if swiglu else theirs, axes) for ours, theirs, axes in BLOCK
  )
  return (*TABLE, ("blocks", "blocks.*", block))


def read(tensors: Mapping[str, np.ndarray], family: str, heads: int | None = None) -> Read:
  """The network of tensors in their authors' names; `heads` if its width is not a published one.

  Raises:
    UserError: the tensors are of another kind, the number of heads is unknown, or places are not the fixed
      sinusoids.
  """
  prefix = "module." if f"module.{PATCHES}" in tensors else ""  # of a model that several devices trained
  shapes = {name.removeprefix(prefix): shape for name, shape in shapes_of(tensors).items()}
  rules, width = FAMILIES[family], side_of(shapes, PATCHES, 0)
  channels, patch = side_of(shapes, PATCHES, 1), side_of(shapes, PATCHES, 2)
  depth = len({match[1] for name in shapes if (match := re.match(r"blocks\.(\d{1,3})\.", name))})
  swiglu = "blocks.0.mlp.w12.weight" in shapes
  features = side_of(shapes, f"{LAST}.weight", 0)
  doubled = features == 2 * patch**2 * channels
  rms_norm = "blocks.0.norm1.weight" in shapes
  made = DiT(
    block=ModulatedBlock(
      heads=count_heads(shapes, width, heads),
      mlp_ratio=mlp_ratio(shapes, width, swiglu),
      rms_norm=rms_norm,
      swiglu=swiglu,
      qk_norm="blocks.0.attn.q_norm.weight" in shapes,
    ),
    patch=patch,
    width=width,
    depth=min(max(depth, 1), MOST_DEPTH),
    classes=side_of(shapes, "y_embedder.embedding_table.weight", 0) - 1,
    rotary=rules.rotary,
    out_channels=2 * channels if doubled and rules.learns_variance else 0,
  )
  edits = {PATCHES: patch_kernel}
  if doubled and not rules.learns_variance:
    first_half = functools.partial(without_variance, places=patch**2, channels=channels)
    edits |= {f"{LAST}.weight": first_half, f"{LAST}.bias": first_half}
  edited = Edited(tensors, prefix, edits)
  return Read(made, edited, table(swiglu), OTHERS, patch * check_places(edited, width), channels)


def shapes_of(tensors: Mapping[str, np.ndarray]) -> dict[str, tuple[int, ...]]:
  return {name: tuple(tensors[name].shape) for name in tensors}


def side_of(shapes: Mapping[str, tuple[int, ...]], name: str, axis: int) -> int:
  """One side of a tensor; UserError if it is missing or has fewer axes."""
  shape = shapes.get(name, ())
  if len(shape) <= axis:
    raise UserError(
      f"the file has {name} of shape {list(shape)}; expected a DiT in its authors' names: {REMEDY}"
      if shape
      else f"the file lacks {name}; expected a DiT in its authors' names: {REMEDY}"
    )
  return shape[axis]


def patch_kernel(value: np.ndarray) -> np.ndarray:
  """The convolution [D, C, p, p] as a dense layer [D, p p C]."""
  return value.transpose(0, 2, 3, 1).reshape(len(value), -1)


def without_variance(value: np.ndarray, places: int, channels: int) -> np.ndarray:
  """The last layer [places 2 C, ...] without the second half of the channels of each place in a patch."""
  if len(value) != places * 2 * channels:
    return value
  rows = value.reshape(places, 2, channels, *value.shape[1:])[:, 0]
  return rows.reshape(-1, *value.shape[1:])


def count_heads(shapes: Mapping[str, tuple[int, ...]], width: int, heads: int | None) -> int:
  """The heads of attention, which no tensor shows unless queries are normalised."""
  norm = shapes.get("blocks.0.attn.q_norm.weight")
  known = width // norm[0] if norm else HEADS.get(width)
  heads = known if heads is None else heads
  if heads is None:
    published = ", ".join(f"{each} of width {width}" for width, each in HEADS.items())
    raise UserError(f"a width of {width} says nothing about heads (published: {published}); give --heads")
  if heads < 1 or width % heads:
    raise UserError(f"--heads {heads} does not divide a width of {width}; expected a divisor")
  return heads


def mlp_ratio(shapes: Mapping[str, tuple[int, ...]], width: int, swiglu: bool) -> float:
  """The hidden width of the MLP before the two thirds of SwiGLU, over the width."""
  if not swiglu:
    return side_of(shapes, "blocks.0.mlp.fc1.weight", 0) / width
  hidden = side_of(shapes, "blocks.0.mlp.w12.weight", 0) // 2
  whole = next(whole for whole in range(hidden * 3 // 2, 2 * hidden + 2) if int(2 / 3 * whole) >= hidden)
  return whole / width


def check_places(tensors: Mapping[str, np.ndarray], width: int) -> int:
  """The side of the grid of patches, by the stored table of places [1, side^2, D].

  Raises:
    UserError: there is none, or it is not that of fixed sinusoids, which our DiT computes.
  """
  shape = tensors[PLACES].shape if PLACES in tensors else ()
  side = int(shape[1] ** 0.5) if len(shape) == 3 else 0
  if shape != (1, side**2, width) or not 0 < side <= MOST_SIDE:
    raise UserError(f"{PLACES} of the file is {list(shape)}; expected [1, side * side, {width}]: {REMEDY}")
  far = np.abs(np.asarray(tensors[PLACES][0], np.float32) - grid_sinusoids(side, side, width)).max()
  if not far < 0.01:  # of half precision too
    raise UserError(
      f"{PLACES} of the file is up to {far:g} off the fixed sinusoids; "
      "expected those: a network with learned places is not read here"
    )
  return side


def network(config: Mapping[str, Any], as_diffusers: bool = False) -> DiT:
  """The network of a config.json of diffusers; `as_diffusers` as in `read_diffusers`.

  Raises:
    UserError: a field that is none, or that we do not have.
  """
  for name, only in ONLY.items():
    if config.get(name, only) != only:
      raise UserError(f"config.json has {name}={printable(str(config[name])[:80])}; expected {only!r}")
  heads = config_number(config, "num_attention_heads", 16)
  channels = config_number(config, "in_channels", 4)
  doubled = config_choice(config, "out_channels", channels, (channels, 2 * channels)) != channels
  epsilon = config.get("norm_eps", DIFFUSERS_EPSILON)
  if type(epsilon) is not float or not 0 < epsilon < 1:
    raise UserError(f"config.json has norm_eps={printable(str(epsilon)[:40])}; expected a number from 0 to 1")
  return DiT(
    block=ModulatedBlock(heads=heads, mlp_epsilon=epsilon if as_diffusers else 1e-6),
    patch=config_number(config, "patch_size", 2),
    width=heads * config_number(config, "attention_head_dim", 72),
    depth=config_number(config, "num_layers", 28, MOST_DEPTH),
    classes=config_number(config, "num_embeds_ada_norm", 1000),
    frequency_shift=int(as_diffusers),
    out_channels=2 * channels if doubled else 0,
  )


def read_diffusers(
  config: Mapping[str, Any], tensors: Mapping[str, np.ndarray], as_diffusers: bool = False
) -> Read:
  """The network of a folder of diffusers, whose blocks carry equal copies of the embedders.

  as_diffusers: compute what diffusers computes, whose frequencies of time and epsilon of a norm are not
    those that the published weights were trained with.

  Raises:
    UserError: a field that we do not have, or blocks with embedders of their own.
  """
  made = network(config, as_diffusers)
  check_copies(tensors)
  edited = Edited(tensors, "", {"pos_embed.proj.weight": patch_kernel})
  side, channels = (
    config_number(config, "sample_size", 32, MOST_SIDE),
    config_number(config, "in_channels", 4),
  )
  return Read(made, edited, DIFFUSERS, COPIES, side, channels)


def check_copies(tensors: Mapping[str, np.ndarray]) -> None:
  """Raises a UserError if a block's embedders are not those of block 0."""
  for name in tensors:
    if re.fullmatch(COPIES, name):
      first = f"{EMBEDDER}.{name.partition('.emb.')[2]}"
      if first in tensors and not np.array_equal(tensors[name], tensors[first], equal_nan=True):
        raise UserError(
          f"{name} is not equal to {first}; expected one embedder that all blocks share, as DiT has it"
        )
