import dataclasses
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from jldm.core.errors import UserError
from jldm.diffusion.process import (
  EDM,
  Betas,
  Cosine,
  Discrete,
  Flow,
  LinearVP,
  Shifted,
  half_log_snr,
  timestep,
)
from jldm.samplers import grid
from jldm.samplers.grid import GRIDS, log_snr_uniform, sigma_ratio, uniform
from jldm.samplers.pairs import adjacent_pairs, repaint, restart
from jldm.samplers.timesteps import Timesteps
from tests.parity.schedulers import REPAINT, STEPS, TABLE_STEPS, TABLES
from tests.samplers.gaussian import PROCESSES

FIXTURE = dict(np.load(Path(__file__).parents[1] / "parity" / "schedulers.npz"))
CHAIN = Discrete()
ALL = [Cosine(), Flow(), LinearVP(), EDM(), CHAIN, Discrete(rescale_betas_zero_snr=True), Shifted()]
KNOTS = {  # the tables of diffusers
  "leading": grid.leading,
  "leading_one_on": functools.partial(grid.leading, steps_offset=1),
  "trailing": grid.trailing,
  "linspace": grid.linspace,
  "leading_spare": functools.partial(grid.leading, dropped=1),
  "linspace_spare": functools.partial(grid.linspace, dropped=1),
  "lcm": grid.lcm,
}
ON_CHAINS = ("leading", "trailing", "linspace", "ddim", "lcm")
everywhere = pytest.mark.parametrize("process", ALL, ids=repr)


def test_a_chain_adjoins():
  np.testing.assert_array_equal(adjacent_pairs(jnp.array([3.0, 2.0, 1.0, 0.0])), [[3, 2], [2, 1], [1, 0]])


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 20, 49, 50, 1000])
def test_uniform_reaches_both_ends_exactly(steps):
  times = np.asarray(uniform(steps))
  assert times.shape == (steps + 1,) and times.dtype == np.float32
  assert times[0] == 1 and times[-1] == 0
  np.testing.assert_allclose(np.diff(times), -1 / steps, atol=2e-7)


def test_uniform_between_times_of_choice():
  np.testing.assert_allclose(uniform(2, 0.2, 0.6), [0.2, 0.4, 0.6], rtol=1e-6)


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
def test_log_snr_uniform_is_even_and_goes_towards_the_data(process):
  with jax.enable_x64(True):
    times = log_snr_uniform(process, 10, -4.0, 6.0)
    np.testing.assert_allclose(2 * half_log_snr(process, times), np.linspace(-4, 6, 11), atol=1e-9)
  assert (np.diff(times) < 0).all()


@everywhere
@pytest.mark.parametrize("steps", [1, 2, 10, 50])
def test_grids_of_the_command_line_go_from_noise_to_data(process, steps):
  for name, make in GRIDS.items():
    if name in ON_CHAINS and not isinstance(process, Discrete):
      continue
    pairs = np.asarray(make(process, steps))
    assert pairs.shape == (steps, 2) and pairs.dtype == np.float32, name
    assert (pairs[:, 0] > pairs[:, 1]).all() and (np.diff(pairs, axis=0) < 0).all(), name
    assert pairs[0, 0] <= 1 and (pairs[0, 0] > 0.5 or name in ("leading", "ddim")), name
    assert pairs[-1, 1] == 0, name
    assert name == "ddim" or (pairs[1:, 0] == pairs[:-1, 1]).all(), name


@pytest.mark.parametrize("name", ON_CHAINS)
def test_grids_of_chains_are_refused_to_others(name):
  with pytest.raises(
    UserError, match=r"^steps between the knots of a chain of betas; expected a Discrete process, got Cosine"
  ):
    GRIDS[name](Cosine(), 5)


@pytest.mark.parametrize("steps", [0, -3])
@pytest.mark.parametrize("name", GRIDS)
def test_no_steps_are_refused(name, steps):
  with pytest.raises(UserError, match=f"^steps={steps}; expected at least 1$"):
    GRIDS[name](CHAIN, steps)


@pytest.mark.parametrize("name", ["leading", "trailing", "linspace", "ddim"])
def test_more_steps_than_knots_are_refused(name):
  small = Discrete(Betas((0.1, 0.2, 0.3)))
  assert GRIDS[name](small, 3).shape == (3, 2)
  with pytest.raises(UserError, match=r"^steps=4; expected at most 3 of a chain of 3 betas$"):
    GRIDS[name](small, 4)


def comparable(name):
  """Counts of steps that theirs take, but one of linspace, which theirs begin at the clean end."""
  known = [
    steps for steps in TABLE_STEPS if f"{name}.{steps}" in FIXTURE and FIXTURE[f"{name}.{steps}"].max() < 1000
  ]
  return [steps for steps in known if (name, steps) != ("linspace", 1)]


@pytest.mark.parametrize("name", KNOTS)
def test_levels_are_the_timesteps_of_diffusers(name):
  assert len(comparable(name)) >= 9 and set(KNOTS) == set(TABLES)
  for steps in comparable(name):
    expected = FIXTURE[f"{name}.{steps}"]
    with jax.enable_x64(True):
      times = KNOTS[name](CHAIN, steps)
      np.testing.assert_allclose(timestep(CHAIN, times[:-1]) * 1000, expected, atol=1e-9)
      assert times[-1] == 0
    np.testing.assert_allclose(timestep(CHAIN, KNOTS[name](CHAIN, steps)[:-1]) * 1000, expected, atol=2e-4)


@pytest.mark.parametrize(
  "name, make", [("karras", grid.karras), ("exponential", grid.exponential), ("beta", grid.beta_ratio)]
)
def test_levels_between_knots_are_nearly_those_of_diffusers(name, make):
  """At the same ratio: there the log of the ratio is linear between knots, here the angle."""
  for steps in STEPS:
    with jax.enable_x64(True):
      timesteps = np.asarray(timestep(CHAIN, make(CHAIN, steps)[:-1])) * 1000
    assert np.abs(timesteps - FIXTURE[f"{name}.{steps}"]).max() < 0.06


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize(
  ("name", "made"),
  [
    ("leading_one_on", Timesteps("leading", steps_offset=1)),
    ("leading_one_on", Timesteps("leading", steps_offset=1, strided=True)),
    ("leading_spare", Timesteps("leading", dropped=1)),
    ("trailing", Timesteps("trailing")),
    ("linspace_spare", Timesteps("linspace", dropped=1)),
  ],
)
def test_timesteps_are_those_of_schedulers(name, made, steps):
  pairs = np.asarray(made(CHAIN, steps), np.float64) * 1000
  np.testing.assert_allclose(pairs[:, 0] - 1, FIXTURE[f"{name}.{steps}"], atol=1e-3)
  down = np.full(steps - 1, 1000 // steps) if made.strided else -np.diff(pairs[:, 0])
  np.testing.assert_allclose((pairs[:, 0] - pairs[:, 1])[:-1], down, atol=1e-3)
  last = np.asarray(dataclasses.replace(made, set_alpha_to_one=False)(CHAIN, steps))[-1, 1]
  assert pairs[-1, 1] == 0 and last == np.float32(0.001)


def test_another_spacing_is_refused():
  with pytest.raises(
    UserError, match="timestep_spacing='karras'; expected one of leading, linspace, trailing"
  ):
    Timesteps("karras")


def test_strides_need_not_adjoin():
  with jax.enable_x64(True):
    pairs = np.asarray(grid.strided(CHAIN, grid.trailing(CHAIN, 7)) * 1000)
    np.testing.assert_allclose(pairs[:, 0] - 1, FIXTURE["trailing.7"], atol=1e-9)
    np.testing.assert_allclose(pairs[:, 0] - pairs[:, 1], 142, atol=1e-9)
    last = grid.strided(CHAIN, grid.leading(CHAIN, 7), end=0.001)[-1]
    np.testing.assert_allclose(last, [0.001, 0.001], atol=1e-12)
    np.testing.assert_allclose(
      grid.strided(CHAIN, grid.leading(CHAIN, 7, steps_offset=1))[-1], [0.002, 0], atol=1e-12
    )


@pytest.mark.parametrize("steps, offset", [(7, -1), (7, 148), (1000, 1)])
def test_an_offset_beyond_the_chain_is_refused(steps, offset):
  assert grid.leading(CHAIN, 7, steps_offset=147)[0] == 1
  with pytest.raises(UserError, match="the chain has 1000 knots"):
    grid.leading(CHAIN, steps, steps_offset=offset)


def test_ratios_between_knots_are_linear():
  """As in diffusers' Euler, while the angle is linear in the process: halfway is the mean of two knots."""
  small = Discrete(Betas((0.1, 0.2, 0.3, 0.4)))
  with jax.enable_x64(True):
    ratios = sigma_ratio(small, np.asarray(grid.linspace(small, 3, rounded=False)))
    knots = sigma_ratio(small, np.arange(1, 5) / 4)
  np.testing.assert_allclose(ratios[:-1], [knots[3], (knots[1] + knots[2]) / 2, knots[0]], rtol=1e-9)
  with pytest.raises(UserError, match="the last is infinite"):
    grid.linspace(Discrete(rescale_betas_zero_snr=True), 7, rounded=False)


def test_lcm_takes_of_what_the_network_was_distilled_at():
  known = np.round(np.asarray(grid.lcm(CHAIN, 50)) * 1000)
  assert set(np.round(np.asarray(grid.lcm(CHAIN, 4)) * 1000)) < set(known)
  with pytest.raises(
    UserError, match=r"^steps=51; expected at most the 50 that the network was distilled at$"
  ):
    grid.lcm(CHAIN, 51)


def levels(make, process, steps, *args, **options):
  """The ratios of a grid, and that its last time is clean."""
  with jax.enable_x64(True):
    times = np.asarray(make(process, steps, *args, **options))
    assert times[-1] == 0
    return sigma_ratio(process, times[:-1])


@everywhere
def test_grids_of_ratios_are_even_in_their_measure(process):
  for make, measure in (
    (grid.karras, lambda r: r ** (1 / 7)),
    (functools.partial(grid.karras, rho=2.0), np.sqrt),
    (grid.exponential, np.log),
    (grid.beta_ratio, lambda r: special.betainc(0.6, 0.6, (r - r[-1]) / (r[0] - r[-1]))),
  ):
    actual = levels(make, process, 9, 0.05, 10.0)
    np.testing.assert_allclose(actual[[0, -1]], [10, 0.05], rtol=1e-9)
    np.testing.assert_allclose(np.diff(measure(actual), 2), 0, atol=1e-7)


@pytest.mark.parametrize(
  "process, low, high",
  [
    (Cosine(), 0.002, 80),
    (Flow(), 0.002, 80),
    (EDM(), 0.002, 80),
    (EDM(30.0), 0.002, 30),
    (LinearVP(), 0.002, 151.9),
    (CHAIN, 0.0292, 14.615),
    (Discrete(rescale_betas_zero_snr=True), 0.0292, 80),
  ],
  ids=repr,
)
def test_grids_of_ratios_have_an_end_where_the_process_has_none(process, low, high):
  for make in (grid.karras, grid.exponential, grid.beta_ratio):
    np.testing.assert_allclose(levels(make, process, 5)[[0, -1]], [high, low], rtol=2e-3)


def test_karras_of_a_high_power_is_exponential():
  np.testing.assert_allclose(
    levels(grid.karras, Cosine(), 9, rho=1e6), levels(grid.exponential, Cosine(), 9), rtol=1e-4
  )


def test_karras_is_even_in_the_times_of_edm():
  with jax.enable_x64(True):
    times = np.asarray(grid.karras(EDM(), 10))
    np.testing.assert_allclose(np.diff(times[:-1], 2), 0, atol=1e-12)


@pytest.mark.parametrize("low, high", [(0.0, 1.0), (-1.0, 1.0), (2.0, 1.0), (1.0, 1.0), (0.1, np.inf)])
def test_impossible_ratios_are_refused(low, high):
  for make in (grid.karras, grid.exponential, grid.beta_ratio):
    with pytest.raises(
      UserError, match=r"expected ratios of sigma to alpha, 0 < sigma_min < sigma_max, both finite$"
    ):
      make(Flow(), 5, low, high)


def test_beta_has_even_quantiles():
  with jax.enable_x64(True):
    times = np.asarray(grid.beta(12))
    np.testing.assert_allclose(special.betainc(0.6, 0.6, times), np.linspace(1, 0, 13), atol=1e-12)
    np.testing.assert_allclose(grid.beta(12, 1.0, 1.0), uniform(12), atol=1e-12)
  assert times[0] - times[1] < 1 / 12 > times[-2] - times[-1]
  with pytest.raises(UserError, match="expected both above 0"):
    grid.beta(12, 0.0)


@pytest.mark.parametrize("shift", [0.5, 1.0, 3.0])
def test_a_shift_divides_the_snr_of_a_flow(shift):
  with jax.enable_x64(True):
    times, even = grid.shifted(8, shift), uniform(8)
    np.testing.assert_allclose(times, Shifted(Flow(), shift).inner(even), atol=1e-12)
    np.testing.assert_allclose(
      half_log_snr(Flow(), times[1:-1]), half_log_snr(Flow(), even[1:-1]) - np.log(shift), atol=1e-12
    )
    assert times[0] == 1 and times[-1] == 0


@pytest.mark.parametrize("options", [{"shift": 0.0}, {"end": 0.0}, {"end": 1.5}])
def test_impossible_shifts_are_refused(options):
  with pytest.raises(UserError, match=r"^shift="):
    grid.shifted(5, **options)


# Timesteps that the authors publish for the models; ours are those of their ratios.
ALIGNED = {
  "sd15": (999, 850, 736, 645, 545, 455, 343, 233, 124, 24),
  "sdxl": (999, 845, 730, 587, 443, 310, 193, 116, 53, 13),
}


@pytest.mark.parametrize("model", ALIGNED)
def test_aligned_steps_are_the_published_timesteps(model):
  steps = np.asarray(timestep(CHAIN, grid.align_your_steps(CHAIN, 10, model)[:-1])) * 1000
  np.testing.assert_allclose(steps, ALIGNED[model], atol=1.5)


@pytest.mark.parametrize("model", grid.ALIGNED)
def test_twice_the_aligned_steps_are_halfway_between_in_the_log(model):
  process = EDM(1000.0)
  ten, twenty = (levels(grid.align_your_steps, process, steps, model) for steps in (10, 20))
  np.testing.assert_allclose(twenty[::2], ten, rtol=1e-9)
  np.testing.assert_allclose(twenty[1:-1:2], np.sqrt(ten[1:] * ten[:-1]), rtol=1e-9)


def test_aligned_steps_begin_where_the_process_ends():
  assert grid.align_your_steps(CHAIN, 10)[0] == 1 and grid.align_your_steps(EDM(), 10, "svd")[0] == 1
  with pytest.raises(UserError, match=r"^model='sd3'; expected one of \['sd15', 'sdxl', 'svd'\]$"):
    grid.align_your_steps(CHAIN, 10, "sd3")


def test_restart_goes_up_and_down_again():
  times = uniform(5)
  pairs = restart(times, 0.4, 0.8, repeats=2, steps=2)
  walked = [1, 0.8, 0.6, 0.4, 0.8, 0.6, 0.4, 0.8, 0.6, 0.4, 0.2, 0]
  np.testing.assert_allclose(pairs, np.stack([walked[:-1], walked[1:]], 1), atol=1e-6)
  inserted = restart(times, 0.5, 0.9, steps=1)
  walked = [1, 0.8, 0.6, 0.5, 0.9, 0.5, 0.4, 0.2, 0]
  np.testing.assert_allclose(inserted, np.stack([walked[:-1], walked[1:]], 1), atol=1e-6)
  walked = [1, 0.8, 0.6, 0.4, 0.2, 0, 1, 0]
  np.testing.assert_allclose(
    restart(times, 0.0, 1.0, steps=1), np.stack([walked[:-1], walked[1:]], 1), atol=1e-6
  )


@pytest.mark.parametrize(
  "options",
  [
    {"t_min": 0.5, "t_max": 0.5},
    {"t_min": -0.1},
    {"t_max": 1.1},
    {"repeats": 0},
    {"steps": 0},
    {"t_min": 0.95, "t_max": 0.99},
  ],
)
def test_impossible_restarts_are_refused(options):
  with pytest.raises(UserError, match=r"^t_min="):
    restart(uniform(9, 0.9), **{"t_min": 0.2, "t_max": 0.4} | options)


@pytest.mark.parametrize("steps, jump, repeats", REPAINT)
def test_repaint_goes_where_diffusers_goes(steps, jump, repeats):
  """They go up knot by knot, and leave the last step, to the data, unsaid."""
  pairs = np.round(np.asarray(repaint(uniform(steps), jump, repeats)) * steps).astype(int)
  walked = [pairs[0, 0]]
  for t, s in pairs:
    assert t == walked[-1]
    walked += [s] if s < t else range(t + 1, s + 1)
  expected = FIXTURE[f"repaint.{steps}.{jump}.{repeats}"] // (1000 // steps) + 1
  np.testing.assert_array_equal(walked, [*expected, 0])


def test_repaint_walks_every_stretch_as_often_as_asked():
  pairs = np.round(np.asarray(repaint(uniform(12), 4, 3)) * 12).astype(int)
  down = [tuple(pair) for pair in pairs if pair[1] < pair[0]]
  assert {down.count((k + 1, k)) for k in range(1, 9)} == {3}
  assert down.count((1, 0)) == 1 and sum(s > t for t, s in pairs) == 4
  np.testing.assert_array_equal(repaint(uniform(12), 4, 1), adjacent_pairs(uniform(12)))
  with pytest.raises(UserError, match=r"^jump_length=0, jump_n_sample=10; expected at least 1$"):
    repaint(uniform(12), 0)
