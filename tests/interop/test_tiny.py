import pytest

from jldm.core.errors import UserError
from jldm.interop import tiny
from jldm.models.autoencoders.tiny import TinyAutoencoder
from tests.published import changed, check_outputs, check_written

NAMES = ("tiny_sd", "tiny_flux")


@pytest.mark.parametrize("name", NAMES)
def test_equals_diffusers(name):
  check_outputs(name)


@pytest.mark.parametrize("name", NAMES)
def test_writes_what_it_read(name, tmp_path):
  check_written(name, tmp_path, {"force_upcast", "latent_magnitude", "latent_shift", "shift_factor"})


def test_an_empty_config_is_the_published_one():
  assert tiny.network({}) == TinyAutoencoder()
  assert tiny.network(tiny.config(TinyAutoencoder())) == TinyAutoencoder()


@pytest.mark.parametrize(
  "values, message",
  [
    ({"act_fn": "elu"}, "config.json has act_fn=elu; expected one of relu, silu, gelu, mish"),
    ({"upsample_fn": "bilinear"}, "upsample_fn=bilinear; expected nearest"),
    ({"out_channels": 1}, "out_channels=1; expected 3"),
    ({"num_encoder_blocks": [1, -2, 1]}, "num_encoder_blocks=-2; expected a whole number from 0 to 16"),
    ({"num_encoder_blocks": [1, 2]}, "jldm has one width alone, and as many levels of both"),
    ({"decoder_block_out_channels": [8, 8, 9]}, "jldm has one width alone, and as many levels of both"),
  ],
)
def test_what_it_cannot_be(values, message):
  with pytest.raises(UserError, match=message):
    tiny.network(changed("tiny_sd", **values))
