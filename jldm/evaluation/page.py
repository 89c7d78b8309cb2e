"""Builds one HTML page that contains all it shows: pictures as data URLs, charts as SVG.

The page has no script and loads nothing from outside; its content security policy forbids both.
Parts are strings of markup.  All other arguments are text, which is escaped here and nowhere else.
"""

import base64
from collections.abc import Callable, Iterable, Sequence
from html import escape
import math
from pathlib import Path
import struct
from typing import NamedTuple

import numpy as np

from jldm.media.sheets import even_ticks

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
STYLE = Path(__file__).with_name("page.css").read_text()
WIDE = 560  # pixels: the widest that a picture is enlarged to, by a whole factor
MOST_POINTS = 400  # of a curve
WIDTH, HEIGHT, LEFT, TOP, RIGHT, BOTTOM = 560, 260, 58, 12, 532, 222  # of a chart and of its plot, in pixels
LOG_FROM = 30  # ratio of the largest to the smallest value from which the axis is logarithmic


class Curve(NamedTuple):
  """y over x, in order of x, and optionally the ends of each value's interval."""

  x: Sequence[float]
  y: Sequence[float]
  low: Sequence[float] | None = None
  high: Sequence[float] | None = None


GENERATOR = '<meta name="generator" content="jldm">'  # by which a page is known as one of ours


def html_page(title: str, lead: str, parts: Iterable[str]) -> str:
  """The whole page."""
  return "\n".join(
    (
      "<!doctype html>",
      '<html lang="en"><head><meta charset="utf-8">',
      GENERATOR,
      '<meta name="viewport" content="width=device-width, initial-scale=1">',
      f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
      '<meta name="color-scheme" content="light dark">',
      f"<title>{escape(title)}</title><style>{STYLE}</style></head>",
      f"<body><main><header><h1>{escape(title)}</h1><p>{escape(lead)}</p></header>",
      *parts,
      "</main></body></html>\n",
    )
  )


def section(title: str, *parts: str, note: str = "") -> str:
  """Parts under a heading."""
  note = f'<p class="note">{escape(note)}</p>' if note else ""
  return f"<section><h2>{escape(title)}</h2>{note}{''.join(parts)}</section>"


def side_by_side(*parts: str) -> str:
  """Parts in a row that wraps."""
  return f'<div class="row">{"".join(parts)}</div>'


def paragraph(text: str) -> str:
  """A paragraph of text."""
  return f"<p>{escape(text)}</p>"


def tiles(facts: Iterable[tuple[str, str, str]]) -> str:
  """One tile for each (name, value, remark), with a large value."""
  each = (
    f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd><small>{escape(remark)}</small></div>"
    for name, value, remark in facts
  )
  return f'<dl class="tiles">{"".join(each)}</dl>'


def html_table(
  head: Sequence[str], lines: Iterable[Sequence[str]], remarks: Sequence[str] = (), marks: Sequence[str] = ()
) -> str:
  """A table of text.

  lines: the cells of each line, of which the first is its name.   remarks: a text below each name.
  marks: markup for a last cell of each line.
  """
  top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
  body = []
  for number, (name, *cells) in enumerate(lines):
    remark = f"<small>{escape(remarks[number])}</small>" if remarks else ""
    columns = [escape(cell) for cell in cells] + ([marks[number]] if marks else [])
    data = "".join(f"<td>{column}</td>" for column in columns)
    body.append(f"<tr><th>{escape(name)}{remark}</th>{data}</tr>")
  return f'<div class="wide"><table><thead><tr>{top}</tr></thead><tbody>{"".join(body)}</tbody></table></div>'


def folded(title: str, text: str) -> str:
  """Preformatted text that a click unfolds."""
  return f"<details><summary>{escape(title)}</summary><pre>{escape(text)}</pre></details>"


def figure(png: bytes, caption: str) -> str:
  """A PNG with a caption, enlarged by a whole factor to at most WIDE."""
  width, _ = struct.unpack(">II", png[16:24])
  shown = width * max(1, WIDE // width)
  data = base64.b64encode(png).decode()
  return (
    f'<figure><img src="data:image/png;base64,{data}" width="{shown}" alt="{escape(caption)}">'
    f"<figcaption>{escape(caption)}</figcaption></figure>"
  )


def whisker(
  low: float, value: float, high: float, reference: tuple[float, float, float] | None = None
) -> str:
  """An interval, and below it that of a reference, over one axis."""
  both = [(low, value, high)] + ([reference] if reference else [])
  start, end = min(each[0] for each in both), max(each[2] for each in both)
  at = lambda x: 6 + 148 * ((x - start) / (end - start) if end > start else 0.5)
  marks = []
  for number, (a, b, c) in enumerate(both):
    y = 7 + 12 * number
    marks.append(
      f'<g class="s{number}"><line x1="{at(a):.1f}" x2="{at(c):.1f}" y1="{y}" y2="{y}"/>'
      f'<circle cx="{at(b):.1f}" cy="{y}" r="4"/></g>'
    )
  return f'<svg class="whisker" width="160" height="{2 + 12 * len(both)}" role="img">{"".join(marks)}</svg>'


def chart(title: str, curves: dict[str, Curve], y_label: str, x_label: str = "step") -> str:
  """Curves over common axes; one with many points is drawn faint, with its running mean over it."""
  curves = {name: finite_points(curve) for name, curve in curves.items()}
  curves = {name: curve for name, curve in curves.items() if len(curve.x)}
  if not curves:
    return ""
  values = np.concatenate(
    [np.asarray(part, float) for curve in curves.values() for part in curve[1:] if part is not None]
  )
  log = (
    values.min() > 0
    and values.max() > LOG_FROM * values.min()
    and not any(curve.low for curve in curves.values())
  )
  scale = np.log10 if log else np.asarray
  x_ticks = even_ticks(np.concatenate([np.asarray(curve.x, float) for curve in curves.values()]))
  y_ticks = log_ticks(values) if log else even_ticks(values)
  ends = scale(np.array([y_ticks[0], y_ticks[-1]]))
  place_x = lambda x: LEFT + (RIGHT - LEFT) * (np.asarray(x, float) - x_ticks[0]) / (x_ticks[-1] - x_ticks[0])
  place_y = lambda y: BOTTOM - (BOTTOM - TOP) * (scale(np.asarray(y, float)) - ends[0]) / (ends[1] - ends[0])
  marks = [
    f'<line class="grid" x1="{LEFT}" x2="{RIGHT}" y1="{place_y(y):.1f}" y2="{place_y(y):.1f}"/>'
    f'<text x="{LEFT - 8}" y="{place_y(y) + 4:.1f}" text-anchor="end">{y:.4g}</text>'
    for y in y_ticks
  ]
  marks += [
    f'<text x="{place_x(x):.1f}" y="{BOTTOM + 18}" text-anchor="middle">{x:.7g}</text>' for x in x_ticks
  ]
  marks.append(
    f'<text x="{(LEFT + RIGHT) / 2}" y="{HEIGHT - 4}" text-anchor="middle">{escape(x_label)}</text>'
  )
  for number, curve in enumerate(curves.values()):
    marks += curve_marks(curve, number, place_x, place_y)
  keys = (
    "".join(f'<span class="key s{n}">{escape(name)}</span>' for n, name in enumerate(curves))
    if len(curves) > 1
    else ""
  )
  kind = ", logarithmic" if log else ""
  return (
    f'<figure class="chart"><figcaption>{escape(title)} '
    f'<span class="unit">{escape(y_label + kind)}</span>{keys}</figcaption>'
    f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">'
    f"{''.join(marks)}</svg></figure>"
  )


def curve_marks(curve: Curve, number: int, place_x: Callable, place_y: Callable) -> list[str]:
  """The marks of a curve: its intervals, its points, and its running mean if it has many points."""
  path = lambda x, y: "M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in zip(place_x(x), place_y(y)))
  marks = []
  if curve.low is not None:
    around = path([*curve.x, *reversed(curve.x)], [*curve.low, *reversed(curve.high)])
    marks.append(f'<path class="band s{number}" d="{around}Z"/>')
  x, y = thin_points(np.asarray(curve.x, float)), thin_points(np.asarray(curve.y, float))
  window = len(y) // 20
  if window > 1:
    padded = np.pad(y, (window // 2, window - 1 - window // 2), mode="edge")
    smooth = np.convolve(padded, np.ones(window) / window, "valid")
    return marks + [
      f'<path class="faint s{number}" d="{path(x, y)}"/>',
      f'<path class="line s{number}" d="{path(x, smooth)}"/>',
    ]
  dots = [
    f'<circle class="s{number}" cx="{a:.1f}" cy="{b:.1f}" r="3.5"/>' for a, b in zip(place_x(x), place_y(y))
  ]
  return [*marks, f'<path class="line s{number}" d="{path(x, y)}"/>', *dots]


def finite_points(curve: Curve) -> Curve:
  """The curve without points that are not finite."""
  keep = np.flatnonzero(np.isfinite(np.asarray(curve.y, float)))
  return Curve(*(None if part is None else [float(part[i]) for i in keep] for part in curve))


def thin_points(values: np.ndarray) -> np.ndarray:
  """Means of neighbouring values, at most MOST_POINTS."""
  parts = np.array_split(values, min(len(values), MOST_POINTS))
  return np.array([part.mean() for part in parts])


def log_ticks(values: np.ndarray) -> np.ndarray:
  """Powers of ten, and 2 and 5 times them, that span positive values."""
  low, high = math.floor(math.log10(values.min())), math.ceil(math.log10(values.max()))
  steps = (1,) if high - low > 3 else (1, 2, 5)
  every = np.array([step * 10.0**power for power in range(low, high + 1) for step in steps])
  first = max(np.searchsorted(every, values.min(), "right") - 1, 0)
  return every[first : np.searchsorted(every, values.max()) + 1]
