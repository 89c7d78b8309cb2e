"""transformers' DINOv2 and CLIP and ours, reduced: `python tests/parity/vit.py` makes vit.npz.  Needs
torch and transformers 5.

Weights are drawn again from a seed by `randomised`, the same here and in the tests; numpy promises
never to change what RandomState draws.
"""

import json
from pathlib import Path
import tempfile

import numpy as np

SIZES = {"width": 48, "depth": 2, "heads": 4, "patch": 14, "table": 5}
PROJECTION = 20
PIXELS = {"dinov2": {"table": (70, 70), "other": (42, 98)}, "clip": {"table": (70, 70)}}
CASES = {"small": (2, 28, 28, 3), "wide": (1, 37, 61, 3), "large": (1, 400, 250, 3)}
SIDES = {"dinov2": 224, "clip": 336}
COLOURS = {
  "dinov2": {"image_mean": (0.485, 0.456, 0.406), "image_std": (0.229, 0.224, 0.225)},
  "clip": {},
}  # {}: CLIP's own


def randomised(shapes: dict[str, list[int]], seed: int = 0) -> dict[str, np.ndarray]:
  """Weights by their names and shapes: no bias, scale or gate stays where it was."""
  rng, found = np.random.RandomState(seed), {}
  for name, shape in sorted(shapes.items()):
    noise = rng.standard_normal(shape)
    if name.endswith("lambda1") or ("norm" in name and name.endswith("weight")):
      noise = 1 + 0.3 * noise
    elif len(shape) in (2, 4) and name.endswith("weight") and "position" not in name:
      noise *= np.prod(shape[1:]) ** -0.5
    else:
      noise *= 0.3
    found[name] = noise.astype(np.float32)
  return found


def noise(shape: tuple[int, ...]) -> np.ndarray:
  return np.random.RandomState(1).standard_normal(shape).astype(np.float32)


def pictures(shape: tuple[int, ...]) -> np.ndarray:
  """uint8."""
  y, x, c = np.mgrid[: shape[1], : shape[2], : shape[3]]
  waves = [np.sin(0.2 * (i + 1) * y + c) * np.cos(0.15 * x - i) for i in range(shape[0])]
  grain = np.random.RandomState(2).standard_normal(shape)
  return np.rint(np.clip(127 + 110 * np.stack(waves) + 15 * grain, 0, 255)).astype(np.uint8)


def networks():
  from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection, Dinov2Config, Dinov2Model

  each = {
    "hidden_size": SIZES["width"],
    "num_hidden_layers": SIZES["depth"],
    "num_attention_heads": SIZES["heads"],
    "patch_size": SIZES["patch"],
    "image_size": SIZES["patch"] * SIZES["table"],
  }
  clip = CLIPVisionConfig(**each, intermediate_size=4 * SIZES["width"], projection_dim=PROJECTION)
  return {
    "dinov2": Dinov2Model(Dinov2Config(**each)).eval(),
    "clip": CLIPVisionModelWithProjection(clip).eval(),
  }


def main() -> None:
  from PIL import Image
  from safetensors.numpy import load_file, save_file
  import torch
  from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

  arrays = {}
  for kind, network in networks().items():
    with tempfile.TemporaryDirectory() as folder:  # saved and loaded: the names are those of published files
      network.save_pretrained(folder)
      (path,) = Path(folder).glob("*.safetensors")
      shapes = {name: list(value.shape) for name, value in load_file(path).items()}
      save_file(randomised(shapes), path, {"format": "pt"})
      network = type(network).from_pretrained(folder).eval()
    arrays[f"{kind}_shapes"] = json.dumps(shapes)
    for case, (height, width) in PIXELS[kind].items():
      with torch.no_grad():
        found = network(torch.from_numpy(noise((2, height, width, 3))).permute(0, 3, 1, 2))
      arrays[f"{kind}_{case}"] = (found.image_embeds if kind == "clip" else found.pooler_output).numpy()

    side, processor = (
      SIDES[kind],
      CLIPImageProcessorPil(do_resize=False, do_center_crop=False, **COLOURS[kind]),
    )
    for case, shape in CASES.items():
      channels = [
        [
          Image.fromarray(image[..., c].astype(np.float32), mode="F").resize(
            (side, side), Image.Resampling.BICUBIC
          )
          for c in range(3)
        ]
        for image in pictures(shape)
      ]
      small = [np.stack([np.asarray(channel) for channel in each], -1) for each in channels]
      seen = np.stack(
        processor(images=small, return_tensors="np", input_data_format="channels_last")["pixel_values"]
      )
      arrays[f"{kind}_{case}_seen"] = seen.transpose(0, 2, 3, 1)[:, ::13, ::11]
  whole = CLIPImageProcessorPil(size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336})
  seen = np.stack(whole(images=list(64 + pictures(CASES["small"]) // 2), return_tensors="np")["pixel_values"])
  arrays["clip_processed"] = seen.transpose(0, 2, 3, 1)[:, ::13, ::11]  # rounded to 8 bits after the resizing
  np.savez_compressed(Path(__file__).with_suffix(".npz"), **arrays)


if __name__ == "__main__":
  main()
