import pytest

from jldm.core.errors import UserError
from jldm.interop import dc
from jldm.models.autoencoders.dc import Convolutions, DCAutoencoder, Level, LinearAttention
from tests.marks import slow_after
from tests.published import changed, check_outputs, check_written

NAMES = ("dc_sana", "dc_in")


@pytest.mark.parametrize("name", slow_after(1, NAMES))
def test_equals_diffusers(name):
  check_outputs(name)


@pytest.mark.parametrize("name", NAMES)
def test_writes_what_it_read(name, tmp_path):
  check_written(name, tmp_path)


def test_the_default_is_sana():
  published = dc.config(DCAutoencoder())
  assert published["encoder_block_types"] == ["ResBlock"] * 3 + ["EfficientViTBlock"] * 3
  assert (
    published["encoder_layers_per_block"] == [2, 2, 2, 3, 3, 3]
    and published["downsample_block_type"] == "conv"
  )
  assert dc.network(published) == DCAutoencoder()


@pytest.mark.parametrize(
  "values, message",
  [
    ({"decoder_layers_per_block": [0, 0, 1]}, "only the first, of the finest level, may be 0"),
    ({"decoder_layers_per_block": [0, 2]}, "expected 3 values, one a level"),
    (
      {"decoder_block_types": "Swin"},
      "decoder_block_types=Swin; expected one of ResBlock, EfficientViTBlock",
    ),
    ({"decoder_norm_types": "batch_norm"}, "decoder_norm_types=batch_norm; expected rms_norm"),
    ({"encoder_qkv_multiscales": [[], [], [4]]}, "encoder_qkv_multiscales=4; expected one of 1, 3, 5, 7"),
    ({"encoder_qkv_multiscales": [[], [], 5]}, "expected up to 4 odd numbers a level"),
    ({"upsample_block_type": "conv"}, "upsample_block_type=conv; expected one of pixel_shuffle, interpolate"),
    ({"encoder_out_shortcut": 1}, "encoder_out_shortcut=1; expected true or false"),
    (
      {
        "encoder_block_out_channels": [8, 16],
        "encoder_layers_per_block": [0, 1],
        "encoder_qkv_multiscales": [[], []],
        "encoder_block_types": "ResBlock",
      },
      "2 levels of the encoder and 3 of the decoder; expected as many",
    ),
  ],
)
def test_what_it_cannot_be(values, message):
  with pytest.raises(UserError, match=message):
    dc.network(changed("dc_in", **values))


@pytest.mark.parametrize(
  "levels, message",
  [
    (
      (Level(8, 1, LinearAttention(4)), Level(8, 1, LinearAttention(8))),
      "heads of widths [4, 8], and diffusers has one",
    ),
    ((Level(8, 1, Convolutions("batch")), Level(8, 1)), "in its encoder, where diffusers has Convolutions"),
  ],
)
def test_what_diffusers_cannot_be(levels, message):
  with pytest.raises(UserError, match=message.replace("[", r"\[").replace("]", r"\]")):
    dc.config(DCAutoencoder(encoder_levels=levels, decoder_levels=(Level(8, 1), Level(8, 1))))
