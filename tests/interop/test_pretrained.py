"""Published folders and files into codecs and back; what is bad is refused in one line."""

import json
from pathlib import Path
import shutil

from flax import serialization
from hypothesis import HealthCheck, given, settings, strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jldm.core.errors import UserError
from jldm.core.specs import Loaded
from jldm.interop import locate, pretrained, rename, safetensors, tiny, vae
from jldm.models.autoencoders.kl import KLAutoencoder
from jldm.models.autoencoders.posterior import Gaussian
from jldm.models.autoencoders.quantize import FSQ, Codebook
from jldm.models.autoencoders.vq import VQAutoencoder
from jldm.models.codecs import codec as codecs
from jldm.models.codecs.images import ImageCodec
from tests.interop.later import add_later
from tests.networks import randomised
from tests.parity.drawn import SD, old_flax

TINY = dict(widths=(4, 8), resnets=1, groups=2)
NETWORKS = (
  KLAutoencoder(**TINY, attention=(1,)),
  KLAutoencoder(**TINY, channels=1, latent_channels=2, pointwise=False, middle_attention=False),
  VQAutoencoder(Codebook(16), **TINY, latent_channels=3, features=5),
)


def codec_of(network, seed: int = 0, mean=0.0, std=2.0) -> dict:
  codec = randomised(codecs.init_shapes(ImageCodec(network)), seed)
  if codec["extra"]:
    codec["extra"] = {"codebook": network.quantizer.state(jnp.asarray(codec["extra"]["codebook"]["sums"]))}
  vector = np.ones(network.latent_channels, np.float32)
  return codec | {"mean": mean * vector, "std": std * vector}


def assert_equal(a, b):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize("network", NETWORKS, ids=lambda network: type(network).__name__)
def test_what_is_saved_is_loaded(network, tmp_path):
  codec = codec_of(network)
  pretrained.save(tmp_path / "x", network, codec)
  again, back = pretrained.read_pretrained(tmp_path / "x")
  assert again == network
  assert_equal(back, jax.tree.map(jnp.asarray, codec))


@pytest.mark.parametrize(
  ("mean", "std", "scale"),
  [
    (0.0, 1 / 0.18215, {"scaling_factor": 0.18215}),
    (0.0609, 1 / 1.5305, {"scaling_factor": 1.5305, "shift_factor": 0.0609}),
    ((0.1, -0.2, 0.3, 0.0), (1.0, 2.0, 3.0, 4.0), None),
  ],
)
def test_the_scale_of_latents_is_the_configs(mean, std, scale, tmp_path):
  network = NETWORKS[0]
  codec = codec_of(network) | {
    "mean": np.float32(np.broadcast_to(mean, 4)),
    "std": np.float32(np.broadcast_to(std, 4)),
  }
  pretrained.save(tmp_path, network, codec)
  config = json.loads((tmp_path / "config.json").read_text())
  if scale:
    assert {name: config.get(name) for name in ("scaling_factor", "shift_factor") if name in config} == scale
  back = pretrained.read_pretrained(tmp_path)[1]
  assert_equal([np.asarray(back[name]) for name in ("mean", "std")], [codec["mean"], codec["std"]])


def test_a_config_that_says_nothing_means_stable_diffusion(tmp_path):
  changed(tmp_path, lambda config: config.pop("scaling_factor"))
  np.testing.assert_allclose(pretrained.read_pretrained(tmp_path)[1]["std"], 1 / 0.18215, rtol=1e-6)


def test_old_names_of_attention_and_a_pipelines_folder(tmp_path):
  network, codec = pretrained.read_pretrained(SD)
  shutil.copytree(SD, tmp_path / "vae")
  tensors = rename.publish(vae.table(network, "old diffusers"), codec["params"])
  assert "encoder.mid_block.attentions.0.proj_attn.weight" in tensors
  safetensors.write(tmp_path / "vae" / locate.WEIGHTS, tensors)
  assert_equal(pretrained.read_pretrained(tmp_path)[1], codec)


def test_parts_with_an_index(tmp_path):
  expected = pretrained.read_pretrained(SD)[1]
  tensors = safetensors.read(SD / locate.WEIGHTS)
  places = {name: f"part-{i % 3}.safetensors" for i, name in enumerate(tensors)}
  for part in sorted(set(places.values())):
    safetensors.write(tmp_path / part, {name: tensors[name] for name in tensors if places[name] == part})
  shutil.copy(SD / "config.json", tmp_path)
  index = tmp_path / locate.INDEX
  index.write_text(json.dumps({"metadata": {"total_size": 1.0}, "weight_map": places}))
  assert_equal(pretrained.read_pretrained(tmp_path)[1], expected)
  (tmp_path / "part-1.safetensors").rename(tmp_path / "elsewhere")
  assert "names the part 'part-1.safetensors', which is not beside it" in refused(tmp_path)
  shutil.copy(tmp_path / "part-2.safetensors", tmp_path / "part-1.safetensors")
  assert "disagree on" in refused(tmp_path)
  for bad in ({}, {"weight_map": {"a": "../x.safetensors"}}, {"weight_map": {"a": 1}}, {"weight_map": []}):
    index.write_text(json.dumps(bad))
    assert "has no weight_map" in refused(tmp_path)


def published(tensors: dict, folder: Path, name: str) -> None:
  """A folder with the config of vae_sd and one file."""
  folder.mkdir(parents=True, exist_ok=True)
  shutil.copy(SD / "config.json", folder)
  safetensors.write(folder / name, tensors)


def cast(tensors, dtype) -> dict:
  return {name: np.asarray(value, dtype) for name, value in tensors.items()}


def assert_is(source, tensors) -> None:
  """The source is vae_sd with these values, in float32."""
  network, codec = pretrained.read_pretrained(source)
  assert network == pretrained.read_pretrained(SD)[0]
  written = rename.publish(vae.table(network), codec["params"])
  assert written.keys() == tensors.keys()
  for name, value in tensors.items():
    np.testing.assert_array_equal(written[name], np.asarray(value, np.float32))
  np.testing.assert_allclose(codec["std"], 1 / 0.18215, rtol=1e-6)


VARIANT_INDEXES = ("{model}.safetensors.index.{variant}.json", "{model}.{variant}.safetensors.index.json")
VARIANT_PARTS = (
  "{model}.{variant}-0000{i}-of-00002.safetensors",
  "{model}-0000{i}-of-00002.{variant}.safetensors",
)


@pytest.mark.parametrize("place", ["", "vae"])
@pytest.mark.parametrize("variant", ["fp16", "bf16"])
def test_a_half_precision_variant_alone(variant, place, tmp_path):
  half = cast(safetensors.read(SD / locate.WEIGHTS), {"fp16": np.float16, "bf16": jnp.bfloat16}[variant])
  published(half, tmp_path / place, f"diffusion_pytorch_model.{variant}.safetensors")
  assert_is(tmp_path, half)


@pytest.mark.parametrize("part", VARIANT_PARTS)
@pytest.mark.parametrize("index", VARIANT_INDEXES)
def test_a_half_precision_variant_in_parts(index, part, tmp_path):
  half = cast(safetensors.read(SD / locate.WEIGHTS), np.float16)
  shutil.copy(SD / "config.json", tmp_path)
  spelled = {"model": "diffusion_pytorch_model", "variant": "fp16"}
  places = {name: part.format(**spelled, i=1 + i % 2) for i, name in enumerate(half)}
  for file in set(places.values()):
    safetensors.write(tmp_path / file, {name: half[name] for name in half if places[name] == file})
  index = tmp_path / index.format(**spelled)
  index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
  assert_is(tmp_path, half)
  assert_is(index, half)


@pytest.mark.parametrize("half_first", [False, True])
def test_of_two_variants_the_full_one_is_taken(half_first, tmp_path):
  full = safetensors.read(SD / locate.WEIGHTS)
  files = {locate.WEIGHTS: full, "diffusion_pytorch_model.fp16.safetensors": cast(full, np.float16)}
  for name in sorted(files, reverse=half_first):
    published(files[name], tmp_path, name)
  assert_is(tmp_path, full)
  assert_is(tmp_path / "diffusion_pytorch_model.fp16.safetensors", cast(full, np.float16))


@pytest.mark.parametrize(
  "name", [locate.WEIGHTS, "diffusion_pytorch_model.fp16.safetensors", "x.safetensors"]
)
def test_a_file_with_its_config_beside_it_is_read_as_its_folder(name, tmp_path, monkeypatch):
  full = safetensors.read(SD / locate.WEIGHTS)
  published(full, tmp_path / "vae", name)
  assert_is(tmp_path / "vae" / name, full)
  monkeypatch.chdir(tmp_path / "vae")
  assert_is(name, full)
  (tmp_path / "vae" / "config.json").unlink()
  message = refused(name)
  assert f"{name!r} has no config.json of diffusers beside it, and is no autoencoder of CompVis" in message


def test_the_config_of_another_model_beside_a_file(tmp_path):
  published(safetensors.read(SD / locate.WEIGHTS), tmp_path, locate.WEIGHTS)
  for config, message in (
    ({"_class_name": "UNet2DConditionModel"}, "is of 'UNet2DConditionModel'; expected one of AutoencoderKL"),
    ({"model_type": "clip"}, "has no config.json of diffusers beside it"),
  ):
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert message in refused(tmp_path / locate.WEIGHTS)


def test_a_file_of_compvis_describes_itself_beside_any_config(tmp_path):
  network, codec = pretrained.read_pretrained(SD)
  tensors = rename.publish(vae.table(network, "CompVis"), codec["params"])
  published(tensors, tmp_path, "x.safetensors")
  assert "does not say how its latents are scaled" in refused(tmp_path / "x.safetensors")
  published(tensors, tmp_path, locate.WEIGHTS)  # as its folder
  assert_equal(pretrained.read_pretrained(tmp_path / locate.WEIGHTS)[1], codec)


@pytest.mark.parametrize(
  "parity", ["vae_sd", "tiny_sd", "tiny_flux", "dc_sana", "dc_in", "VQModel"], ids=lambda parity: parity
)
def test_a_field_that_is_null_is_its_default(parity, tmp_path):
  """Each field of a config, null in one and missing in the other."""
  name = "vae_sd" if parity == "VQModel" else parity
  whole = json.loads((SD.parent / name / "config.json").read_text())
  if parity == "VQModel":
    whole |= {
      "_class_name": "VQModel",
      "vq_embed_dim": 3,
      "num_vq_embeddings": 16,
      "lookup_from_codebook": False,
    }
  path = tmp_path / "config.json"

  def read(config: dict):
    path.write_text(json.dumps(config))
    try:
      read = pretrained.read_config(path)
      network = pretrained.CLASSES[read["_class_name"]].network(read)
      mean, std = pretrained.read_statistics(read, network.latent_channels)
      return network, mean.tolist(), std.tolist()
    except UserError as error:  # the default does not fit the other fields
      return str(error)

  for field in whole:
    missing = {name: value for name, value in whole.items() if name != field}
    if field == "_class_name":
      assert "is of 'None'; expected one of AutoencoderKL" in read(whole | {field: None})
    else:
      assert read(whole | {field: None}) == read(missing), field
  nothing = {"_class_name": whole["_class_name"]}
  assert read(dict.fromkeys(whole) | nothing) == read(nothing)
  assert not isinstance(read(nothing), str)


def test_a_scale_that_is_null_is_stable_diffusions(tmp_path):
  changed(tmp_path, lambda config: config.update(scaling_factor=None))
  np.testing.assert_allclose(pretrained.read_pretrained(tmp_path)[1]["std"], 1 / 0.18215, rtol=1e-6)


def test_a_null_within_a_list_is_no_default(tmp_path):
  with pytest.raises(UserError, match="num_encoder_blocks=None; expected a whole number from 0 to 16"):
    tiny.network({"num_encoder_blocks": [1, None, 3, 3]})


def test_an_oversized_config_and_one_that_is_no_json(tmp_path):
  shutil.copytree(SD, tmp_path, dirs_exist_ok=True)
  (tmp_path / "config.json").write_text("{" + " " * 2**20 + "}")
  assert "has more than 1048576 bytes; expected an autoencoder's config.json" in refused(tmp_path)
  (tmp_path / "config.json").write_text('{"_class_name": "AutoencoderKL",\n}')
  assert "is no JSON (" in (message := refused(tmp_path)) and "line 2 column 1" in message


def test_a_folder_with_another_file_names_it(tmp_path):
  published(safetensors.read(SD / locate.WEIGHTS), tmp_path, "model.safetensors")
  assert "has 'model.safetensors', none of diffusion_pytorch_model.safetensors" in refused(tmp_path)
  assert_is(tmp_path / "model.safetensors", safetensors.read(SD / locate.WEIGHTS))  # as it advises


@pytest.mark.parametrize("dtype", ["F8_E8M0", "F4", "C64", "F8_E4M3FNUZ", "F6_E2M3"])
def test_later_dtypes_of_what_is_not_the_autoencoders(dtype, tmp_path):
  """Of a whole model's file: its diffusion model is quantised, its autoencoder is not."""
  path = tmp_path / "diffusion_pytorch_model.safetensors"
  shutil.copytree(SD, tmp_path, dirs_exist_ok=True)
  add_later(path, "model.diffusion_model.out.weight", dtype)
  assert_is(tmp_path, safetensors.read(SD / locate.WEIGHTS))
  add_later(path, "quant.weight", dtype)
  assert "has 1 tensors beyond the 180 of this network: quant.weight" in refused(tmp_path)


def changed(folder: Path, change) -> None:
  """The folder vae_sd with another config."""
  shutil.copytree(SD, folder, dirs_exist_ok=True)
  config = json.loads((folder / "config.json").read_text())
  change(config)
  (folder / "config.json").write_text(json.dumps(config))


def refused(source, **options) -> str:
  with pytest.raises(UserError) as error:
    pretrained.read_pretrained(source, **options)
  message = str(error.value)
  assert message.isprintable() and len(message) < 700 + len(str(source))
  return message


@pytest.mark.parametrize(
  ("name", "value", "message"),
  [
    ("_class_name", "UNet2DModel", "is of 'UNet2DModel'; expected one of AutoencoderKL, VQModel"),
    ("act_fn", "gelu", "act_fn='gelu'; expected 'silu'"),
    ("block_out_channels", [8, 8, 16, 1 << 40], "expected a whole number from 1 to"),
    ("block_out_channels", [8] * 99, "expected 1 to 8 whole numbers"),
    ("block_out_channels", [8, 16], "expected 2 of DownEncoderBlock2D"),
    ("block_out_channels", [8, 8, 20, 20], r"is \[16\], expected \[20\]; give the config.json"),
    ("norm_num_groups", 5, "groups=5 does not divide 8 channels"),
    ("layers_per_block", 2, r"lacks \d+ of \d+ tensors: decoder.up_blocks.0.resnets.2.conv1.bias, "),
    ("use_quant_conv", "yes", "use_quant_conv=yes; expected true or false"),
    ("use_quant_conv", False, "has one of use_quant_conv and use_post_quant_conv"),
    (
      "mid_block_add_attention",
      False,
      r"has \d+ tensors beyond the \d+ of this network: decoder.mid_block.attentions",
    ),
    ("scaling_factor", 0, "expected positive numbers"),
    ("scaling_factor", 1e-300, "expected positive numbers"),
    ("scaling_factor", "1", "expected a finite number, or 4 of them"),
    ("latents_mean", [0.0], "latents_mean=.*expected a finite number, or 4 of them"),
    ("out_channels", 4, "other out_channels"),
    (
      "down_block_types",
      ["AttnDownEncoderBlock2D"] * 4,
      r"attention at levels \(0, 1, 2, 3\) of the encoder",
    ),
  ],
)
def test_a_config_that_does_not_fit(name, value, message, tmp_path):
  changed(tmp_path, lambda config: config.update({name: value}))
  with pytest.raises(UserError, match=message):
    pretrained.read_pretrained(tmp_path)


VALUES = st.recursive(
  st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**40), 10**40),
    st.integers(0, 9),
    st.floats(),
    st.text(max_size=3),
  ),
  lambda inner: st.one_of(
    st.lists(inner, max_size=5), st.dictionaries(st.text(max_size=2), inner, max_size=2)
  ),
  max_leaves=6,
)


@settings(
  max_examples=200,
  deadline=None,
  derandomize=True,
  suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
  st.dictionaries(
    st.sampled_from(sorted(json.loads((SD / "config.json").read_text()))), VALUES, min_size=1, max_size=3
  )
)
def test_whatever_a_config_says_our_errors_alone_are_raised(tmp_path, changes):
  path = tmp_path / "config.json"
  path.write_text(json.dumps(json.loads((SD / "config.json").read_text()) | changes))
  try:
    config = pretrained.read_config(path)
    network = vae.network(config)
    mean, std = pretrained.read_statistics(config, network.latent_channels)
    assert np.isfinite(mean).all() and (std > 0).all() and np.isfinite(std).all()
  except UserError as error:
    assert str(error).isprintable() and len(str(error)) < 500 + len(str(path))


def test_what_is_not_there(tmp_path):
  assert "does not exist" in refused(tmp_path / "no")
  assert "has no config.json" in refused(tmp_path)
  shutil.copy(SD / "config.json", tmp_path)
  assert "has none of diffusion_pytorch_model.safetensors, " in refused(tmp_path)
  (tmp_path / "diffusion_pytorch_model.bin").write_bytes(b"PK\x03\x04")
  assert "is a pickle, which may run code" in refused(tmp_path)
  (tmp_path / "config.json").write_text("{")
  assert "is no JSON" in refused(tmp_path)


def test_a_file_of_compvis_must_say_its_scale(tmp_path):
  network, codec = pretrained.read_pretrained(SD)
  tensors = rename.publish(vae.table(network, "CompVis"), codec["params"])
  path = tmp_path / "x.safetensors"
  safetensors.write(path, tensors)
  assert "does not say how its latents are scaled; give --scaling-factor: 0.18215" in refused(path)
  safetensors.write(path, tensors | {"scale_factor": np.float32(0.5)})
  with pytest.raises(UserError, match="groups=32 does not divide 8"):  # CompVis has no other number
    pretrained.read_pretrained(path)
  safetensors.write(
    path, {name: value for name, value in tensors.items() if name != "decoder.conv_in.weight"}
  )
  assert "lacks decoder.conv_in.weight" in refused(path, scaling_factor=1.0)


def test_networks_that_diffusers_has_not(tmp_path):
  for network, message in (
    (KLAutoencoder(**TINY, patch=2), "patch=2"),
    (KLAutoencoder(**TINY, features=8), "features=8"),
    (VQAutoencoder(FSQ((3, 3)), **TINY, latent_channels=2), "FSQ"),
  ):
    with pytest.raises(UserError, match=message):
      pretrained.save(tmp_path / "x", network, codec_of(network))
  assert not (tmp_path / "x").exists()


@pytest.mark.slow
def test_old_flax_trees_and_their_msgpack(tmp_path):
  network, codec = pretrained.read_pretrained(SD)
  tree = old_flax(safetensors.read(SD / locate.WEIGHTS))
  assert tree["encoder"]["down_blocks_0"]["downsamplers_0"]["conv"]["kernel"].shape == (3, 3, 8, 8)
  assert tree["decoder"]["mid_block"]["attentions_0"]["proj_attn"]["kernel"].shape == (16, 16)
  assert_equal(pretrained.from_flax(network, tree), codec["params"])
  assert_equal(pretrained.from_flax(network, {"params": tree}), codec["params"])
  shutil.copy(SD / "config.json", tmp_path)
  (tmp_path / locate.FLAX).write_bytes(serialization.to_bytes(tree))
  assert_equal(pretrained.read_pretrained(tmp_path)[1], codec)
  tree["encoder"]["conv_in"]["kernel"] = tree["encoder"]["conv_in"]["kernel"][:1]
  (tmp_path / locate.FLAX).write_bytes(serialization.to_bytes(tree))
  assert r"encoder.conv_in.kernel of" in refused(tmp_path)


@pytest.mark.slow
def test_the_autoencoder_of_research_code():
  autoencoder, params = pretrained.load(SD)
  images = np.random.RandomState(0).uniform(-1, 1, (2, 16, 16, 3)).astype(np.float32)
  posterior = jax.jit(autoencoder.encode)(params, images)
  raw = posterior.sample(jax.random.split(jax.random.key(0), 2))
  latents = autoencoder.scaled(params, raw)
  np.testing.assert_allclose(latents, raw * 0.18215, rtol=1e-5)
  np.testing.assert_allclose(autoencoder.raw(params, latents), raw, rtol=1e-5)
  back = jax.jit(autoencoder.decode)(params, raw)
  np.testing.assert_allclose(
    np.clip(back, -1, 1), codecs.decode_latents(Loaded(autoencoder.codec, params), latents), atol=1e-4
  )


GREY = KLAutoencoder(channels=1, latent_channels=2, widths=(4, 4), resnets=1, groups=2)


@pytest.mark.parametrize(
  ("images", "message"),
  [
    (
      np.zeros((1, 8, 8), np.uint8),
      "images of shape [1, 8, 8]; expected [B, H, W, 1]; channels come last here",
    ),
    (
      np.zeros((3, 1, 8, 8), np.uint8),
      "expected [B, H, W, 1]; channels come last here: images.transpose(0, 2, 3",
    ),
    (
      np.zeros((8, 8, 1), np.uint8),
      "images of shape [8, 8, 1]; expected [B, H, W, 1]; for a batch of one: images[",
    ),
    (np.zeros((8, 8), np.uint8), "images of shape [8, 8]; expected [B, H, W, 1]"),
    (np.zeros((1, 9, 8, 1), np.uint8), "size 9x8; expected sides divisible by the autoencoder's factor 2"),
    (
      np.linspace(0, 255, 64).reshape(1, 8, 8, 1),
      "images of floats from 0 to 255; expected uint8, or floats in",
    ),
    (np.full((1, 8, 8, 1), np.nan, np.float32), "images of floats from nan to nan; expected uint8"),
    (np.zeros((1, 8, 8, 1), np.int32), "images of int32; expected uint8, or floats in [-1, 1]"),
  ],
)
def test_images_that_are_no_batch_of_pixels_are_one_clear_error(images, message):
  with pytest.raises(UserError) as error:
    pretrained.Autoencoder(GREY).encode({}, images)
  assert message in str(error.value) and "\n" not in str(error.value)


def test_latents_that_are_no_batch_and_one_key_for_a_batch_are_one_clear_error():
  with pytest.raises(
    UserError, match=r"latents of shape \[2, 4, 4\]; expected \[B, H, W, 2\]; channels come last"
  ):
    pretrained.Autoencoder(GREY).decode({}, np.zeros((2, 4, 4), np.float32))
  posterior = Gaussian(jnp.zeros((3, 4, 4, 2)), jnp.zeros((3, 4, 4, 2)))
  for key in (jax.random.key(0), jax.random.PRNGKey(0), jax.random.split(jax.random.key(0))):
    with pytest.raises(
      UserError, match=r"for a batch of 3; expected one per row: jax\.random\.split\(key, 3\)"
    ):
      posterior.sample(key)
  for keys in (jax.random.split(jax.random.key(0), 3), jax.random.split(jax.random.PRNGKey(0), 3)):
    assert posterior.sample(keys).shape == (3, 4, 4, 2)
