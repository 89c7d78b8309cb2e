"""`jldm prepare {clothes,digits,emoji,folder,idx,npz,photos}`: writes pictures as a data set to train on."""

import argparse

from jldm.core.errors import UserError, printable
from jldm.data.builder import describe_contents, describe_dataset
from jldm.data.captions import WAYS
from jldm.data.contents import MAX_BYTES, PACKAGED
from jldm.data.prepare import KINDS, prepare
from jldm.media.open import MAX_PIXELS


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the options of `jldm prepare`."""
  parser.add_argument(
    "kind",
    choices=list(KINDS),
    help="what the source is; digits come with scikit-learn, photos with it and scikit-image, clothes with "
    "Debian's dataset-fashion-mnist, emoji with its fonts-noto-color-emoji and unicode-data",
  )
  parser.add_argument(
    "--source",
    help="folder: pictures, or a sub-folder a class; idx: a folder of MNIST-style files; "
    "npz: a file with images [N, H, W] or [N, H, W, C] and perhaps labels [N]; "
    "clothes, emoji: a folder of the packages' files, if they are not installed",
  )
  parser.add_argument("--name", help=f"name of the data set (default for {', '.join(PACKAGED)}: the kind)")
  parser.add_argument("--data-dir", default="data", help="where data sets are (default: data)")
  parser.add_argument(
    "--size", help="resize and crop every picture to this size: 64, or HEIGHTxWIDTH as in 64x96"
  )
  parser.add_argument(
    "--buckets",
    help="further sizes, as in 48x80,80x48: each picture takes the one of --size and these "
    "with the nearest aspect ratio",
  )
  parser.add_argument(
    "--pad", type=int, default=0, metavar="N", help="then pad with N black pixels on each side"
  )
  parser.add_argument(
    "--channels", type=int, help="1 (grey) or 3 (RGB); default: 1 if every picture is grey, else 3"
  )
  parser.add_argument(
    "--held-out",
    metavar="FOLDER",
    help='for folder: further pictures that are not trained on, the split "test"; '
    'a source of two folders such as "train" and "val" has them already',
  )
  parser.add_argument(
    "--captions",
    choices=WAYS,
    default="auto",
    help="for folder: where captions are: in metadata.jsonl or metadata.csv with file_name and text, in .txt "
    "files next to pictures, in the pictures' names, or nowhere (default: the first two, by what is there)",
  )
  parser.add_argument(
    "--skip-damaged", action="store_true", help="leave out pictures that cannot be read, and name them"
  )
  parser.add_argument(
    "--max-pixels",
    type=int,
    default=MAX_PIXELS,
    help=f"refuse larger pictures before they are decoded (default: {MAX_PIXELS})",
  )
  parser.add_argument(
    "--max-bytes",
    type=int,
    default=MAX_BYTES,
    help=f"refuse larger arrays of npz and idx files, and metadata files (default: {MAX_BYTES})",
  )
  parser.add_argument(
    "--if-missing", action="store_true", help="do nothing if a data set of that name exists"
  )


def main(args: argparse.Namespace) -> None:
  """Prepares the data set and prints it: folder, splits, size, classes, what was converted or left out."""
  name = args.name or (args.kind if args.kind in PACKAGED else None)
  if name is None:
    raise UserError(f"prepare {args.kind} without a name; give one with --name")
  size = parse_size(args.size) if args.size is not None else None
  buckets = (
    tuple(parse_size(text, "--buckets") for text in args.buckets.split(","))
    if args.buckets is not None
    else ()
  )
  folder = prepare(
    args.kind,
    args.source,
    name,
    args.data_dir,
    size,
    args.pad,
    args.channels,
    args.if_missing,
    buckets,
    held_out=args.held_out,
    skip_damaged=args.skip_damaged,
    max_pixels=args.max_pixels,
    max_bytes=args.max_bytes,
    captions=args.captions,
  )
  for line in (describe_dataset(folder), *describe_contents(folder)):
    print(printable(line))


def parse_size(text: str, option: str = "--size") -> tuple[int, int]:
  """ "64" -> (64, 64); "64x96" -> height 64, width 96."""
  numbers = text.lower().split("x")
  if len(numbers) > 2 or not all(number.isdecimal() for number in numbers):
    raise UserError(f"{option} {text!r}; expected one number, as in 64, or HEIGHTxWIDTH, as in 64x96")
  return int(numbers[0]), int(numbers[-1])
