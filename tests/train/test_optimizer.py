import dataclasses
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jldm.core.errors import UserError
from jldm.train.optimizer import Adafactor, AdamW, Constant, Muon, WarmupCosine
from tests.networks import quick

EACH = (AdamW, Adafactor, Muon)
SHAPES = {  # of a transformer with scanned blocks, and a convolution
  "blocks": {"mlp": {"in": {"kernel": (3, 8, 12), "bias": (3, 12)}}, "qkv": {"kernel": (3, 8, 8)}},
  "conv": {"kernel": (3, 3, 4, 4)},
  "in": {"kernel": (6, 8), "bias": (8,)},
  "label": {"table": (5, 8)},
  "level": {"kernel": (8, 8)},
  "out": {"kernel": (8, 6)},
}


def tree(seed: int, scale: float = 1.0) -> dict:
  rng = np.random.default_rng(seed)
  draw = lambda shape: np.float32(scale * rng.normal(size=shape))
  return jax.tree.map(draw, SHAPES, is_leaf=lambda x: isinstance(x, tuple))


def paths(tree) -> dict:
  return {
    jax.tree_util.keystr(path, simple=True, separator="/"): x
    for path, x in jax.tree_util.tree_leaves_with_path(tree)
  }


def train(optimizer, steps: int = 3, scale: float = 1.0, params=None):
  """(params, state) after gradients that are noise; the same noise every time."""
  tx, params = optimizer.build(steps), tree(0) if params is None else params
  state, update = tx.init(params), quick(tx.update)
  for n in range(steps):
    updates, state = update(tree(n + 1, scale), state, params)
    params = optax.apply_updates(params, updates)
  return jax.device_get(params), jax.device_get(state)


def moved(params) -> set:
  start = paths(tree(0))
  return {path for path, x in paths(params).items() if (x != start[path]).any()}


def rates(schedule, steps, until=None):
  return np.array([schedule.build(steps)(n) for n in range(until or steps + 1)])


def test_constant():
  np.testing.assert_allclose(rates(Constant(peak=2.0, warmup_steps=4), 8), [0, 0.5, 1, 1.5, 2, 2, 2, 2, 2])
  np.testing.assert_allclose(rates(Constant(peak=2.0), 3), [2, 2, 2, 2])


@pytest.mark.parametrize("end", [0.0, 0.3])
def test_a_cosine_falls_evenly_about_its_middle_after_a_linear_warmup(end):
  each = rates(WarmupCosine(peak=2.0, end=end, warmup_steps=4), 20)
  np.testing.assert_allclose(each[:5], [0, 0.5, 1, 1.5, 2], rtol=1e-6)
  np.testing.assert_allclose(each[4:] + each[:3:-1], 2 + end, rtol=1e-5)
  np.testing.assert_allclose((each[8] - end) / (2 - end), (2 + 2**0.5) / 4, rtol=1e-5)  # a quarter of the way


def test_after_the_last_step_the_end_holds():
  np.testing.assert_allclose(
    rates(WarmupCosine(peak=2.0, end=0.3, warmup_steps=4), 10, 15)[10:], 0.3, rtol=1e-6
  )


@pytest.mark.parametrize("steps", [1, 2, 3, 5, 10])
@pytest.mark.parametrize("warmup", [0, 1, 5, 10, 100])
def test_any_steps_with_any_warmup(steps, warmup):
  for schedule in (WarmupCosine(peak=2.0, warmup_steps=warmup), Constant(peak=2.0, warmup_steps=warmup)):
    each = rates(schedule, steps, steps)
    assert np.isfinite(each).all() and (each >= 0).all() and (each <= 2).all()
    if warmup < steps or isinstance(schedule, WarmupCosine):
      assert each.max() == 2, "the peak is reached"


@pytest.mark.parametrize("scale", [0.1, 1.0, 1e3])
def test_the_first_step_of_adam_is_the_sign_of_the_gradient(scale):
  params = train(AdamW(schedule=Constant(peak=0.1), clip_norm=0.0), 1, scale)[0]
  sign = jax.tree.map(np.sign, tree(1))
  jax.tree.map(lambda a, b, s: np.testing.assert_allclose(a - b, -0.1 * s, atol=2e-3), params, tree(0), sign)


def test_the_schedule_is_walked_by_updates():
  tx = AdamW(schedule=WarmupCosine(peak=1.0, warmup_steps=2), clip_norm=0).build(6)
  state, sizes = tx.init(jnp.zeros(1)), []
  for _ in range(6):
    updates, state = tx.update(jnp.ones(1), state, jnp.zeros(1))
    sizes.append(-float(updates[0]))
  np.testing.assert_allclose(sizes, rates(WarmupCosine(peak=1.0, warmup_steps=2), 6, 6), atol=1e-4)


@pytest.mark.parametrize("clip_norm, weight_decay, rtol", [(0.0, 0.1, 0), (0.5, 0.1, 1e-5), (1e6, 0.0, 1e-5)])
def test_adamw_is_that_of_optax(clip_norm, weight_decay, rtol):
  """Bit for bit; with clipping, which is one product here and two steps there, to rounding."""
  optimizer, params = AdamW(weight_decay=weight_decay, clip_norm=clip_norm), tree(0)
  tx = optax.adamw(WarmupCosine().build(4), 0.9, 0.999, weight_decay=weight_decay)
  tx = optax.chain(optax.clip_by_global_norm(clip_norm), tx) if clip_norm else tx
  state, update = tx.init(params), quick(tx.update)
  for n in range(4):
    updates, state = update(tree(n + 1), state, params)
    params = optax.apply_updates(params, updates)
  ours = train(optimizer, 4)
  assert jax.tree.structure(ours) == jax.tree.structure((params, state))
  close = lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=0.1 * rtol)
  jax.tree.map(close, ours, jax.device_get((params, state)))


@pytest.mark.parametrize("momentum, relative, min_dim_size_to_factor", [(0.0, False, 128), (0.9, True, 4)])
def test_adafactor_is_that_of_optax(momentum, relative, min_dim_size_to_factor):
  ours = Adafactor(
    schedule=Constant(peak=0.01),
    clip_norm=0,
    momentum=momentum,
    multiply_by_parameter_scale=relative,
    min_dim_size_to_factor=min_dim_size_to_factor,
  )
  tx = optax.adafactor(
    0.01,
    min_dim_size_to_factor=min_dim_size_to_factor,
    multiply_by_parameter_scale=relative,
    momentum=momentum or None,
  )
  params = tree(0)
  state, update = tx.init(params), quick(tx.update)
  for n in range(3):
    updates, state = update(tree(n + 1), state, params)
    params = optax.apply_updates(params, updates)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
    train(ours, 3)[0],
    jax.device_get(params),
  )


def test_adafactor_keeps_rows_and_columns():
  _, (clip, ((factored, *_), *_)) = train(Adafactor(min_dim_size_to_factor=8))
  assert clip == optax.EmptyState()
  assert factored.v_row["blocks"]["mlp"]["in"]["kernel"].shape == (3, 8)
  assert factored.v_col["blocks"]["mlp"]["in"]["kernel"].shape == (3, 12)
  assert factored.v["in"]["kernel"].shape == (6, 8), "too small to be worth it"


@pytest.mark.parametrize(
  "optimizer",
  [
    AdamW(schedule=WarmupCosine(peak=0.1, warmup_steps=5)),
    Adafactor(schedule=WarmupCosine(peak=0.1, warmup_steps=5), min_dim_size_to_factor=4),
    Muon(schedule=WarmupCosine(peak=0.1, warmup_steps=5)),
  ],
  ids=lambda x: type(x).__name__,
)
def test_it_minimises_a_quadratic(optimizer):
  tx, params, goal = optimizer.build(200), tree(0, 0.3), tree(9, 0.3)
  loss = lambda params: sum(
    jax.tree.leaves(jax.tree.map(lambda a, b: jnp.square(a - b).mean(), params, goal))
  )

  def step(carry, _):
    params, state = carry
    updates, state = tx.update(jax.grad(loss)(params), state, params)
    return (optax.apply_updates(params, updates), state), None

  (after, _), _ = quick(lambda params: jax.lax.scan(step, (params, tx.init(params)), length=200))(params)
  assert loss(after) < 1e-3 * loss(params)


def test_muon_makes_matrices_orthogonal():
  """Each of a stack by itself; the singular values that five steps of Newton and Schulz leave are from
  0.6 to 1.3.
  """
  tx = Muon(schedule=Constant(peak=1.0), clip_norm=0, momentum=0.0).build(1)
  params, gradients = tree(0), tree(1)
  updates = quick(tx.update)(gradients, tx.init(params), params)[0]
  updated, gradients = paths(updates), paths(gradients)
  matrices = {"blocks/mlp/in/kernel", "blocks/qkv/kernel", "level/kernel"}
  for path, update in updated.items():
    if path not in matrices:
      np.testing.assert_allclose(update, -np.sign(gradients[path]), rtol=1e-3, err_msg=f"{path} is Adam's")
      continue
    stack = lambda x: np.reshape(x, (-1, *x.shape[-2:]))
    for matrix, gradient in zip(stack(update), stack(gradients[path])):
      u, _, v = np.linalg.svd(gradient, full_matrices=False)
      # the gradient's own directions, scaled alone
      within = -u.T @ matrix @ v.T / (0.2 * max(matrix.shape) ** 0.5)
      np.testing.assert_allclose(within, np.diag(np.diag(within)), atol=1e-3)
      assert (np.diag(within) > 0.5).all() and (np.diag(within) < 1.4).all()
      assert np.sqrt(np.mean(matrix**2)) == pytest.approx(0.2, rel=0.3), "the rms is that of Adam"


def test_muon_takes_what_it_is_reported():
  of = lambda **fields: paths(train(Muon(**fields))[1])
  names = lambda state: {path.split("/mu/")[1] for path in state if "/muon/" in path and "/mu/" in path}
  assert names(of()) == {"blocks/mlp/in/kernel", "blocks/qkv/kernel", "level/kernel"}
  assert names(of(hidden="qkv")) == {"blocks/qkv/kernel"}
  assert names(of(hidden="qkv|conv|level/kernel", frozen="level")) == {"blocks/qkv/kernel"}, (
    "a convolution is Adam's"
  )


@pytest.mark.parametrize("cls", EACH)
def test_decay_alone(cls):
  """Zero gradients: what decays shrinks by rate times decay, the same for each optimizer."""
  for no_decay, kept in (("", set()), ("bias$|table$", {"blocks/mlp/in/bias", "in/bias", "label/table"})):
    optimizer = cls(schedule=Constant(peak=0.5), weight_decay=0.1, no_decay=no_decay)
    params, _ = train(optimizer, 1, scale=0.0)
    assert moved(params) == set(paths(params)) - kept
    for path, x in paths(params).items():
      np.testing.assert_allclose(x, (1 if path in kept else 0.95) * paths(tree(0))[path], rtol=1e-6)


@pytest.mark.parametrize("cls", EACH)
def test_what_is_frozen_stays_bit_for_bit_and_has_no_state(cls):
  frozen = {"in/kernel", "in/bias", "blocks/qkv/kernel", "label/table"}
  params, state = train(cls(schedule=Constant(peak=0.1), weight_decay=0.1, frozen="^in/|qkv|table"))
  assert moved(params) == set(paths(params)) - frozen
  assert not [path for path in paths(state) if re.search(r"/(mu|nu|v)/in/|qkv|table", path)]


def test_frozen_gradients_do_not_count_in_the_norm():
  optimizer = AdamW(schedule=Constant(peak=0.1), clip_norm=1.0, frozen="^in/")
  tx, params = optimizer.build(1), tree(0)
  small, large = tree(1, 1e-3), tree(1, 1e-3) | {"in": jax.tree.map(lambda x: 1e6 * x, tree(1)["in"])}
  for gradients in (small, large):
    state = tx.update(gradients, tx.init(params), params)[1]
    mu = next(x for path, x in paths(state).items() if "/mu/" in path and path.endswith("out/kernel"))
    np.testing.assert_allclose(mu, 0.1 * gradients["out"]["kernel"], rtol=1e-5)


@pytest.mark.parametrize(
  "cls, name, message",
  [
    *(
      (cls, name, "matches no parameter's path; expected a regex for paths such as blocks/mlp/in/")
      for cls in EACH
      for name in ("no_decay", "frozen")
    ),
    (Muon, "hidden", "matches no parameter's path; expected a regex for paths such as blocks/mlp/in/"),
  ],
)
def test_a_regex_that_finds_nothing(cls, name, message):
  shapes = jax.eval_shape(lambda: tree(0))
  for init in (cls(**{name: "kernle"}).build(1).init, jax.jit(cls(**{name: "kernle"}).build(1).init)):
    with pytest.raises(UserError, match=f"^{name}='kernle' {message}"):
      jax.eval_shape(init, shapes)


@pytest.mark.parametrize(
  "fields, message",
  [
    ({"hidden": "bias$"}, "hidden='bias.' matches no path of a matrix that is trained; expected"),
    (
      {"hidden": "qkv", "frozen": "qkv"},
      "hidden='qkv' matches no path of a matrix that is trained; expected",
    ),
  ],
)
def test_muon_without_matrices(fields, message):
  params = jax.tree.map(jnp.asarray, {name: tree(0)[name] for name in ("in", "conv", "blocks")})
  del params["blocks"]["mlp"]["in"]["bias"]
  with pytest.raises(UserError, match=message):
    Muon(**fields).build(1).init(params)


@pytest.mark.parametrize("cls", EACH)
def test_nothing_left_to_train(cls):
  with pytest.raises(
    UserError, match=r"frozen='.' matches all parameters' paths; expected one that leaves some"
  ):
    cls(frozen=".").build(1).init(tree(0))


@pytest.mark.parametrize(
  "cls, name", [*((cls, name) for cls in EACH for name in ("no_decay", "frozen")), (Muon, "hidden")]
)
@pytest.mark.parametrize("regex", ["(", "*a", None, 3])
def test_a_regex_that_is_none(cls, name, regex):
  with pytest.raises(UserError, match=f"{name}=.* is no regex: .*; expected one such as 'bias"):
    cls(**{name: regex})


@pytest.mark.parametrize("cls", EACH)
def test_they_are_data(cls):
  optimizer = cls(schedule=Constant(), frozen="^in/")
  assert hash(optimizer) == hash(dataclasses.replace(optimizer)) and optimizer == cls(
    schedule=Constant(), frozen="^in/"
  )
  assert json.dumps(dataclasses.asdict(optimizer))
