"""Labels of the kept points in progress.png, placed where they cover nothing; one without a free place is left out."""

import textwrap
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLOUR = "#22262b"
_LINE_CHARS, _MAX_LINES = 30, 2
_POINT_PX = 4.0  # how near a label may come to a point, in pixels at 100 dpi

Array = npt.NDArray[np.float64]
Box = tuple[float, float, float, float]  # x0, y0, x1, y1 in pixels


def place_labels(
    axes: "Axes", labels: Sequence[tuple[float, float, str]], points: Array, line: Array, good_is_down: bool
) -> int:
    """Write labels `(x, y, text)`, the last first; returns how many found room.

    `points` `(n, 2)` and the corners of the running best `line` `(m, 2)`, in data coordinates, are kept free. The side
    of good values is tried first: nothing is drawn there but other labels. Call after the layout is final.
    """
    from matplotlib.patheffects import withStroke

    scale = axes.figure.dpi / 100
    frame = axes.get_window_extent()
    dots = axes.transData.transform(points) if len(points) else points
    dots_line = axes.transData.transform(line)
    taken: list[Box] = []
    placed = 0
    for x, y, text in reversed(labels):
        annotation = axes.annotate(
            shorten(text),
            (x, y),
            xytext=(0, 0),
            textcoords="offset points",
            fontsize=8,
            color=_COLOUR,
            parse_math=False,
            linespacing=1.1,
            annotation_clip=False,
            path_effects=[withStroke(linewidth=2.5, foreground="white")],
        )
        annotation.set_in_layout(False)
        extent = annotation.get_window_extent()
        px, py = axes.transData.transform((x, y))
        for side, dx, dy in _offsets(good_is_down):
            left = px + dx * scale - (extent.width if side == "right" else 0.0)
            bottom = py + dy * scale - (extent.height if dy < 0 else 0.0)
            box = (left, bottom, left + extent.width, bottom + extent.height)
            inside = box[0] >= frame.x0 and box[2] <= frame.x1 + 30 * scale and frame.y0 < box[1] and box[3] < frame.y1
            if inside and _free(box, taken, dots, dots_line, _POINT_PX * scale):
                break
        else:
            annotation.remove()
            continue
        to_points = 72 / axes.figure.dpi
        annotation.set_position(((box[0] - px) * to_points, (box[1] - py) * to_points))
        if abs(dy) > 20:
            _leader(axes, (px, py), box, side, dy)
        taken.append(box)
        placed += 1
    return placed


def shorten(text: str) -> str:
    """A title on at most two short lines."""
    lines = textwrap.wrap(text, _LINE_CHARS, break_on_hyphens=False)
    if len(lines) > _MAX_LINES:
        lines = [*lines[: _MAX_LINES - 1], lines[_MAX_LINES - 1][: _LINE_CHARS - 2].rstrip(" ,") + " …"]
    return "\n".join(lines)


def _offsets(good_is_down: bool) -> Iterator[tuple[str, float, float]]:
    """Where to try, nearest first: which side of the label is at the point, and how far away, in pixels at 100 dpi."""
    towards_good = -1 if good_is_down else 1
    for away in (6, 16, 30, 46, 64, 84, 106, 130):
        for side, dx in (("left", 5), ("right", -5), ("right", 30), ("left", -30)):
            yield side, dx, away * towards_good
    for away in (6, 18, 34):
        for side, dx in (("left", 5), ("right", -5)):
            yield side, dx, -away * towards_good


def _free(box: Box, taken: Sequence[Box], points: Array, line: Array, gap: float) -> bool:
    x0, y0, x1, y1 = box[0] - gap, box[1] - gap, box[2] + gap, box[3] + gap
    if any(x0 < b[2] and b[0] < x1 and y0 < b[3] and b[1] < y1 for b in taken):
        return False
    if len(points) and bool(np.any((points > (x0, y0)).all(axis=1) & (points < (x1, y1)).all(axis=1))):
        return False
    starts, ends = line[:-1], line[1:]
    low, high = np.minimum(starts, ends), np.maximum(starts, ends)  # segments are upright or level
    return not bool(np.any((low < (x1, y1)).all(axis=1) & (high > (x0, y0)).all(axis=1)))


def _leader(axes: "Axes", point: tuple[float, float], box: Box, side: str, dy: float) -> None:
    """A thin line from the point to its label."""
    end = (min(max(point[0], box[0]), box[2]), box[3] if dy < 0 else box[1])
    inverse = axes.transData.inverted()
    (xs, ys), (xe, ye) = inverse.transform(point), inverse.transform(end)
    axes.plot([xs, xe], [ys, ye], color="#9aa0a6", linewidth=0.6, zorder=1, scalex=False, scaley=False)
