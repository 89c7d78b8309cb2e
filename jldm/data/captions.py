"""Captions of pictures: how an example has them, and the files in which folders of pictures have them.

  metadata.jsonl   {"file_name": "a.png", "text": "a red bag"} per line, next to or above the pictures
  metadata.csv     the same with a header, file_name,text
  a.txt            next to a.png

A caption is untrusted text: it is kept as it is, but for spaces and line ends, which become one space.
"""

from collections.abc import Iterable, Iterator, Sequence
import csv
import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jldm.core.errors import UserError

METADATA = ("metadata.jsonl", "metadata.csv")
FIELDS = ("text", "caption")  # of a row, the first that it has
WAYS = ("auto", "metadata", "txt", "filename", "none")
MOST_BYTES = 2**16  # of one caption
INSTEAD = "; correct it, or leave captions out with --captions none"
LEGAL = "with a file_name and a text or caption"


def pad_captions(captions: Sequence[bytes], length: int) -> np.ndarray:
  """UTF-8 texts -> bytes uint8 [n, length], cut before a character that does not fit, padded with zeros."""
  rows = [cut_caption(caption, length).ljust(length, b"\0") for caption in captions]
  return np.frombuffer(b"".join(rows), np.uint8).reshape(len(rows), length)


def cut_caption(caption: bytes, length: int) -> bytes:
  """At most `length` bytes of a UTF-8 text, no character in part."""
  return caption if len(caption) <= length else caption[:length].decode("utf-8", "ignore").encode()


class Found(NamedTuple):
  """Captions by picture, the files that had them, and a line about both."""

  captions: dict[Path, str]
  files: frozenset[Path] = frozenset()
  notes: tuple[str, ...] = ()


class Row(NamedTuple):
  """One picture of a metadata file: `place` is the file and the line, for errors; the text may be missing."""

  place: str
  picture: str
  text: str | None


def find_captions(way: str, files: list[Path], pictures: list[Path], max_bytes: int) -> Found:
  """The captions of pictures, in a way of WAYS; "auto" is by what is there: metadata, .txt or none.

  files: the metadata and .txt files that there are.   max_bytes: of one of them.

  Raises:
    UserError: captions of a missing picture, two of one picture, none at all if they were asked for, a
      line that is no JSON or no UTF-8, a text of another type or too long.
  """
  if way == "filename":
    return described(
      {picture: clean(readable_stem(picture)) for picture in pictures}, (), pictures, "file names"
    )
  if way in ("auto", "metadata"):
    tables = [path for path in files if path.name in METADATA]
    rows = [row for path in tables for row in read_table(path, max_bytes)]
    if any(row.text is not None for row in rows):
      return described(match_rows(rows, pictures), tables, pictures, tables[0].name)
  if way in ("auto", "txt"):
    texts = [path for path in files if path.suffix.lower() == ".txt"]
    beside = {picture.with_suffix("") for picture in pictures}
    if any(path.with_suffix("") in beside for path in texts):
      return described(read_texts(texts, pictures), texts, pictures, "the .txt files next to pictures")
  if way in ("auto", "none"):
    return Found({})
  expected = f"a {' or '.join(METADATA)} {LEGAL}" if way == "metadata" else "a.txt next to a.png and so on"
  raise UserError(f"captions={way!r}, and there are none; expected {expected}{INSTEAD}")


def described(captions: dict[Path, str], files: Iterable[Path], pictures: list[Path], origin: str) -> Found:
  """What was found, with a line that names the origin and counts the pictures without a caption."""
  without = [picture for picture in pictures if not captions.get(picture)]
  some = f"; {len(without)} of {len(pictures)} pictures have none, such as '{without[0]}'" if without else ""
  return Found(captions, frozenset(files), (f"captions from {origin}{some}",))


def clean(text: str) -> str:
  return " ".join(text.split())


def readable_stem(picture: Path) -> str:
  """A file's name as words: "a_red_bag.png" -> "a red bag"."""
  return os.fsencode(picture.stem).decode("utf-8", "replace").replace("_", " ")


def match_rows(rows: list[Row], pictures: list[Path]) -> dict[Path, str]:
  """The rows' texts by picture; UserError for a picture that is missing or has two rows."""
  by_path = {os.path.normpath(picture): picture for picture in pictures}
  captions: dict[Path, str] = {}
  for row in rows:
    picture = by_path.get(row.picture)
    if picture is None:
      raise UserError(f"{row.place} names {row.picture[-200:]!r}, which is no picture that is read{INSTEAD}")
    if picture in captions:
      raise UserError(
        f"{row.place} names {row.picture[-200:]!r} a second time; expected a line a picture{INSTEAD}"
      )
    captions[picture] = row.text or ""
  return captions


def read_table(path: Path, max_bytes: int) -> Iterator[Row]:
  """The rows of a metadata file.

  Raises:
    UserError: a line that cannot be read, with its number.
  """
  read = read_json_lines if path.suffix == ".jsonl" else read_csv
  for number, record in read(path, max_bytes):
    place = f"'{path}' line {number}"
    name = record.get("file_name")
    if not isinstance(name, str) or not name:
      raise UserError(f"{place} has file_name={name!r:.80}; expected the name of a picture{INSTEAD}")
    text = next((record[field] for field in FIELDS if record.get(field) is not None), None)
    if text is not None and not isinstance(text, str):
      raise UserError(f"{place} has a {type(text).__name__} {text!r:.80}; expected one text{INSTEAD}")
    picture = os.path.normpath(os.path.join(path.parent, name))
    yield Row(place, picture, None if text is None else checked(clean(text), place))


def read_json_lines(path: Path, max_bytes: int) -> Iterator[tuple[int, dict[str, Any]]]:
  """(line, object) of a .jsonl file; UserError for a line that is none."""
  for number, line in enumerate(read_lines(path, max_bytes), 1):
    if not line.strip():
      continue
    try:
      record = json.loads(line)
    except (ValueError, RecursionError) as error:
      raise UserError(
        f"'{path}' line {number} is no JSON ({error}); expected an object {LEGAL}{INSTEAD}"
      ) from error
    if not isinstance(record, dict):
      raise UserError(
        f"'{path}' line {number} is a {type(record).__name__}; expected an object {LEGAL}{INSTEAD}"
      )
    yield number, record


def read_csv(path: Path, max_bytes: int) -> Iterator[tuple[int, dict[str, Any]]]:
  """(line, row by column) of a .csv file; UserError for a row that does not fit the header."""
  table = csv.DictReader(read_lines(path, max_bytes), strict=True)
  try:
    for record in table:
      if None in record:
        raise csv.Error(f"{len(record[None])} values more than the header has columns")
      yield table.reader.line_num, record
  except csv.Error as error:
    raise UserError(
      f"'{path}' line {table.reader.line_num} cannot be read as CSV ({error}){INSTEAD}"
    ) from error


def read_texts(texts: list[Path], pictures: list[Path]) -> dict[Path, str]:
  """The captions in .txt files; UserError for one whose picture is missing."""
  by_stem: dict[Path, list[Path]] = {}
  for picture in pictures:
    by_stem.setdefault(picture.with_suffix(""), []).append(picture)
  captions = {}
  for path in texts:
    if path.with_suffix("") not in by_stem:
      raise UserError(f"'{path}' has no picture of its name next to it; move it away{INSTEAD}")
    text = checked(clean(" ".join(read_lines(path, MOST_BYTES))), f"'{path}'")
    captions |= dict.fromkeys(by_stem[path.with_suffix("")], text)
  return captions


def read_lines(path: Path, max_bytes: int) -> Iterator[str]:
  """The lines of a text file; UserError with the line's number for one that is no UTF-8."""
  try:
    with path.open("rb") as file:
      if (size := path.stat().st_size) > max_bytes:
        raise UserError(f"'{path}' has {size} bytes; expected at most {max_bytes}{INSTEAD}")
      for number, line in enumerate(file, 1):
        yield decode_line(line, f"'{path}' line {number}").removeprefix("\ufeff" if number == 1 else "")
  except OSError as error:
    raise UserError(f"'{path}' cannot be read ({error.strerror}){INSTEAD}") from error


def decode_line(line: bytes, place: str) -> str:
  try:
    return line.decode()
  except UnicodeDecodeError as error:
    raise UserError(f"{place} is no UTF-8 (byte {error.start + 1}: {error.reason}){INSTEAD}") from error


def checked(text: str, place: str) -> str:
  """`text` itself; UserError if it is too long, or has half a surrogate pair, which JSON may write."""
  try:
    size = len(text.encode())
  except UnicodeEncodeError as error:
    raise UserError(f"{place} has half a surrogate pair, {text[error.start]!r}{INSTEAD}") from error
  if size > MOST_BYTES:
    raise UserError(f"{place} has a caption of {size} bytes; expected at most {MOST_BYTES}{INSTEAD}")
  return text
