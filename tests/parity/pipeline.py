"""Pictures of diffusers' pipelines with random parameters: python tests/parity/pipeline.py

Needs torch, diffusers and transformers; writes pipeline.npz, which the tests read without any of them.  Of
every pipeline it keeps the files that `save_pretrained` wrote, but for weights: names and shapes alone, since
parameters are drawn anew (`drawn.py`).  Of every scheduler it keeps the picture that the pipeline drew from
LATENTS, before it is rounded.
"""

import json
from pathlib import Path
import tempfile

import diffusers
from drawn import parameters
import numpy as np
from safetensors import safe_open
import torch
import transformers
from transformers.convert_slow_tokenizer import bytes_to_unicode
from unet import NETWORKS

HERE = Path(__file__).parent
PROMPT, NEGATIVE, SCALE, STEPS = "a red cat", "blurred", 3.0, 20
WORDS = ("a", "red", "cat", "blur", "red</w>", "cat</w>", "a</w>")
LENGTH, SIDE, FACTOR = 12, 8, 2
VAE = {
  "block_out_channels": (8, 16),
  "down_block_types": ("DownEncoderBlock2D",) * 2,
  "up_block_types": ("UpDecoderBlock2D",) * 2,
  "layers_per_block": 1,
  "norm_num_groups": 4,
  "latent_channels": 4,
  "sample_size": SIDE * FACTOR,
}
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
V = {"prediction_type": "v_prediction"}
STABLE = BETAS | {"clip_sample": False, "set_alpha_to_one": False}
SCHEDULERS = {
  "ddim": (diffusers.DDIMScheduler, STABLE),
  "dpm": (diffusers.DPMSolverMultistepScheduler, BETAS),
  "pndm": (diffusers.PNDMScheduler, BETAS | {"set_alpha_to_one": False, "skip_prk_steps": True}),
  "euler": (diffusers.EulerDiscreteScheduler, BETAS | {"timestep_spacing": "leading"}),
}
DRAWN = {  # family -> schedulers, with what is further in their configs
  "sd1": {"ddim": {}, "dpm": {}, "pndm": {}},
  "sd2": {"ddim": V, "dpm": V},
  "xl": {"euler": {}, "ddim": {}, "dpm": {}},
  "inpaint": {"ddim": {}},
}
CLASSES = {"inpaint": diffusers.StableDiffusionInpaintPipeline}  # of what is not the common one
TOWER = {
  "intermediate_size": 48,
  "num_attention_heads": 4,
  "num_hidden_layers": 3,
  "max_position_embeddings": LENGTH,
  "eos_token_id": 2,
}
TOWERS = {  # family -> class, config of each tower
  "sd1": [(transformers.CLIPTextModel, {"hidden_size": 24, "hidden_act": "quick_gelu"})],
  "sd2": [(transformers.CLIPTextModel, {"hidden_size": 24, "hidden_act": "gelu"})],
  "inpaint": [(transformers.CLIPTextModel, {"hidden_size": 24, "hidden_act": "quick_gelu"})],
  "xl": [
    (transformers.CLIPTextModel, {"hidden_size": 8, "hidden_act": "quick_gelu"}),
    (
      transformers.CLIPTextModelWithProjection,
      {"hidden_size": 16, "hidden_act": "gelu", "projection_dim": 16},
    ),
  ],
}


def tokenizer(padding: str) -> transformers.CLIPTokenizer:
  """All bytes, whole and at the end of a word, and some words."""
  letters = sorted(set(bytes_to_unicode().values()))
  merges, made = [], []
  for word in WORDS:
    ending = word.endswith("</w>")
    parts = list(word.removesuffix("</w>"))
    parts[-1] += "</w>" if ending else ""
    while len(parts) > 1:
      pair = (parts[0], parts[1])
      parts = ["".join(pair), *parts[2:]]
      if pair not in merges:
        merges.append(pair)
        made.append(parts[0])
  names = [*letters, *(f"{letter}</w>" for letter in letters), *made, "<|startoftext|>", "<|endoftext|>"]
  vocabulary = {name: i for i, name in enumerate(dict.fromkeys(names))}
  return transformers.CLIPTokenizer(
    vocab=vocabulary, merges=merges, pad_token=padding, model_max_length=LENGTH
  )


def pipeline(family: str) -> diffusers.DiffusionPipeline:
  """The pipeline with the parameters that its classes draw."""
  ends = ("<|endoftext|>", "!")
  tokenizers = [tokenizer(padding) for padding in (ends if family != "sd2" else ends[1:])]
  towers = [
    kind(transformers.CLIPTextConfig(**TOWER | own, vocab_size=len(tokenizers[0]), pad_token_id=0))
    for kind, own in TOWERS[family]
  ]
  vae = diffusers.AutoencoderKL(**VAE, scaling_factor=0.13025 if family == "xl" else 0.18215)
  scheduler, config = SCHEDULERS[next(iter(DRAWN[family]))]
  parts = {
    "vae": vae,
    "text_encoder": towers[0],
    "tokenizer": tokenizers[0],
    "unet": diffusers.UNet2DConditionModel(**NETWORKS[family]),
    "scheduler": scheduler(**config | DRAWN[family][next(iter(DRAWN[family]))]),
  }
  if family == "xl":
    return diffusers.StableDiffusionXLPipeline(
      **parts, text_encoder_2=towers[1], tokenizer_2=tokenizers[1], add_watermarker=False
    )
  return CLASSES.get(family, diffusers.StableDiffusionPipeline)(
    **parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False
  )


def saved(made: diffusers.DiffusionPipeline) -> tuple[dict[str, str], dict[str, dict]]:
  """The texts that `save_pretrained` writes, and the shapes of each file of weights, by path."""
  texts, shapes = {}, {}
  with tempfile.TemporaryDirectory() as folder:
    made.save_pretrained(folder)
    for path in sorted(Path(folder).rglob("*")):
      name = path.relative_to(folder).as_posix()
      if path.suffix == ".safetensors":
        with safe_open(path, "np") as file:
          shapes[name] = {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118
      elif path.is_file():
        texts[name] = path.read_text()
  return texts, shapes


def randomise(made: diffusers.DiffusionPipeline, shapes: dict[str, dict]) -> None:
  for seed, (name, each) in enumerate(sorted(shapes.items())):
    arrays = {key: torch.from_numpy(value) for key, value in parameters(each, seed).items()}
    missing, surplus = getattr(made, name.split("/")[0]).load_state_dict(arrays, strict=False)
    assert not surplus and all("position_ids" in key for key in missing), (missing, surplus)


def masked(made: diffusers.DiffusionPipeline, image: np.ndarray, known: np.ndarray) -> dict:
  """A picture and its mask for inpainting; the posterior's mean stands for what diffusers draws of it."""
  image, known = (torch.from_numpy(value).permute(0, 3, 1, 2) for value in (image, known))
  with torch.no_grad():
    mean = made.vae.encode(image * known).latent_dist.mode()
  latents = mean * made.vae.config.scaling_factor
  return {"image": image, "mask_image": 1 - known, "masked_image_latents": latents, "strength": 1.0}


def draw(made: diffusers.DiffusionPipeline, latents: np.ndarray, **further) -> np.ndarray:
  """[1, H, W, 3] in [0, 1]."""
  made.set_progress_bar_config(disable=True)
  return made(
    PROMPT,
    negative_prompt=NEGATIVE,
    guidance_scale=SCALE,
    num_inference_steps=STEPS,
    height=latents.shape[1] * FACTOR,
    width=latents.shape[2] * FACTOR,
    latents=torch.from_numpy(latents).permute(0, 3, 1, 2),
    output_type="np",
    **further,
  ).images


def main() -> None:
  latents = np.random.RandomState(0).standard_normal((1, SIDE, SIDE + 4, 4)).astype(np.float32)
  rng, height, width = np.random.RandomState(1), SIDE * FACTOR, (SIDE + 4) * FACTOR
  image = rng.uniform(-1, 1, (1, height, width, 3)).astype(np.float32)
  known = np.ones((1, height, width, 1), np.float32)
  known[:, 3:9, 5:16] = 0
  told, kept = {}, {"latents": latents, "image": image, "known": known}
  for family, schedulers in DRAWN.items():
    made = pipeline(family)
    texts, shapes = saved(made)
    randomise(made, shapes)
    told[family] = {"texts": texts, "shapes": shapes, "schedulers": {}}
    for name, further in schedulers.items():
      kind, config = SCHEDULERS[name]
      made.scheduler = kind(**config | further)
      told[family]["schedulers"][name] = json.loads(made.scheduler.to_json_string())
      further = masked(made, image, known) if family == "inpaint" else {}
      kept[f"{family}/{name}"] = drawn = draw(made, latents, **further)
      edge = float(np.mean((drawn <= 0) | (drawn >= 1)))
      print(family, name, f"mean {drawn.mean():.3f}, std {drawn.std():.3f}, at the ends {edge:.2f}")
  np.savez_compressed(HERE / "pipeline.npz", told=json.dumps(told), **kept)


if __name__ == "__main__":
  main()
