"""Makes tests/parity/{tiny,dc}_*/: small AutoencoderTiny and AutoencoderDC as diffusers saves them,
and what they say.

Needs torch and diffusers:  python tests/parity/tiny_dc.py

Every parameter and running statistic is random: no gain is 1, no bias 0.  outputs.npz has, for each
of two sizes, images [2, H, W, 3], their latents [2, h, w, c], and what is decoded from other
latents; channels last.
"""

from pathlib import Path

from diffusers import AutoencoderDC, AutoencoderTiny
import numpy as np
import torch

SIZES = {"square": (32, 32), "wide": (16, 48)}
TINY = dict(
  encoder_block_out_channels=(8, 8, 8),
  decoder_block_out_channels=(8, 8, 8),
  num_encoder_blocks=(1, 2, 1),
  num_decoder_blocks=(2, 1, 1),
)
RESIDUAL, ATTENTION = "ResBlock", "EfficientViTBlock"


def both(**options) -> dict:
  """The same of encoder and decoder."""
  return {f"{part}_{name}": value for part in ("encoder", "decoder") for name, value in options.items()}


MODELS = {
  "tiny_sd": (AutoencoderTiny, TINY),
  "tiny_flux": (
    AutoencoderTiny,
    TINY | dict(latent_channels=16, act_fn="gelu", latent_magnitude=4, scaling_factor=0.5),
  ),
  "dc_sana": (
    AutoencoderDC,
    dict(
      latent_channels=4,
      attention_head_dim=4,
      downsample_block_type="conv",
      upsample_block_type="interpolate",
      scaling_factor=0.41407,
      **both(
        block_types=(RESIDUAL, RESIDUAL, ATTENTION, ATTENTION),
        block_out_channels=(4, 8, 8, 16),
        qkv_multiscales=((), (), (5,), (3, 5)),
      ),
      encoder_layers_per_block=(1, 1, 1, 1),
      decoder_layers_per_block=(1, 2, 1, 1),
    ),
  ),
  "dc_in": (
    AutoencoderDC,
    dict(
      latent_channels=8,
      attention_head_dim=4,
      scaling_factor=0.3189,
      decoder_norm_types=("batch_norm", "batch_norm", "rms_norm"),
      decoder_act_fns=("relu", "relu", "silu"),
      **both(
        block_types=(RESIDUAL, RESIDUAL, ATTENTION),
        block_out_channels=(8, 8, 16),
        qkv_multiscales=((), (), ()),
      ),
      encoder_layers_per_block=(0, 1, 1),
      decoder_layers_per_block=(0, 2, 1),
    ),
  ),
}


def randomise(model: torch.nn.Module, rng: np.random.Generator) -> None:
  """Kernels so that variances are kept; gains and running variances in 0.5 to 1.5, biases and running
  means about 0.2.
  """
  for name, value in model.state_dict().items():
    if not value.is_floating_point():
      continue
    if value.ndim > 1:
      drawn = rng.normal(size=value.shape) / np.sqrt(value[0].numel())
    elif name.endswith(("weight", "running_var")):
      drawn = rng.uniform(0.5, 1.5, value.shape)
    else:
      drawn = 0.2 * rng.normal(size=value.shape)
    value.copy_(torch.from_numpy(np.asarray(drawn)))


def channels_last(x: torch.Tensor) -> np.ndarray:
  return np.ascontiguousarray(x.permute(0, 2, 3, 1).numpy())


@torch.no_grad()
def main() -> None:
  for seed, (name, (kind, options)) in enumerate(MODELS.items()):
    folder, rng, arrays = Path(__file__).with_name(name), np.random.default_rng(seed), {}
    model = kind(**options).eval()
    randomise(model, rng)
    model.save_pretrained(folder)
    for size, sides in SIZES.items():
      images = torch.from_numpy(np.float32(rng.uniform(-1, 1, (2, 3, *sides))))
      encoded = model.encode(images)
      latents = encoded[0]
      z = torch.from_numpy(np.float32(2 * rng.normal(size=latents.shape)))
      told = {"images": images, "latents": latents, "z": z, "decoded": model.decode(z).sample}
      arrays |= {f"{size}_{what}": channels_last(value) for what, value in told.items()}
    np.savez_compressed(folder / "outputs.npz", **arrays)


if __name__ == "__main__":
  main()
