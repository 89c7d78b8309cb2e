"""Writes files of pictures that contain their provenance.

Images are uint8 [N, H, W, C] or [H, W, C], C 1 (grey) or 3.  Every PNG says `ai_generated` = `true`
and `jldm` = a JSON object in its text chunks.  A file appears whole or not at all.
"""

from collections.abc import Iterable
import io
import itertools
import json
import os
from pathlib import Path
from typing import Any
import warnings

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from jldm.core.errors import UserError
from jldm.core.files import remove_partials, replace_file
from jldm.media import open as opening
from jldm.media.sheets import as_rgb, sheet, sheet_scale

NAMES = ("grid.png", "previews.png", "sheet.png", "noise.npz", "interpolation.gif", "interpolation.mp4")
PROVENANCE = "provenance"  # the array of an .npz
COMMENT = b'{"ai_generated": true, "jldm": '  # how the comments of animations and films begin
LEAST_DELAY = 2  # hundredths of a second: browsers play a GIF's shorter ones as 10


def to_uint8(images: Any) -> np.ndarray:
  """Images float [..., H, W, C] in [-1, 1] -> uint8, rounded to nearest; what lies outside is clipped.

  Raises:
    ValueError: a value that is not finite.
  """
  images = np.asarray(images, np.float32)
  bad = images.size - np.count_nonzero(np.isfinite(images))
  if bad:
    raise ValueError(f"{bad} of {images.size} values are not finite; expected images in [-1, 1]")
  return np.clip(np.rint(127.5 * (images + 1)), 0, 255).astype(np.uint8)


def write_png(path: str | os.PathLike, image: np.ndarray, provenance: dict) -> None:
  """Writes uint8 [H, W, C] with `provenance`, a JSON object, in the text of the same file."""
  with replace_file(Path(path)) as file:
    file.write(encode_png(image, provenance))


def encode_png(image: np.ndarray, provenance: dict) -> bytes:
  """The file of `write_png`."""
  info, file = PngInfo(), io.BytesIO()
  info.add_text("ai_generated", "true")
  info.add_text("jldm", json.dumps(provenance))
  Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(file, "PNG", pnginfo=info)
  return file.getvalue()


def read_provenance(path: str | os.PathLike) -> dict | None:
  """The provenance in a PNG, GIF, .mp4 or .npz that jldm wrote; None for a file from elsewhere.

  Raises:
    OSError: no such file, or not of its kind.
    ValueError: provenance that is no JSON.
  """
  return READERS.get(Path(path).suffix.lower(), read_picture_text)(Path(path))


def read_picture_text(path: Path) -> dict | None:
  """The provenance of a PNG, or of a GIF's comment."""
  texts = lambda picture: (picture.info.get("jldm"), picture.info.get("comment"))
  text, comment = opening.decode_picture(path, texts, header_only=True, formats=("PNG", "GIF"))
  if isinstance(comment, bytes) and comment.startswith(COMMENT):  # of a GIF
    return json.loads(comment)["jldm"]
  return json.loads(text) if text else None


def read_array_text(path: Path) -> dict | None:
  """The provenance of an .npz."""
  with np.load(path, allow_pickle=False) as arrays:
    return json.loads(str(arrays[PROVENANCE])) if PROVENANCE in arrays else None


def read_film_text(path: Path) -> dict | None:
  """The provenance in the comment of a film."""
  _, comment, rest = path.read_bytes().partition(COMMENT)
  return (
    json.JSONDecoder().raw_decode((COMMENT + rest).decode(errors="replace"))[0]["jldm"] if comment else None
  )


READERS = {".npz": read_array_text, ".mp4": read_film_text}  # by the ending


def provenance_or_none(path: str | os.PathLike) -> dict | None:
  """As `read_provenance`; also None for what cannot be read, which is not a whole file of ours."""
  try:
    provenance = read_provenance(path)
  except Exception:  # whatever Pillow, numpy or json raise for a damaged file
    return None
  return provenance if isinstance(provenance, dict) else None


def maker(provenance: dict) -> str:
  """The command that made a file of ours, such as "sample" or "edit inpaint"."""
  if "command" in provenance:
    return str(provenance["command"])
  return f"edit {provenance['edit']}" if "edit" in provenance else "sample"


def is_made_by(path: str | os.PathLike, command: str, overwrite: bool = False) -> bool:
  """Whether a file was made by a command of jldm, or, if `overwrite`, by any."""
  provenance = provenance_or_none(path)
  return provenance is not None and (overwrite or maker(provenance) == command)


def check_replaceable(
  paths: Iterable[Path], command: str | None = None, overwrite: bool = False, inputs: Iterable[Path] = ()
) -> None:
  """Checks that files may be written: only what jldm made is ever replaced, and never an input.

  command: whose files are replaced; those of another command only if `overwrite`.  By default those of any.

  Raises:
    UserError: names the first file that is to stay as it is.
  """
  for path in paths:
    if not os.path.lexists(path):
      continue
    if any(path.exists() and os.path.samefile(path, each) for each in inputs if each.exists()):
      raise UserError(f"{str(path)!r} is read by this command and would be replaced; choose another --out")
    provenance = provenance_or_none(path) if path.is_file() else None
    if provenance is None:
      raise UserError(f"{str(path)!r} was not made by jldm and is never replaced; choose another --out")
    if command is not None and not overwrite and maker(provenance) != command:
      raise UserError(
        f"{str(path)!r} was made by jldm {maker(provenance)}; replace it with --overwrite, "
        "or choose another --out"
      )


def claim_names(
  folder: Path,
  count: int,
  names: Iterable[str],
  command: str,
  overwrite: bool = False,
  inputs: Iterable[Path] = (),
) -> list[Path]:
  """Checks that a command may write 00000.png ... and the files `names` into a folder, before any work.

  Returns what an earlier and larger run of the same command, or, if `overwrite`, of any, left there besides.

  Raises:
    UserError: as `check_replaceable`.
  """
  named = [folder / name for name in names]
  others = [folder / name for name in NAMES if folder / name not in named]
  left = [path for path in (*earlier_paths(folder, count), *others) if is_made_by(path, command, overwrite)]
  check_replaceable([*numbered_paths(folder, count), *named, *left], command, overwrite, inputs)
  return left


def write_npz(
  path: str | os.PathLike, images: np.ndarray, labels: np.ndarray, provenance: dict | None = None
) -> None:
  """Writes `images` uint8 [N, H, W, C], `labels` int64 [N] and, as JSON, the array `provenance`."""
  write_arrays(path, {"images": images, "labels": np.asarray(labels, np.int64)}, provenance)


def write_arrays(path: str | os.PathLike, arrays: dict[str, Any], provenance: dict | None = None) -> None:
  """Writes arrays by name and, as JSON, the array `provenance`; a part of that name keeps its own."""
  further = {} if provenance is None else {PROVENANCE: np.array(json.dumps(provenance))}
  with replace_file(Path(path)) as file:
    np.savez_compressed(file, **further | arrays)


def write_numbered(folder: str | os.PathLike, images: np.ndarray, provenances: list[dict]) -> None:
  """Writes images uint8 [N, H, W, C] as 00000.png ..., each with its provenance and `index`.

  Removes numbered pictures of an earlier call with more images.

  Raises:
    UserError: a picture of such a name that jldm did not make; nothing is written then.
  """
  paths = numbered_paths(folder, len(images))
  check_replaceable(paths)
  for path in earlier_paths(folder, len(images)):
    if provenance_or_none(path):
      path.unlink()
  for index, (path, image, provenance) in enumerate(zip(paths, images, provenances, strict=True)):
    write_png(path, image, provenance | {"index": index})
  remove_partials(paths)


def numbered_paths(folder: str | os.PathLike, count: int) -> list[Path]:
  """00000.png ... in a folder."""
  return [Path(folder) / f"{index:05d}.png" for index in range(count)]


def earlier_paths(folder: str | os.PathLike, count: int) -> list[Path]:
  """The numbered pictures that a call with more than `count` images left in a folder."""
  numbered = [path for path in Path(folder).glob("[0-9]*.png") if path.stem.isdecimal()]
  return sorted(path for path in numbered if len(path.stem) >= 5 and int(path.stem) >= count)


def write_edits(
  folder: str | os.PathLike,
  images: np.ndarray,
  rows: dict[str, np.ndarray],
  provenance: dict,
  each: list[dict] | None = None,
) -> None:
  """Writes images uint8 [N, H, W, C] as 00000.png ..., and sheet.png.

  rows: the images of the sheet by name.   each: further provenance of each image.
  """
  write_numbered(folder, images, [provenance | note for note in each or [{}] * len(images)])
  write_png(Path(folder) / "sheet.png", sheet(rows), provenance)


def write_gif(path: str | os.PathLike, images: np.ndarray, provenance: dict, seconds: float = 2.0) -> None:
  """Writes images uint8 [N, H, W, C] as an animation there and back, for ever, with `provenance` as its
  comment.

  One way takes `seconds`.  Where that leaves an image less than LEAST_DELAY, some are left out, evenly.
  """
  every = there_and_back(images)
  shown, delays = time_frames(len(every), round(100 * seconds * len(every) / len(images)))
  frames = [Image.fromarray(every[index]) for index in shown]
  comment = json.dumps({"ai_generated": True, "jldm": provenance})
  with replace_file(Path(path)) as file:
    frames[0].save(
      file,
      "GIF",
      save_all=True,
      append_images=frames[1:],
      loop=0,
      comment=comment,
      duration=[10 * delay for delay in delays],
    )


def time_frames(count: int, total: int) -> tuple[list[int], list[int]]:
  """Which of `count` frames to show, and for how many hundredths of a second each; these add up to `total`.

  Both ends of a path there and back are among them.
  """
  most = max(total // LEAST_DELAY, 1)
  kept = count if count <= most else max(most // 2 * 2, 1)
  shown = [index * count // kept for index in range(kept)]
  starts = [index * total // kept for index in range(kept + 1)]
  return shown, [max(end - start, LEAST_DELAY) for start, end in itertools.pairwise(starts)]


def write_mp4(path: str | os.PathLike, images: np.ndarray, provenance: dict, seconds: float = 2.0) -> None:
  """Writes images uint8 [N, H, W, C] as a film there and back, with `provenance` as its comment.

  Raises:
    UserError: imageio or its ffmpeg is not installed.
  """
  imageio = import_imageio()
  comment = json.dumps({"ai_generated": True, "jldm": provenance})
  frames = there_and_back(images)
  frames = np.pad(
    frames, ((0, 0), (0, frames.shape[1] % 2), (0, frames.shape[2] % 2), (0, 0)), mode="edge"
  )  # yuv420: even
  path = Path(path)
  partial = f".{os.getpid()}.{path.name}"  # ffmpeg goes by the ending
  options = {
    "fps": len(images) / seconds,
    "macro_block_size": 1,
    "output_params": ["-metadata", f"comment={comment}"],
  }
  with warnings.catch_warnings(), replace_file(path, partial=partial) as file:
    warnings.filterwarnings("ignore", "os.fork", RuntimeWarning)  # JAX's, of a process that is ffmpeg at once
    imageio.mimwrite(file.name, frames, **options)


def import_imageio() -> Any:
  """imageio with its ffmpeg; commands call it before any work.

  Raises:
    UserError: they are not installed.
  """
  try:
    import imageio.v2 as imageio
    import imageio_ffmpeg  # noqa: F401
  except ImportError as error:
    raise UserError("a film needs imageio and its ffmpeg; install them: pip install 'jldm[video]'") from error
  return imageio


def there_and_back(images: np.ndarray) -> np.ndarray:
  """uint8 [N, H, W, C] -> [2 N - 2, H k, W k, 3], enlarged as in grid.png."""
  images, scale = as_rgb(images), sheet_scale(images)
  return np.concatenate([images, images[-2:0:-1]]).repeat(scale, 1).repeat(scale, 2)
