"""The picture half of CLIP, Radford et al. 2021 (2103.00020): ViT-L/14 at 336 pixels, the features of
CMMD (2401.09603).

jldm ships no weights: `jldm convert --kind clip` makes them from published ones.
"""

import functools

import jax

from jldm.metrics.extractors import vit
from jldm.metrics.extractors.extractor import Extracted, Extractor, register_extractor
from jldm.nn.mlp import quick_gelu

SIDE = 336
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # of red, green, blue
NETWORK = vit.ViT(
  width=1024,
  depth=24,
  heads=16,
  patch=14,
  table=24,
  activation=quick_gelu,
  epsilon=1e-5,
  patch_bias=False,
  first_norm=True,
  projection=768,
)


def extract_clip(params: dict, images: jax.Array) -> Extracted:
  """Images uint8 [B, H, W, 3 or 1 (grey)] -> features [B, 768]."""
  return vit.extract_vit(NETWORK, params, vit.preprocess_vit(images, SIDE, MEAN, STD))


CLIP = register_extractor(
  Extractor(
    name="clip",
    version="ViT-L/14-336",
    preprocessing=f"{SIDE}x{SIDE}, bicubic",
    apply=extract_clip,
    load=functools.partial(vit.load_vit, NETWORK, "clip"),
    batch_size=25,
  )
)
