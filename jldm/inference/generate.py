"""From a request to samples.

model, params = load("runs/digits")
samples = generate(model, params, Request(n=8, given={"label": 3}))
samples.data                                                             # uint8 [8, H, W, C]
"""

from collections.abc import Callable, Iterator, Mapping
import dataclasses
import functools
import numbers
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jldm.config.experiment import Sampling
from jldm.core.errors import UserError
from jldm.core.keys import check_seed, fold_each, row_keys, seed_key
from jldm.core.shapes import batch_rows
from jldm.core.specs import Loaded, batch_shapes
from jldm.core.trees import traced
from jldm.core.words import count_text
from jldm.diffusion.target import refuse_singular
from jldm.distributed import memory, sharding
from jldm.inference.conditions import (
  Branch,
  branches_per_conditioner,
  check_held,
  embed_branches,
  make_branches,
)
from jldm.inference.model import Model, resize_data, resize_model
from jldm.models.codecs.codec import decode_latents
from jldm.objectives.denoiser import bind, ravel, unravel
from jldm.samplers.per_conditioner import PerConditioner
from jldm.samplers.sample import Denoise, draw_start, scan_steps

Array = jax.Array
NUMBERS_BYTES = 16  # of a sample's label and key

SLIPS = {  # what people write for generate(model, params, Request(...), Sampling(...))
  "labels": "Request(n=…, given={'label': …})",
  "label": "Request(n=…, given={'label': …})",
  "n": "Request(n=…)",
  "seed": "Request(seed=…)",
  "size": "Request(size=(H, W))",
  "noise": "Request(noise=…)",
  "negative_label": "Request(against=({'label': …},))",
  "prompt": "Request(n=…, given={'text': …})",
  "negative_prompt": "Request(against=({'text': …},))",
  "guidance": "Sampling(guidance=ClassifierFree(…))",
  "guidance_scale": "Sampling(guidance=ClassifierFree(…))",
  "sampler": "Sampling(sampler=…)",
  "steps": "Sampling(steps=…)",
  "num_inference_steps": "Sampling(steps=…)",
  "grid": "Sampling(grid=Grid(…))",
}


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Request:
  """What a person wants to see; data that a server could send.

  n: how many samples.   seed: of their noise; sample i depends on (seed, rows[i]) and what is given for it
  alone.
  given: the conditions by name, {"label": 3} or {"label": [3, 1]}: one value for all or one per
    sample; what is left out is null. Of latents in parts a part may be given too, {"text": ids};
    {"text": None} is one that is not known, and not drawn.
  against: what guidance pushes away from, one dict per further branch; {} is the null of every
    guided conditioner.
  size: (H, W) if it is not that of the training data.   noise: [n, h, w, c] to start from, standard normal;
  by default drawn.
  rows: the numbers [n] of the samples, by default 0 to n - 1.   estimates: how many steps' estimates of the
  data to keep.
  """

  n: int = 1
  seed: int = 0
  given: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  against: tuple[Mapping[str, Any], ...] = ({},)
  size: tuple[int, int] | None = None
  noise: Any = None
  rows: Any = None
  estimates: int = 0


class Samples(NamedTuple):
  """data, such as uint8 [N, H, W, C]; estimates [N, K, H, W, C], of K of the steps; and how they were drawn.

  Of a codec of several parts both are dicts by part.
  """

  data: Any
  estimates: Any
  provenance: dict


class Setup(NamedTuple):
  """What samplers are called with, for a batch or for all samples; all of it is traced."""

  params: dict
  sampler: Any
  pairs: Array  # [N, 2]
  branches: tuple[Branch, ...]  # [B, ...]
  rule: Any
  transforms: tuple
  keys: Array  # [B]

  def denoise(self, model: Model) -> Denoise:
    """The denoiser with everything bound into it; within jit."""
    branches = embed_branches(model, self.params, self.branches)
    keys_held = fold_each(self.keys, 2)  # 0 and 1 are the two that `draw_start` splits keys into
    denoise = bind(
      model.objective, self.params, branches, self.rule, model.latents(len(self.keys)), keys_held
    )
    for transform in self.transforms:
      denoise = transform(model.process, denoise)
    return denoise

  def arguments(self, model: Model, *x0: Any, pairs: Array | None = None) -> tuple:
    """(process, denoise, sampler, *x0, pairs, keys), as jldm.editing and jldm.samplers take them; within
    jit.
    """
    return (
      model.process,
      self.denoise(model),
      self.sampler,
      *x0,
      self.pairs if pairs is None else pairs,
      self.keys,
    )

  def drawn(self, model: Model) -> Any:
    """The latents [B, ...] that are drawn, as shapes: one array, or those parts of a dict that are not
    given.
    """
    like, held = model.latents(len(self.keys)), self.branches[0].use
    return {name: part for name, part in like.items() if name not in held} if model.parts else like

  def like(self, model: Model) -> jax.ShapeDtypeStruct:
    """What a sampler sees as a shape: the latents [B, ...], or the ravel [B, D] of parts."""
    return jax.eval_shape(ravel, self.drawn(model)) if model.parts else self.drawn(model)

  def decode(self, model: Model, z: Array) -> Any:
    """What a sampler sees -> data in float32: images in [-1, 1]."""
    return decode_latents(Loaded(model.codec, self.params["codec"]), unravel(z, self.drawn(model)))


def set_up(
  model: Model, params: dict, request: Request, sampling: Sampling, n: int, keys: Array | None = None
) -> Setup:
  """A request and a sampling as arrays, for n samples: the one place where both are checked.

  Raises:
    UserError: what `make_branches`, `sampling_pairs` and the rules of guidance refuse, or a seed or rows
    that are
      not legal.
  """
  rule, against = sampling.guidance, request.against
  if isinstance(rule, PerConditioner):
    against = branches_per_conditioner(model, rule, request.given, against[0] if against else {})
  given = make_branches(model, request.given, against, n)
  check_held(model, given)
  if keys is None:
    keys = row_keys(seed_key(request.seed), check_rows(request.rows, n))
  return Setup(
    params,
    traced(sampling.sampler),
    sampling_pairs(model, sampling),
    given,
    traced(rule),
    traced(sampling.transforms),
    keys,
  )


def sampling_pairs(model: Model, sampling: Sampling) -> Array:
  """The pairs (t, s) [N, 2] that sampling steps over.

  Raises:
    UserError: steps < 1, a grid that the process cannot have, or a network that says nothing at one
      of the times.
  """
  pairs = jnp.asarray(sampling.grid(model.process, sampling.steps), jnp.float32)
  if pairs.ndim != 2 or pairs.shape[-1] != 2 or not len(pairs):
    raise UserError(f"grid of shape {list(pairs.shape)}; expected pairs of times [N, 2]")
  times = np.asarray(pairs)
  if illegal := times[~((times >= 0) & (times <= 1))].tolist():
    raise UserError(f"a grid with time {illegal[0]:g}; expected times from 0 (data) to 1 (noise)")
  evaluated = np.asarray(pairs).ravel()  # at s too by some samplers, but never of clean data
  clean = np.asarray(model.process.sigma(jnp.asarray(evaluated)) == 0) & (np.arange(len(evaluated)) % 2 == 1)
  refuse_singular(model.process, model.objective.parametrization, evaluated[~clean])
  return pairs


@functools.partial(jax.jit, static_argnums=0, static_argnames="shown")
def sample_batch(
  model: Model, setup: Setup, noise: Array | None = None, shown: tuple[int, ...] = ()
) -> tuple[Any, Any, Array]:
  """Samples as the codec finishes them, such as images uint8 [B, H, W, C]; the estimates of the data
  at the steps `shown`, [B, K, H, W, C]; and whether every value of a sample is finite, bool [B].

  Compiled once per batch size, step count, and kind of sampler, guidance and request: all else is traced.
  """
  z, keys = draw_start(model.process, setup.like(model), setup.pairs, setup.keys)
  z = z if noise is None else model.process.sigma(setup.pairs[0, 0]) * noise
  keep = (lambda state: state.x0) if shown else (lambda state: None)
  state, x0 = scan_steps(model.process, setup.denoise(model), setup.sampler, z, setup.pairs, keys, keep)
  decoded = setup.decode(model, state.z)
  each = [jnp.isfinite(part).all(tuple(range(1, part.ndim))) for part in jax.tree.leaves(decoded)]
  data, finite = model.codec.finish(decoded), jnp.stack(each).all(0)
  if not shown:
    return data, jax.tree.map(lambda part: part[:, None][:, :0], data), finite
  estimates = jax.lax.map(lambda z: model.codec.finish(setup.decode(model, z)), x0[jnp.array(shown)])
  return data, jax.tree.map(lambda part: jnp.moveaxis(part, 0, 1), estimates), finite


def generate(
  model: Model,
  params: dict,
  request: Request | None = None,
  sampling: Sampling | None = None,
  *,
  batch_size: int = 250,
  devices: sharding.Devices = None,
  progress: Any = iter,
  **slips: Any,
) -> Samples:
  """Draws request.n samples.

  request: Request(n, seed, given, …), what to draw.
  sampling: Sampling(sampler, steps, grid, guidance, transforms), how; by default the model's own,
    `model.sampling`.
  batch_size: samples at a time, which changes memory and no sample.   devices: how many share a batch.
  progress: wraps the iterator over batches (tqdm).

  Sample i depends on (seed, rows[i]) and its conditions alone, not on the batch size or the devices
  (to one grey level).

  Raises:
    UserError: a request or a sampling that the model cannot serve, and other words for their fields.
  """
  if slips:
    name = next(iter(slips))
    raise UserError(
      f"generate(…, {name}=…): expected {SLIPS.get(name, 'a field of Request or of Sampling')}, "
      "as in generate(model, params, Request(…), Sampling(…))"
    )
  check_kinds(request, sampling)
  sampling = complete_sampling(model, sampling)
  options = dict(batch_size=batch_size, devices=devices, progress=progress)
  _, drawn = generate_batches(model, params, request, sampling, **options)
  join = lambda *parts: np.concatenate(parts)
  data, estimates, finite = jax.tree.map(join, *(batch for _, batch in drawn))
  check_finite(finite)
  return Samples(data, estimates, sampling_provenance(request, sampling))


def complete_sampling(model: Model, sampling: Sampling | None) -> Sampling:
  """How to draw: by default the model's own sampling, or its sampler."""
  sampling = model.sampling if sampling is None else sampling
  if sampling.sampler is None:
    sampling = dataclasses.replace(sampling, sampler=model.sampling.sampler)
  return sampling


class Batch(NamedTuple):
  """Samples of a batch as `Samples` has them, and whether every value of each is finite, bool [B]."""

  data: Any
  estimates: Any
  finite: np.ndarray


def generate_batches(
  model: Model,
  params: dict,
  request: Request,
  sampling: Sampling | None,
  *,
  batch_size: int,
  devices: sharding.Devices = None,
  progress: Any = iter,
  is_there: Callable[[range], bool] = lambda rows: False,
) -> tuple[list[range], Iterator[tuple[range, Batch]]]:
  """As `generate`: the rows of every batch, and an iterator that draws those batches that are not there.

  Raises:
    UserError: as `generate`, before anything is drawn.
  """
  check_count("batch_size", batch_size)
  check_number(request.n)
  sampling = complete_sampling(model, sampling)
  mesh, batch_size = sharding.mesh_for_samples(request.n, batch_size, devices)
  if request.size is not None:
    size = tuple(request.size)
    check_batch(resize_data(model, size), params, batch_size // sharding.batch_shard_count(mesh))
    model = resize_model(model, size)
  setup = set_up(model, {}, request, sampling, request.n)
  noise = check_noise(request, setup.like(model))
  shown = shown_steps(len(setup.pairs), request.estimates)
  whole = (setup.sampler, setup.pairs, setup.rule, setup.transforms)
  sampler, pairs, rule, transforms = sharding.replicate(mesh, whole)
  params, drawn = sharding.shard(mesh, params), sharding.with_mesh(mesh, sample_batch)
  per_sample = (setup.branches, jax.random.key_data(setup.keys), noise)
  starts = range(0, request.n, batch_size)
  batches = [range(start, min(start + batch_size, request.n)) for start in starts]

  def draw() -> Iterator[tuple[range, Batch]]:
    for rows in progress([rows for rows in batches if not is_there(rows)]):
      padded = batch_rows(rows.start, batch_size, request.n)
      given, keys, begun = sharding.shard_batch(
        mesh, jax.tree.map(lambda x, padded=padded: np.asarray(x)[padded], per_sample)
      )
      one = Setup(params, sampler, pairs, given, rule, transforms, jax.random.wrap_key_data(keys))
      samples = sharding.fetch(drawn(model, one, begun, shown=shown))
      yield rows, Batch(*jax.tree.map(lambda x, rows=rows: x[: len(rows)], samples))

  return batches, draw()


def check_number(n: int) -> None:
  """Raises a UserError if the labels and keys of n samples do not fit into memory."""
  memory.check_memory(
    f"n={n}", NUMBERS_BYTES * n, "draw fewer", memory.Memory(memory.host_memory(), shared=True)
  )


def check_batch(model: Model, params: dict, count: int) -> None:
  """Raises a UserError if `count` samples at a time cannot fit into memory.

  What is counted: their latents and their data in float32, or the largest operation of decoding them.
  """
  latents, data = model.latents(count), batch_shapes(model.data, count)
  there, floats = memory.available_memory(), [x.size for x in jax.tree.leaves((latents, data))]
  shapes = ", ".join("x".join(map(str, x.shape)) for _, x in model.data if len(x.shape) == 3)
  what = f"{count_text(count, 'sample')} of {shapes} at a time"
  remedy = "make --size or --batch-size smaller, or decode with --tile 32"
  memory.check_memory(what, 4 * sum(floats), remedy, there)
  largest = memory.largest_operation(model.codec.decode, params["codec"], latents)
  memory.check_memory(what, largest, remedy, there)


def check_finite(finite: np.ndarray) -> None:
  """Raises a ValueError if a sample, finite [N], has a value that is not finite."""
  if not finite.all():
    raise ValueError(
      f"{np.count_nonzero(~finite)} of {len(finite)} samples have values that are not finite; expected "
      f"numbers"
    )


def check_count(name: str, value: Any, least: int = 1) -> None:
  """Raises a UserError unless a value is a whole number of at least `least`."""
  if not isinstance(value, numbers.Integral) or isinstance(value, bool) or value < least:
    raise UserError(f"{name}={value!r}; expected at least {least}, a whole number")


def check_size(size: Any) -> None:
  """Raises a UserError unless a size is None, for that of the training data, or two sides."""
  whole = lambda side: isinstance(side, numbers.Integral) and not isinstance(side, bool) and side >= 0
  if size is not None and not (isinstance(size, (tuple, list)) and len(size) == 2 and all(map(whole, size))):
    raise UserError(f"size={size!r}; expected (height, width), two whole numbers, such as (32, 32)")


def check_kinds(request: Any, sampling: Any) -> None:
  """Checks a request and a sampling that somebody gives, but for what a model must know.

  Raises:
    UserError: something else in their place, or numbers of the request that are not legal.
  """
  if not isinstance(request, Request):
    raise UserError(
      f"{request!r} in the place of the request; expected Request(n=8, seed=0, given={{'label': 3}})"
    )
  check_count("n", request.n)
  check_count("estimates", request.estimates, 0)
  check_size(request.size)
  check_seed(request.seed)
  if sampling is not None and not isinstance(sampling, Sampling):
    raise UserError(
      f"{sampling!r} in the place of the sampling; expected Sampling(steps=20, guidance=ClassifierFree(2.0))"
    )


def check_rows(rows: Any, n: int) -> np.ndarray:
  """The numbers of n samples, uint32 [n]."""
  rows = np.arange(n) if rows is None else np.asarray(rows)
  if rows.shape != (n,) or not np.issubdtype(rows.dtype, np.integer) or rows.min() < 0 or rows.max() >= 2**32:
    raise UserError(
      f"rows {rows.dtype} of shape {list(rows.shape)}; expected [{n}] whole numbers from 0 to {2**32 - 1}"
    )
  return rows.astype(np.uint32)


def check_noise(request: Request, like: jax.ShapeDtypeStruct) -> np.ndarray | None:
  if request.noise is None:
    return None
  noise, expected = np.asarray(request.noise, np.float32), like.shape
  if noise.shape != expected:
    raise UserError(f"noise of shape {list(noise.shape)}; expected {list(expected)}, standard normal")
  if not np.isfinite(noise).all():
    raise UserError("noise with values that are not finite; expected standard normal numbers")
  return noise


def shown_steps(steps: int, count: int) -> tuple[int, ...]:
  """`count` of the steps, evenly, the first and the last among them."""
  return tuple(int(step) for step in np.unique(np.linspace(0, steps - 1, count).round()))


def sampling_provenance(request: Request, sampling: Sampling) -> dict:
  """How samples were drawn, as data."""
  return {
    "seed": request.seed,
    "steps": sampling.steps,
    "sampler": repr(sampling.sampler),
    "grid": repr(sampling.grid),
    "guidance": repr(sampling.guidance),
  }
