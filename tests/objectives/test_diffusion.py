import dataclasses
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jldm.core.errors import UserError
from jldm.core.keys import normal_like, row_keys
from jldm.core.specs import Loaded, Output
from jldm.diffusion.process import Cosine, Flow, rates
from jldm.diffusion.target import Predict, combine, decode, reweight
from jldm.diffusion.times import LogitNormal, LogNormalSigma, Uniform, sample_times
from jldm.diffusion.weighting import EDMWeighting, MinSNR, Sigmoid, TargetWeighting, Unweighted
from jldm.distributed import sharding
from jldm.models.autoencoders.posterior import Gaussian
from jldm.models.codecs.images import ImageCodec
from jldm.models.conditioners.degradation import Grey
from jldm.models.conditioners.label import ClassLabel
from jldm.models.conditioners.pictures import Masked, Paired
from jldm.models.denoisers.dit import DiT
from jldm.nn.transformer import ModulatedBlock
from jldm.objectives.diffusion import Diffusion
from tests.networks import quick, randomised

RNG = np.random.default_rng(0)
KEY = jax.random.key(3)
MEAN, STD = np.float32([2.0, -1.0, 0.0]), np.float32([0.5, 1.0, 3.0])  # of raw latents
BATCH = {
  "mean": np.float32(RNG.normal(size=(8, 2, 4, 3))),
  "log_variance": np.float32(RNG.normal(size=(8, 2, 4, 3))),
  "label": np.array([0, 1, 2, -1, 0, 1, 2, -1]),
  "row": np.arange(8),
  "stratum": np.float32(np.arange(8) / 8),
  "image": RNG.integers(0, 256, (8, 4, 8, 3), np.uint8),
}
filled = lambda value: np.full((8, 2, 4, 3), value, np.float32)
STILL = BATCH | {"mean": filled(5), "log_variance": filled(-200)}
X0 = (5 - MEAN) / STD  # the latent of STILL, everywhere


class Scaled(nn.Module):
  """An autoencoder whose latents are every second pixel of a side, by a parameter."""

  @nn.compact
  def encode(self, x):
    return Gaussian(self.param("scale", nn.initializers.ones, ()) * x[:, ::2, ::2], jnp.zeros(()))


CODEC = {
  "codec": Loaded(
    ImageCodec(Scaled()), {"params": {"scale": np.float32(3)}, "extra": {}, "mean": MEAN, "std": STD}
  )
}
PLAIN = {"codec": Loaded(ImageCodec(Scaled()), {"mean": 0.0, "std": 1.0})}  # latents as they are
LABEL = ClassLabel(classes=3, dropout=0.0)


class Exact(nn.Module):
  """The target itself, of data that is X0 everywhere."""

  process: Any
  parametrization: Any

  def __call__(self, z, noise_level, inputs, estimate=None):
    r = rates(self.process, noise_level, z)
    return Output(combine(self.parametrization.row(r), X0, (z - r.alpha * X0) / r.sigma))


class Translated(nn.Module):
  """One opinion of the data, as an output of any kind."""

  process: Any
  parametrization: Any

  def __call__(self, z, noise_level, inputs, estimate=None):
    r = rates(self.process, noise_level, z)
    opinion = decode(Predict("v").row(r), r, z, jnp.sin(3 * z) + r.sigma)
    return Output(combine(self.parametrization.row(r), opinion.x0, opinion.eps))


class Told(nn.Module):
  """Something of all of the network's inputs."""

  def __call__(self, z, noise_level, inputs, estimate=None):
    return Output(jnp.sin(z) + noise_level[:, None, None, None] + inputs["label"][:, None, None, None])


class Label(nn.Module):
  """The label plus one, so that it can be read from a loss."""

  def __call__(self, z, noise_level, inputs, estimate=None):
    return Output(jnp.zeros_like(z) + inputs["label"][:, None, None, None] + 1)


def shaped(objective, batch=BATCH):
  """Random parameters of the network and of the conditioners."""
  return randomised(jax.eval_shape(objective.init, KEY, batch, CODEC)[0])


def losses(network, batch=BATCH, key=KEY, params=(), **fields):
  objective = Diffusion(network=network, **({"process": Cosine(), "conditioners": (LABEL,)} | fields))
  values, aux = quick(objective.loss)({"denoiser": params or {}}, {}, (), CODEC, batch, key)
  assert values.shape == (len(batch["row"]),) and set(aux.metrics) == {"mse"} and aux.extra == {}
  return np.asarray(values)


@pytest.mark.parametrize("process", [Cosine(), pytest.param(Flow(), marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", ["x0", "eps", "v", "flow"])
def test_the_exact_target_has_no_loss(process, kind):
  network = Exact(process, Predict(kind))
  assert losses(network, STILL, process=process, parametrization=Predict(kind)).max() < 1e-5


@pytest.mark.parametrize("weighting", [Unweighted(), MinSNR(), Sigmoid()])
def test_the_mean_over_single_times_is_the_loss_of_uniform_ones(weighting):
  objective = Diffusion(network=Translated(Flow(), Predict("v")), process=Flow(), weighting=weighting)
  batch = {name: np.concatenate([value] * 64) for name, value in STILL.items()}
  batch |= {"row": np.arange(512), "stratum": np.float32(np.arange(512) / 512)}
  single = quick(lambda t: objective.at_time(t).loss({"denoiser": {}}, {}, (), CODEC, batch, KEY)[0].mean())
  mean = np.mean([single(np.float32(t)) for t in (np.arange(32) + 0.5) / 32])
  uniform = quick(objective.loss)({"denoiser": {}}, {}, (), CODEC, batch, KEY)[0].mean()
  np.testing.assert_allclose(mean, uniform, rtol=0.03)


def test_at_a_single_time_no_condition_is_dropped():
  dropped = Diffusion(
    network=Label(),
    process=Flow(),
    parametrization=Predict("x0"),
    conditioners=(ClassLabel(classes=3, dropout=1.0),),
  )
  at = quick(dropped.at_time(0.5).loss)({"denoiser": {}}, {}, (), CODEC, STILL, KEY)[0]
  kept = losses(Label(), STILL, process=Flow(), parametrization=Predict("x0"))
  np.testing.assert_allclose(at, kept, rtol=1e-6)


@pytest.mark.parametrize("kind", ["x0", "eps", "flow"])
def test_losses_of_one_opinion_differ_by_the_reweighting(kind):
  v, other = (losses(Translated(Cosine(), Predict(k)), parametrization=Predict(k)) for k in ("v", kind))
  t = sample_times(Uniform(), Cosine(), jax.random.split(KEY, 6)[1], BATCH["stratum"])[0]
  r = rates(Cosine(), t, t)
  np.testing.assert_allclose(other, v * reweight(Predict("v").row(r), Predict(kind).row(r), r), rtol=2e-4)


@pytest.mark.parametrize(
  "others",
  [
    (Masked(dropout=0.3),),
    *(pytest.param(other, marks=pytest.mark.slow) for other in ((), (Paired(dropout=0.3),))),
  ],
)
def test_how_the_batch_is_split_changes_nothing(others):
  network = DiT(block=ModulatedBlock(heads=1), patch=2, width=8, depth=1, classes=3)
  conditioners = (ClassLabel(classes=3, dropout=0.5), *others)
  objective = Diffusion(
    network=network, process=Flow(), times=LogitNormal(0.5, 2.0), conditioners=conditioners
  )
  batch = BATCH | {"paired__concat": -BATCH["mean"]}
  params = shaped(objective, batch)
  loss = quick(lambda params, batch: objective.loss(params, {}, params, CODEC, batch, KEY)[0])
  whole = loss(params, batch)
  for part in (0, 1):
    half = jax.tree.map(lambda x, part=part: x[part::2], batch)
    np.testing.assert_allclose(loss(params, half), whole[part::2], rtol=1e-4)


def seen(rate: float, keys) -> np.ndarray:
  """The labels that the network meets [N, 8]: where x0 is 0 and predicted, the loss is the output squared."""
  label = ClassLabel(classes=3, dropout=rate)
  objective = Diffusion(network=Label(), process=Flow(), parametrization=Predict("x0"), conditioners=(label,))
  batch = STILL | {"mean": filled(0)}
  loss = lambda key: objective.loss({"denoiser": {}}, {}, (), PLAIN, batch, key)[0]
  return np.sqrt(quick(jax.vmap(loss))(keys)) - 1


@pytest.mark.parametrize("rate, expected", [(0.0, BATCH["label"]), (1.0, np.full(8, -1))])
def test_label_dropout_at_its_ends(rate, expected):
  np.testing.assert_allclose(seen(rate, jax.random.split(KEY, 50)), np.tile(expected, (50, 1)), atol=1e-6)


def test_label_dropout_at_its_rate():
  labels = seen(0.25, jax.random.split(KEY, 400))
  dropped = np.abs(labels - BATCH["label"])[:, BATCH["label"] >= 0] > 0.5
  np.testing.assert_allclose(labels[:, BATCH["label"] >= 0][dropped], -1, atol=1e-6)
  error = np.sqrt(0.25 * 0.75 / 400)
  assert (np.abs(dropped.mean(0) - 0.25) < 5 * error).all(), "every row by itself"
  assert np.abs(np.corrcoef(dropped.T) - np.eye(6)).max() < 5 / np.sqrt(400), "and no two alike"


def test_noise_comes_with_the_row_and_time_with_the_stratum():
  network, whole = Told(), losses(Told())
  for name, other in (("row", BATCH["row"] + 8), ("stratum", BATCH["stratum"] + 1 / 16)):
    assert (np.abs(losses(network, BATCH | {name: other}) - whole) > 1e-6).all()


def test_the_loss_is_its_formula():
  key_x0, key_t, key_eps = jax.random.split(KEY, 6)[:3]
  noise = lambda key: np.asarray(normal_like(row_keys(key, BATCH["row"]), BATCH["mean"]))
  z0 = BATCH["mean"] + np.exp(0.5 * BATCH["log_variance"]) * noise(key_x0)
  x0, eps = (z0 - MEAN) / STD, noise(key_eps)
  t = np.float64(sample_times(Uniform(), Flow(), key_t, BATCH["stratum"])[0])[:, None, None, None]
  output = np.sin((1 - t) * x0 + t * eps) + t + BATCH["label"][:, None, None, None]
  expected = ((output - (eps - x0)) ** 2).mean((1, 2, 3))
  np.testing.assert_allclose(
    losses(Told(), process=Flow(), parametrization=Predict("flow")), expected, rtol=1e-4
  )


WEIGHTINGS = [MinSNR(), Sigmoid(), EDMWeighting(), TargetWeighting("eps")]


@pytest.mark.parametrize("weighting", WEIGHTINGS, ids=repr)
@pytest.mark.parametrize(
  "times", [LogitNormal(0.2, 0.7), pytest.param(Uniform(), marks=pytest.mark.slow)], ids=repr
)
def test_a_weighted_loss_does_not_depend_on_the_target(weighting, times):
  """The same opinion of the data costs the same, whatever the target."""
  losses_of = lambda row: losses(
    Translated(Cosine(), row), parametrization=row, weighting=weighting, times=times
  )
  v = losses_of(Predict("v"))
  for row in map(Predict, ("x0", "eps", "flow")):
    np.testing.assert_allclose(losses_of(row), v, rtol=1e-3)


@pytest.mark.slow
def test_a_loss_over_log_snr_does_not_depend_on_how_times_are_drawn():
  """What a weighting in the measure of log SNR is for: its mean is an integral that knows no density."""
  size = 4096
  batch = {k: np.resize(v, (size, *v.shape[1:])) for k, v in BATCH.items()}
  batch |= {"row": np.arange(size), "stratum": np.float32(np.arange(size) / size)}

  def mean(times, weighting):
    network = Translated(Cosine(), Predict("v"))
    objective = Diffusion(network=network, process=Cosine(), times=times, weighting=weighting)
    return float(quick(objective.loss)({"denoiser": {}}, {}, (), CODEC, batch, KEY)[0].mean())

  broad = [Uniform(), LogitNormal(0.0, 1.5), LogNormalSigma(0.0, 2.0)]
  integrals = [mean(times, Sigmoid()) for times in broad]
  np.testing.assert_allclose(integrals, integrals[0], rtol=0.02)
  assert np.ptp([mean(times, MinSNR()) for times in broad]) > 0.1, "a mean over the draw does depend on it"


class Doubtful(nn.Module):
  """Zero, with a log-variance that a parameter sets."""

  @nn.compact
  def __call__(self, z, noise_level, inputs, estimate=None):
    u = self.param("u", nn.initializers.zeros_init(), ())
    return Output(jnp.zeros_like(z), jnp.full(len(z), u))


def test_a_learned_log_variance_is_a_gaussian_likelihood():
  """EDM2 (2312.02696), eq. 21; its best value is the log of the loss, where the gradient vanishes."""
  plain = losses(Doubtful(), params={"u": jnp.float32(0)})
  for u in (-1.0, 0.5):
    np.testing.assert_allclose(
      losses(Doubtful(), params={"u": jnp.float32(u)}), plain * np.exp(-u) + u, rtol=1e-5
    )
  objective = Diffusion(network=Doubtful(), process=Cosine(), weighting=MinSNR())
  mean = lambda u: objective.loss({"denoiser": {"u": u}}, {}, (), CODEC, BATCH, KEY)[0].mean()
  assert abs(jax.grad(mean)(jnp.log(mean(jnp.float32(0))))) < 1e-5


class Remembering(nn.Module):
  """Half of what it saw of x0, plus one."""

  self_conditioning: bool = True

  def __call__(self, z, noise_level, inputs, estimate=None):
    return Output(0.5 * estimate + 1)


def remembered(share, keys):
  objective = Diffusion(
    network=Remembering(), process=Flow(), parametrization=Predict("x0"), self_conditioning=share
  )
  loss = lambda key: objective.loss({"denoiser": {}}, {}, (), PLAIN, STILL | {"mean": filled(0)}, key)[0]
  return np.sqrt(quick(jax.vmap(loss))(keys))


def test_self_conditioning_shows_the_first_estimate_to_its_share():
  """Chen et al. 2022 (2208.04202), algorithm 1: nothing is seen first, so the estimate is 1 and the
  output 1.5, else 1.
  """
  np.testing.assert_allclose(remembered(1.0, jax.random.split(KEY, 4)), 1.5, rtol=1e-6)
  outputs = remembered(0.25, jax.random.split(KEY, 400))
  assert set(np.round(np.unique(outputs), 5)) == {1.0, 1.5}
  assert abs((outputs > 1.25).mean() - 0.25) < 5 * np.sqrt(0.25 * 0.75 / outputs.size)


def test_no_gradient_flows_through_the_first_estimate():
  class Scaled(nn.Module):
    self_conditioning: bool = True

    @nn.compact
    def __call__(self, z, noise_level, inputs, estimate=None):
      a = self.param("a", nn.initializers.ones_init(), ())
      return Output(a * (1 + 0 * z) + estimate)

  objective = Diffusion(
    network=Scaled(), process=Flow(), parametrization=Predict("x0"), self_conditioning=1.0
  )
  mean = lambda a: objective.loss({"denoiser": {"a": a}}, {}, (), PLAIN, STILL | {"mean": filled(0)}, KEY)[
    0
  ].mean()
  # of w (a + 1)^2, at a = 1: 4 w and 4 w; of w (2 a)^2, 8 w
  value, gradient = jax.value_and_grad(mean)(jnp.float32(1))
  np.testing.assert_allclose([value, gradient / value], [4.0, 1.0], rtol=1e-5)


def test_offset_noise_is_shared_by_the_places_of_a_channel():
  class Noise(nn.Module):
    def __call__(self, z, noise_level, inputs, estimate=None):
      return Output(jnp.zeros_like(z))

  objective = Diffusion(
    network=Noise(), process=Flow(), parametrization=Predict("eps"), offset_noise=100.0, times=Uniform()
  )
  many = {k: np.resize(v, (256, *v.shape[1:])) for k, v in BATCH.items()} | {"row": np.arange(256)}
  # |eps|^2 / D: eps is 100 n, n one a channel
  seen = quick(objective.loss)({"denoiser": {}}, {}, (), CODEC, many, KEY)[0]
  np.testing.assert_allclose(np.mean(seen), 100**2 + 1, rtol=5 * np.sqrt(2 / (3 * 256)))
  # a mean of 3 squares: were all 24 apart, an eighth
  np.testing.assert_allclose(np.var(seen), 2 * 100**4 / 3, rtol=0.5)


@pytest.mark.parametrize("weight", [0.5, 2.0])
def test_direction_is_the_angle_between_output_and_target(weight):
  row = Predict("flow")
  exact = losses(Exact(Flow(), row), STILL, process=Flow(), parametrization=row, direction_weight=weight)
  assert exact.max() < 1e-4
  opposite = losses(
    Opposite(Exact(Flow(), row)), STILL, process=Flow(), parametrization=row, direction_weight=weight
  )
  plain = losses(Opposite(Exact(Flow(), row)), STILL, process=Flow(), parametrization=row)
  np.testing.assert_allclose(opposite - plain, 2 * weight, rtol=1e-4)


class Opposite(nn.Module):
  inner: nn.Module

  def __call__(self, *args):
    return Output(-self.inner(*args).value)


@pytest.mark.parametrize(
  ("fields", "message"),
  [({"self_conditioning": -0.1}, "self_conditioning=-0.1; expected a share from 0 to 1")],
)
def test_mistakes_are_refused(fields, message):
  with pytest.raises(UserError) as error:
    Diffusion(network=Told(), process=Flow(), **fields)
  assert str(error.value) == message


@pytest.mark.parametrize(("network", "share"), [(Told(), 0.5), (Remembering(), 0.0)])
def test_estimates_are_shown_to_networks_that_read_them(network, share):
  with pytest.raises(
    UserError, match=r"network.self_conditioning=(True|False); expected a share such as 0.5 and True, or"
  ):
    Diffusion(network=network, process=Flow(), self_conditioning=share).check_fields()


def test_its_result_is_what_another_starts_from():
  """A conditioner that the trained one did not have stays new."""
  objective = Diffusion(network=Told(), process=Flow())
  result = objective.result({"denoiser": {"kernel": "trained"}}, {}, {})
  assert result.model is objective and objective.makes == "denoiser"
  assert objective.start({"denoiser": {"kernel": "new"}, "text": "new"}, {}, result.params) == (
    {"denoiser": {"kernel": "trained"}, "text": "new"},
    {},
  )


class Beside(nn.Module):
  """Its condition, summed over channels."""

  def __call__(self, z, noise_level, inputs, estimate=None):
    return Output(jnp.zeros_like(z) + inputs["concat"].sum(-1, keepdims=True))


def test_a_pair_is_reported_standardised():
  """From the pictures to the network: what `cache` keeps of them is what it is given."""
  objective = Diffusion(
    network=Beside(),
    process=Flow(),
    parametrization=Predict("x0"),
    conditioners=(Paired(degradation=Grey()),),
  )
  codec = {"params": {"scale": np.float32(3)}, "mean": np.zeros(3), "std": np.full(3, 2.0)}
  halved = {"codec": Loaded(ImageCodec(Scaled()), codec)}
  kept = quick(objective.cache)(halved, BATCH, row_keys(KEY, BATCH["row"]))
  assert kept.keys() == {"paired__concat"}
  batch = STILL | {"mean": filled(0)} | kept
  values = quick(objective.loss)({"denoiser": {}}, {}, (), halved, batch, KEY)[0]
  grey = 3 * np.asarray(Grey()(np.float32(BATCH["image"] / 127.5 - 1)))[:, ::2, ::2]
  np.testing.assert_allclose(values, (grey.sum(-1) / 2) ** 2 @ np.ones(4) @ np.ones(2) / 8, rtol=1e-5)


def test_what_is_known_is_encoded_by_the_frozen_parameters_and_what_is_hidden_is_not_told():
  """A network that returns its condition has the loss of standardised pixels where nothing is hidden,
  and where all is of 0.
  """

  class Known(nn.Module):
    def __call__(self, z, noise_level, inputs, estimate=None):
      return Output(inputs["concat"][..., :-1])

  objective = Diffusion(
    network=Known(), process=Flow(), parametrization=Predict("x0"), conditioners=(Masked(dropout=0.0),)
  )
  # of one colour, so that filling is
  pixels = np.where(RNG.uniform(size=(8, 1, 1, 1)) < 0.5, 0, 255) * np.ones((8, 4, 8, 3))
  batch = STILL | {"mean": 3 * (pixels[:, ::2, ::2] / 127.5 - 1), "image": np.uint8(pixels)}  # what there was
  loss = lambda objective: quick(objective.loss)({"denoiser": {}}, {}, (), CODEC, batch, KEY)[0]
  np.testing.assert_allclose(loss(objective), 0, atol=1e-9)
  nothing = loss(dataclasses.replace(objective, conditioners=(Masked(dropout=1.0),)))
  np.testing.assert_allclose(nothing, (((batch["mean"] - MEAN) / STD) ** 2).mean((1, 2, 3)), rtol=1e-4)


@pytest.mark.parametrize("other", [Masked(), Paired(dropout=0.5)])
def test_a_condition_leaves_the_other_draws_as_they_were(other):
  label, batch = ClassLabel(classes=3, dropout=0.5), BATCH | {"paired__concat": BATCH["mean"]}
  both, one = (
    losses(Told(), batch, conditioners=conditioners) for conditioners in ((label, other), (label,))
  )
  np.testing.assert_array_equal(both, one)


@pytest.mark.slow
def test_a_condition_trains_on_eight_devices_as_on_one_and_under_pmap():
  network = DiT(block=ModulatedBlock(heads=1), patch=2, width=8, depth=1, classes=3)
  conditioners = (ClassLabel(classes=3), Masked(dropout=0.3))
  objective = Diffusion(network=network, process=Flow(), conditioners=conditioners)
  params = shaped(objective)
  loss = lambda params, batch: objective.loss(params, {}, params, CODEC, batch, KEY)[0]
  one = quick(loss)(params, BATCH)
  mesh = sharding.mesh_for(8, 8)
  np.testing.assert_allclose(
    quick(loss)(sharding.replicate(mesh, params), sharding.shard_batch(mesh, BATCH)), one, rtol=1e-4
  )
  each = jax.tree.map(lambda x: np.asarray(x)[:, None], BATCH)
  np.testing.assert_allclose(jax.pmap(loss, in_axes=(None, 0))(params, each)[:, 0], one, rtol=1e-4)
