"""The training step of every config, at its own size, and the sampler on a mesh lower for TPU and CUDA where neither is."""

import jax
from jax import export
import jax.numpy as jnp
import pytest

from jldm.config.presets import make_sampler
from jldm.core.keys import row_keys
from jldm.core.trees import traced
from jldm.distributed import sharding
from jldm.inference import pipeline
from jldm.runs import validate
from jldm.samplers.guidance import ClassifierFree
from jldm.storage import workdir as workdirs
from jldm.train.step import make_step
from tests.configs import ROOT, config

NAMES = sorted(path.stem for path in (ROOT / "configs").glob("*.py"))
QUICK = {("digits", "denoiser")}  # the others are traced for seconds each


def marked(name: str, stage: str) -> object:
  return pytest.param(name, stage, marks=[] if (name, stage) in QUICK else pytest.mark.slow)


@pytest.mark.parametrize("name, stage", [marked(name, stage) for name in NAMES for stage in workdirs.STAGES])
def test_the_step_lowers_for_accelerators(name, stage):
  experiment = config(name)
  part = getattr(experiment, stage)
  state, batch, frozen = validate.rehearse(experiment, pipeline.of(experiment), stage)
  step = make_step(part.objective.loss, part.optimizer.build(part.steps), part.ema, part.accumulate)
  key = jax.eval_shape(jax.random.key, 0)
  lowered = export.export(step, platforms=("tpu", "cuda"))(state, batch, key, frozen)
  assert lowered.platforms == ("tpu", "cuda")
  arguments = jax.tree.leaves((state, batch, key, frozen))
  assert len(lowered.in_avals) == len(arguments)


def test_the_sampler_lowers_for_accelerators_on_a_mesh():
  """Guidance, the walk and decoding as one program, with parameters and samples split as `pipeline.trajectory` splits them."""
  model = pipeline.of(config("digits"))
  mesh = sharding.mesh_for(8, sharding.Layout(8, fsdp=2, tensor=2))
  at = lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place)
  params = {"denoiser": pipeline.denoiser_shapes(model), "codec": pipeline.codec_shapes(model)}
  params = jax.tree.map(at, params, sharding.split(mesh, params))
  assert {axis for leaf in jax.tree.leaves(params) for axis in leaf.sharding.spec} >= {"fsdp", "tensor"}
  each = jax.eval_shape(lambda: (jnp.zeros(8, jnp.int32), row_keys(jax.random.key(0), jnp.arange(8))))
  labels, keys = jax.tree.map(lambda x: at(x, sharding.batched(mesh)), each)
  whole = traced(make_sampler("dpmpp_2m")), pipeline.times(model, 4), traced(ClassifierFree(2.0)), jnp.int32(-1)
  sampler, pairs, rule, negative = jax.tree.map(lambda x: at(x, sharding.replicated(mesh)), whole)
  lower = sharding.on(mesh, export.export(pipeline.draw, platforms=("tpu", "cuda")))
  lowered = lower(model, params, sampler, labels, pairs, rule, negative, keys)
  assert lowered.platforms == ("tpu", "cuda") and lowered.nr_devices == 8
