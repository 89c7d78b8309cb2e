"""What cannot fit into memory is refused before it is allocated, with what it needs and what there is."""

import resource

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jldm.cli import main
from jldm.config.override import override
from jldm.core.errors import UserError, is_out_of_memory
from jldm.distributed import memory
from jldm.inference import canvas
from jldm.inference.generate import Request, generate
from jldm.inference.model import StagePlace
from jldm.models.codecs.tiled import Tiled
from jldm.runs import validate
from tests.configs import config, shrunk
from tests.edits import model_of

f32 = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)


@pytest.fixture
def small(monkeypatch):
  """A machine with so much memory."""
  return lambda size: monkeypatch.setattr(memory, "host_memory", lambda: size)


@pytest.mark.parametrize(
  ("count", "text"),
  [(0, "0 bytes"), (999, "999 bytes"), (1500, "1.5 kB"), (2.5e9, "2.5 GB"), (1e25, "1e+07 EB")],
)
def test_bytes_in_words(count, text):
  assert memory.bytes_text(count) == text


def test_the_largest_operation_is_seen_within_everything_that_a_function_calls():
  product = lambda a, b: a @ b
  expected = 4 * (3 * 5 + 5 * 7 + 3 * 7)
  within = {
    "plain": product,
    "jit": jax.jit(product),
    "checkpoint": jax.checkpoint(product),
    "cond": lambda a, b: jax.lax.cond(a[0, 0] > 0, product, lambda a, b: 2 * product(a, b), a, b),
    "scan": lambda a, b: jax.lax.scan(lambda c, _: (c, product(a, b)), 0.0, None, 2),
    "smaller first": lambda a, b: product(a[:1], b[:, :1]).sum() + product(a, b),
  }
  for name, function in within.items():
    assert memory.largest_operation(function, f32(3, 5), f32(5, 7)) == expected, name
  assert memory.largest_operation(jnp.sin, f32(1000)) == 0


def test_the_limits_of_the_process_count(monkeypatch):
  monkeypatch.setattr(resource, "getrlimit", lambda kind: (12345 if kind == resource.RLIMIT_AS else -1, -1))
  assert memory.host_memory() == 12345


def test_a_network_larger_than_memory_is_refused_with_what_helps(small):
  """256 x 1024^2 parameters and their like would wait, or be killed; nothing is allocated here."""
  experiment = override(shrunk(config("digits")), "denoiser.objective.network.width", "65536")
  at = StagePlace(experiment, experiment.stage("denoiser"))
  traced = validate.trace_one_loss(at)
  small(14e9)
  with pytest.raises(UserError) as error:
    validate.check_fits(at, 1, traced)
  text, kept = str(error.value), memory.tree_bytes(traced.state) + memory.tree_bytes(traced.state.params)
  assert (
    f"averages and gradients {memory.bytes_text(kept)}) needs at least" in text and "are 14 GB free" in text
  )
  assert all(
    word in text for word in ("denoiser.batch_size", "denoiser.accumulate", "remat='full'", "--fsdp")
  )
  small(10 * kept)
  validate.check_fits(at, 1, traced)


def test_a_draw_that_cannot_fit_is_refused(small):
  model, params = model_of(shrunk(config("fashion_mnist")))
  with pytest.raises(UserError, match=r"n=10000000000000 needs at least 160 TB of memory, and there are"):
    generate(model, params, Request(n=10**13))
  with pytest.raises(UserError, match=r"1 sample of 1000000x1000000x1 at a time needs at least .* --tile 32"):
    generate(model, params, Request(size=(1000000, 1000000)), devices=1)
  small(1e6)
  with pytest.raises(UserError, match=r"4 samples of 512x512x1 at a time .* and there are 1 MB free"):
    generate(model, params, Request(n=4, size=(512, 512)), devices=1)


def test_the_command_line_refuses_them_too(unbroken, tmp_path, capsys):
  common = ["sample", "--workdir", str(unbroken), "--out", str(tmp_path / "O")]
  for options, text in {"--n 10000000000000": "160 TB", "--size 1000000": "of 1000000x1000000x1"}.items():
    assert main([*common, *options.split()]) == 2
    error = capsys.readouterr().err
    assert text in error and error.count("\n") == 1 and not (tmp_path / "O").exists()


def test_a_photograph_that_does_not_fit_is_edited_in_tiles(small):
  model, params = model_of(shrunk(config("fashion_mnist")))
  photograph = np.zeros((1, 300, 400, 1), np.uint8)
  assert canvas.fit_codec(model, params, photograph) == (model, "")
  small(1e5)
  tiled, line = canvas.fit_codec(model, params, photograph)
  assert isinstance(tiled.codec, Tiled) and tiled.codec.codec == model.codec
  assert (
    line.startswith("400x300 pixels in one piece need at least ") and "100 kB free: in tiles of 256" in line
  )
  assert canvas.fit_codec(model, params, photograph[:, :16, :16]) == (model, ""), "no larger than in training"


@pytest.mark.parametrize(
  "error",
  [MemoryError("Unable to allocate 9 TiB"), jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: of 9 TiB")],
)
def test_memory_that_runs_out_is_one_line(error, monkeypatch, capsys):
  from jldm.cli import sample

  def fail(args):
    raise error

  monkeypatch.setattr(sample, "main", fail)
  assert is_out_of_memory(error) and not is_out_of_memory(RuntimeError("INTERNAL"))
  assert main(["sample", "--workdir", "W"]) == 2
  text = capsys.readouterr().err
  assert "9 TiB; make --batch-size or --size smaller, or decode with --tile" in text and text.count("\n") == 1
