"""A network that breaks the contract of denoisers is refused in one line; one that keeps it is not."""

from typing import Any

from flax import linen as nn, nnx
import jax
import jax.numpy as jnp
import pytest

from jldm.core.errors import UserError
from jldm.core.specs import Output
from jldm.models.denoisers.contract import check_network

struct = lambda dtype, *shape: jax.ShapeDtypeStruct(shape, dtype)
Z = struct(jnp.float32, 2, 8, 8, 4)
INPUTS = {"label": struct(jnp.int32, 2), "tokens": struct(jnp.float32, 2, 5, 16)}


def toy(call, **fields) -> nn.Module:
  """A linen network of one method, with these fields."""
  annotations = dict.fromkeys(fields, Any)
  return type("Toy", (nn.Module,), {"__call__": nn.compact(call), "__annotations__": annotations, **fields})()


def refused(network, z=Z, inputs=INPUTS) -> str:
  with pytest.raises(UserError) as error:
    check_network(network, z, inputs)
  assert "\n" not in str(error.value)
  return str(error.value)


def good(self, z, noise_level, inputs, estimate=None):
  x = nn.Dense(z.shape[-1])(z + inputs["tokens"].mean() + noise_level[:, None, None, None])
  return Output(x if estimate is None else x + estimate)


def joint(self, z, noise_level, inputs, estimate=None):
  return Output(
    {
      name: nn.Dense(part.shape[-1])(part) * noise_level[name].reshape(-1, *[1] * (part.ndim - 1))
      for name, part in z.items()
    }
  )


def returning(make):
  """A network that returns `make` of its output of the shape of z."""

  def call(self, z, noise_level, inputs, estimate=None):
    return make(nn.Dense(z.shape[-1])(z))

  return toy(call)


@pytest.mark.parametrize(
  "network",
  [
    toy(good),
    toy(good, width=3, name_of=("a", "b")),
    toy(lambda self, z, level, given, *, estimate=None: good(self, z, level, given, estimate)),
    returning(lambda x: Output(x, log_variance=x[:, 0, 0, 0])),
    returning(lambda x: Output(x, variance=x)),
  ],
)
def test_a_network_that_keeps_the_contract_passes(network):
  assert check_network(network, Z, INPUTS) is None


def test_latents_in_parts_have_a_noise_level_each():
  parts = {"image": Z, "text": struct(jnp.float32, 2, 5, 3)}
  check_network(toy(joint), parts, INPUTS)
  assert "image: float32 [2, 8, 8, 4], text: float32 [2, 5, 3]" in refused(
    toy(lambda self, z, noise_level, inputs, estimate=None: Output(nn.Dense(3)(z["text"]))), parts
  )


@pytest.mark.parametrize(
  ("call", "texts"),
  [
    (
      lambda self, z, noise_level: Output(nn.Dense(4)(z)),
      ["Toy.__call__(self, z, noise_level)", "too many positional"],
    ),
    (lambda self, z, noise_level, inputs: Output(nn.Dense(4)(z)), ["'estimate'"]),
    (
      lambda self, z, noise_level, inputs, estimate: Output(nn.Dense(4)(z)),
      ["missing a required argument: 'estimate'"],
    ),
    (
      lambda self, z, noise_level, inputs, train, estimate=None: Output(nn.Dense(4)(z)),
      ["missing a required argument: 'train'"],
    ),
  ],
)
def test_a_wrong_signature(call, texts):
  text = refused(toy(call))
  assert all(part in text for part in [*texts, "network(z, noise_level, inputs, estimate=None) -> Output"])


@pytest.mark.parametrize(
  ("make", "came", "legal"),
  [
    (lambda x: x, "returns float32 [2, 8, 8, 4]", "jldm.core.specs.Output(value)"),
    (
      lambda x: (x, x),
      "returns 0: float32 [2, 8, 8, 4], 1: float32 [2, 8, 8, 4]",
      "jldm.core.specs.Output(value)",
    ),
    (lambda x: None, "returns nothing", "jldm.core.specs.Output(value)"),
    (lambda x: Output(x[..., :3]), "value float32 [2, 8, 8, 3]", "float32 [2, 8, 8, 4], like z"),
    (
      lambda x: Output(jnp.concatenate([x, x], -1)),
      "value float32 [2, 8, 8, 8]",
      "float32 [2, 8, 8, 4], like z",
    ),
    (lambda x: Output(x[0]), "value float32 [8, 8, 4]", "float32 [2, 8, 8, 4], like z"),
    (lambda x: Output(x.astype(jnp.bfloat16)), "value bfloat16 [2, 8, 8, 4]", "float32 [2, 8, 8, 4], like z"),
    (lambda x: Output({"image": x}), "value image: float32 [2, 8, 8, 4]", "float32 [2, 8, 8, 4], like z"),
    (lambda x: Output(None), "value nothing", "float32 [2, 8, 8, 4], like z"),
    (lambda x: Output(x, x[:, :1, :1, :1]), "log_variance float32 [2, 1, 1, 1]", "float32 [2]"),
    (lambda x: Output(x, x[0, 0, 0, 0]), "log_variance float32 []", "float32 [2]"),
    (lambda x: Output(x, None, x[..., :2]), "variance float32 [2, 8, 8, 2]", "float32 [2, 8, 8, 4], like z"),
  ],
)
def test_a_wrong_output(make, came, legal):
  text = refused(returning(make))
  assert came in text and legal in text and "Toy(z, noise_level, inputs)" in text


def test_an_output_that_an_estimate_changes():
  call = lambda self, z, noise_level, inputs, estimate=None: Output(
    nn.Dense(4)(z) if estimate is None else z[..., :1]
  )
  assert "Toy(z, noise_level, inputs, estimate) returns value float32 [2, 8, 8, 1]" in refused(toy(call))


def test_parameters_that_an_estimate_changes():
  def call(self, z, noise_level, inputs, estimate=None):
    return Output(nn.Dense(4)(z if estimate is None else jnp.concatenate([z, estimate], -1)))

  assert "Toy(z, noise_level, inputs, estimate) does not take" in refused(toy(call))


@pytest.mark.parametrize(
  ("call", "texts"),
  [
    (
      lambda self, z, noise_level, inputs, estimate=None: Output(nn.Dense(4)(inputs["image"])),
      ["KeyError", "image", "label: int32 [2]"],
    ),
    (
      lambda self, z, noise_level, inputs, estimate=None: Output(nn.Dense(4)(z) + jnp.ones((2, 7, 7, 1))),
      ["[2, 8, 8, 4]", "TypeError"],
    ),
    (lambda self, z, noise_level, inputs, estimate=None: Output(1 / 0), ["ZeroDivisionError"]),
  ],
)
def test_an_error_within(call, texts):
  text = refused(toy(call))
  assert all(part in text for part in ["Toy", "does not take z float32 [2, 8, 8, 4]", *texts])


def test_what_else_it_keeps_besides_parameters():
  def call(self, z, noise_level, inputs, estimate=None):
    return Output(nn.BatchNorm(use_running_average=False)(nn.Dense(4)(z)))

  text = refused(toy(call))
  assert "batch_stats" in text and "params alone" in text
  assert "no parameters" in refused(toy(lambda self, z, noise_level, inputs, estimate=None: Output(z)))


@pytest.mark.parametrize(
  ("field", "texts"),
  [({"widths": [1, 2]}, ["Toy.widths is list", "a tuple"]), ({"table": {"a": 1}}, ["Toy.table is dict"])],
)
def test_what_has_no_hash(field, texts):
  ((name, value),) = field.items()
  network = toy(good, **{name: None}).clone(**{name: value})
  text = refused(network)
  assert all(part in text for part in texts) and "no hash" in text


class Nnx(nnx.Module):
  def __call__(self, z, noise_level, inputs, estimate=None):
    return Output(z)


class Silent(nn.Module):
  width: int = 3


@pytest.mark.parametrize(
  ("network", "text"),
  [
    (Nnx(), "network is Nnx, a flax.nnx module; expected a flax.linen Module"),
    (Nnx, "network is the class Nnx; expected an object of it"),
    (Silent, "network is the class Silent; expected an object of it, such as Silent()"),
    (Silent(), "Silent has no __call__; expected network(z, noise_level, inputs, estimate=None)"),
    (
      lambda z, noise_level, inputs, estimate=None: Output(z),
      "network is of function; expected a flax.linen Module",
    ),
    (None, "network is of NoneType; expected a flax.linen Module"),
  ],
)
def test_what_is_no_linen_module(network, text):
  assert text in refused(network)


def test_nothing_is_computed_or_allocated():
  def call(self, z, noise_level, inputs, estimate=None):
    assert not isinstance(z, jax.Array) or isinstance(z, jax.core.Tracer)
    return Output(nn.Dense(z.shape[-1])(z))

  check_network(toy(call), struct(jnp.float32, 2, 1 << 20, 1 << 20, 4), INPUTS)
