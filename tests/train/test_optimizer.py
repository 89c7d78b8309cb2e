import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from jldm.train.optimizer import AdamW, Constant, WarmupCosine


def rates(schedule, steps, until=None):
  return np.array([schedule.build(steps)(n) for n in range(until or steps + 1)])


def test_constant():
  np.testing.assert_allclose(rates(Constant(peak=2.0, warmup_steps=4), 8), [0, 0.5, 1, 1.5, 2, 2, 2, 2, 2])
  np.testing.assert_allclose(rates(Constant(peak=2.0), 3), [2, 2, 2, 2])


@pytest.mark.parametrize("end", [0.0, 0.3])
def test_warmup_cosine_is_its_formula(end):
  n = np.arange(21)
  expected = np.where(n < 4, 2 * n / 4, end + (2 - end) * 0.5 * (1 + np.cos(np.pi * (n - 4) / 16)))
  np.testing.assert_allclose(rates(WarmupCosine(peak=2.0, end=end, warmup_steps=4), 20), expected, rtol=1e-5, atol=1e-7)


def test_after_the_last_step_the_end_holds():
  np.testing.assert_allclose(rates(WarmupCosine(peak=2.0, end=0.3, warmup_steps=4), 10, 15)[10:], 0.3, rtol=1e-6)


@pytest.mark.parametrize("steps", [1, 2, 3, 5, 10])
@pytest.mark.parametrize("warmup", [0, 1, 5, 10, 100])
def test_any_steps_with_any_warmup(steps, warmup):
  for schedule in (WarmupCosine(peak=2.0, warmup_steps=warmup), Constant(peak=2.0, warmup_steps=warmup)):
    each = rates(schedule, steps, steps)
    assert np.isfinite(each).all() and (each >= 0).all() and (each <= 2).all()
    if warmup < steps or isinstance(schedule, WarmupCosine):
      assert each.max() == 2, "the peak is reached"


@pytest.mark.parametrize("clip_norm, weight_decay", [(0.0, 0.0), (0.5, 0.0), (0.0, 0.1), (0.5, 0.1)])
def test_adamw_is_its_formula(clip_norm, weight_decay):
  optimizer = AdamW(schedule=Constant(peak=0.1), b1=0.8, b2=0.9, clip_norm=clip_norm, weight_decay=weight_decay)
  tx, params = optimizer.build(10), np.float32([1.0, -2.0, 3.0])
  state, m, v, expected = tx.init(params), 0.0, 0.0, np.float64(params)
  sizes = np.array([3, 0.1, 1, 0.01, 2, 1])[:, None]  # on either side of where they are clipped
  for n, gradient in enumerate(sizes * np.random.default_rng(0).normal(size=(6, 3)), 1):
    updates, state = tx.update(np.float32(gradient), state, params)
    params = np.asarray(params + updates)
    gradient = gradient * min(1, clip_norm / np.linalg.norm(gradient)) if clip_norm else gradient
    m, v = 0.8 * m + 0.2 * gradient, 0.9 * v + 0.1 * gradient**2
    step = m / (1 - 0.8**n) / (np.sqrt(v / (1 - 0.9**n)) + 1e-8)
    expected = expected - 0.1 * (step + weight_decay * expected)
  np.testing.assert_allclose(params, expected, rtol=1e-4)


def test_the_schedule_is_walked_by_updates():
  tx = AdamW(schedule=WarmupCosine(peak=1.0, warmup_steps=2), clip_norm=0).build(6)
  state, sizes = tx.init(jnp.zeros(1)), []
  for _ in range(6):
    updates, state = tx.update(jnp.ones(1), state, jnp.zeros(1))
    sizes.append(-float(updates[0]))
  np.testing.assert_allclose(sizes, rates(WarmupCosine(peak=1.0, warmup_steps=2), 6, 6), atol=1e-4)


def test_they_are_data():
  optimizer = AdamW(schedule=Constant())
  assert hash(optimizer) == hash(dataclasses.replace(optimizer)) and optimizer == AdamW(schedule=Constant())
