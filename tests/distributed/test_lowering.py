"""The training step of every config, at its own size, and the sampler on a mesh lower for TPU and CUDA
where neither is.
"""

import jax
from jax import export
import jax.numpy as jnp
import pytest

from jldm.config.experiment import Sampling
from jldm.distributed import sharding
from jldm.inference.generate import Request, sample_batch, set_up
from jldm.inference.model import StagePlace, build_model, codec_shapes, denoiser_shapes
from jldm.runs import validate
from jldm.samplers.guidance import ClassifierFree
from jldm.train.step import make_step
from tests.configs import OF_PUBLISHED, ROOT, config

NAMES = sorted({path.stem for path in (ROOT / "configs").glob("*.py")} - {*OF_PUBLISHED})
QUICK = {("digits", "denoiser")}  # the others are traced for seconds each


def marked(name: str, stage: str) -> object:
  return pytest.param(name, stage, marks=[] if (name, stage) in QUICK else pytest.mark.slow)


@pytest.mark.parametrize(
  "name, stage", [marked(name, stage) for name in NAMES for stage in config(name).names]
)
def test_the_step_lowers_for_accelerators(name, stage):
  experiment = config(name)
  part = experiment.stage(stage)
  state, batch, frozen, _ = validate.trace_one_loss(StagePlace(experiment, part))
  step = make_step(part.objective.loss, part.optimizer.build(part.steps), part.ema, part.accumulate)
  key = jax.eval_shape(jax.random.key, 0)
  lowered = export.export(step, platforms=("tpu", "cuda"))(state, batch, key, frozen)
  assert lowered.platforms == ("tpu", "cuda")
  arguments = jax.tree.leaves((state, batch, key, frozen))
  assert len(lowered.in_avals) == len(arguments)


def test_the_sampler_lowers_for_accelerators_on_a_mesh():
  """Guidance, the walk and decoding as one program, with parameters and samples split as `generate` splits
  them.
  """
  model = build_model(config("digits"))
  mesh = sharding.mesh_for(8, sharding.Layout(8, fsdp=2, tensor=2))
  at = lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place)
  params = denoiser_shapes(model) | {"codec": codec_shapes(model)}
  params = jax.tree.map(at, params, sharding.shardings_like(mesh, params))
  assert {axis for leaf in jax.tree.leaves(params) for axis in leaf.sharding.spec} >= {"fsdp", "tensor"}
  sampling = Sampling(steps=4, guidance=ClassifierFree(2.0))
  setup = set_up(model, {}, Request(n=8, given={"label": jnp.zeros(8, jnp.int32)}), sampling, 8)
  split = {"branches": sharding.batch_sharding(mesh), "keys": sharding.batch_sharding(mesh)}
  place = lambda name: split.get(name, sharding.replicated_sharding(mesh))
  shapes = lambda name, tree: jax.tree.map(lambda x: at(jnp.asarray(x), place(name)), tree)
  setup = type(setup)(**{name: shapes(name, part) for name, part in setup._asdict().items()})._replace(
    params=params
  )
  lowered = sharding.with_mesh(mesh, export.export(sample_batch, platforms=("tpu", "cuda")))(model, setup)
  assert lowered.platforms == ("tpu", "cuda") and lowered.nr_devices == 8
