"""DINOv2's ViT-S/14, Oquab et al. 2023 (2304.07193), learned without labels: its features follow
people's judgement of samples better than Inception's (Stein et al. 2023, 2306.04675).

The table of 37 x 37 places is interpolated to 16 x 16 as transformers does, at centres of patches;
the authors' own code puts them 0.1 of a patch elsewhere.  No weights ship here: `jldm convert
--kind dinov2` makes them of what a person has.
"""

import functools

import jax

from jldm.metrics.extractors import vit
from jldm.metrics.extractors.extractor import Extracted, Extractor, register_extractor
from jldm.nn.mlp import gelu

SIDE = 224
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of red, green, blue
NETWORK = vit.ViT(
  width=384, depth=12, heads=6, patch=14, table=37, activation=gelu, epsilon=1e-6, layer_scale=True
)


def extract_dino(params: dict, images: jax.Array) -> Extracted:
  """Images uint8 [B, H, W, 3 or 1 (grey)] -> features [B, 384]."""
  return vit.extract_vit(NETWORK, params, vit.preprocess_vit(images, SIDE, MEAN, STD))


DINO = register_extractor(
  Extractor(
    name="dinov2",
    version="ViT-S/14",
    preprocessing=f"{SIDE}x{SIDE}, bicubic",
    apply=extract_dino,
    load=functools.partial(vit.load_vit, NETWORK, "dinov2"),
    batch_size=50,
  )
)
