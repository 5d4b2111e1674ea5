"""Place labels beside their points without overlaps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from matplotlib.axes import Axes

from pfedst.reporting.figures.style import TEXT, RowStyle, text_inches

Place = tuple[float, float]
"""x, y in typographic points, as all lengths here."""
Box = tuple[float, float, float, float]
"""Left, bottom, right, top."""
MARK = 5.0
"""Half the size of a mark, with a margin."""
NEAR = 12.0
"""Distance from which a line connects a label with its point."""
DISTANCES = (8, 11, 15, 20, 26, 34, 44, 56, 70, 86, 104)
ANGLES = (0, 180, 30, -30, 150, -150, 90, -90, 50, -50, 130, -130, 70, -70, 110, -110)
DISTANCE_PENALTY = 4.0
"""Of a label, for each point of its distance."""


@dataclass(frozen=True)
class Labelled:
    """A point: its label, its position, and the ends of the vertical line through it, in data coordinates."""

    text: str
    x: float
    y: float
    low: float
    high: float
    style: RowStyle


@dataclass
class _Taken:
    """Occupied parts of a panel: its frame, marks and lines, and the labels placed so far with their lines."""

    frame: Box
    dots: list[Place]
    bars: list[Box]
    boxes: list[Box] = field(default_factory=list)
    leads: list[tuple[Place, Place]] = field(default_factory=list)

    def badness(self, box: Box, own: int) -> float:
        """Return the penalty of a label in this box for the point with this number."""
        lead = (self.dots[own], _nearest(box, self.dots[own]))
        others = [dot for number, dot in enumerate(self.dots) if number != own]
        return (
            1e6 * (_outside(box, self.frame) + sum(_overlap(box, other) for other in self.boxes))
            + 1e3 * sum(_overlap(box, _around(dot, MARK, MARK)) for dot in self.dots)
            + 60 * sum(_overlap(box, bar) for bar in self.bars)
            + 400 * sum(_crosses(one, box) for one in self.leads)
            + 400 * sum(_crosses(lead, other) for other in self.boxes)
            + 90 * sum(_crosses(lead, _around(dot, MARK - 1, MARK - 1)) for dot in others)
            # a label close to another mark would be read as the label of that mark
            + sum(2 * max(0.0, 14 - math.dist(dot, _nearest(box, dot))) for dot in others)
            + DISTANCE_PENALTY * math.dist(*lead)
        )


def label_points(axes: Axes, points: Sequence[Labelled]) -> None:
    """Write each label at the best free place, with a line to its point if it is not next to it.

    Args:
        axes: panel with its final layout.
        points: points in any order.
    """
    dots = _places(axes, [(point.x, point.y) for point in points])
    lows = _places(axes, [(point.x, point.low) for point in points])
    highs = _places(axes, [(point.x, point.high) for point in points])
    bars = [(x - 1, low, x + 1, high) for (x, low), (_, high) in zip(lows, highs, strict=True)]
    taken = _Taken(_frame(axes), dots, bars)
    for number in sorted(range(len(points)), key=lambda number: (-dots[number][1], dots[number][0])):
        point, dot = points[number], dots[number]
        size = (text_inches(point.text, TEXT, point.style.weight) * 72 + 2, TEXT + 1.5)
        box = _best_box(taken, number, size)
        taken.boxes.append(box)
        end = _nearest(box, dot)
        if math.dist(dot, end) > NEAR:
            taken.leads.append((dot, end))
            _lead(axes, point, (end[0] - dot[0], end[1] - dot[1]))
        _write(axes, point, ((box[0] + box[2]) / 2 - dot[0], (box[1] + box[3]) / 2 - dot[1]))


def _best_box(taken: _Taken, number: int, size: Place) -> Box:
    """Return the first of the best boxes of a size for the label of a point."""
    best, least = (0.0, 0.0, 0.0, 0.0), math.inf
    for far in DISTANCES:
        if least <= DISTANCE_PENALTY * (far - size[1] / 2):  # no box from here on can be better
            break
        for angle in ANGLES:
            box = _candidate(taken.dots[number], size, angle, far)
            if (badness := taken.badness(box, number)) < least:
                best, least = box, badness
    return best


def _places(axes: Axes, data: Sequence[Place]) -> list[Place]:
    return [(float(x) * _scale(axes), float(y) * _scale(axes)) for x, y in axes.transData.transform(data)]


def _scale(axes: Axes) -> float:
    figure: Any = axes.figure
    return 72 / float(figure.dpi)


def _frame(axes: Axes) -> Box:
    box, scale = axes.get_window_extent(), _scale(axes)
    return box.x0 * scale + 1, box.y0 * scale + 1, box.x1 * scale, box.y1 * scale + 3


def _around(middle: Place, half_width: float, half_height: float) -> Box:
    return middle[0] - half_width, middle[1] - half_height, middle[0] + half_width, middle[1] + half_height


def _candidate(dot: Place, size: Place, angle: float, far: float) -> Box:
    """Return a box that begins at a distance from a point, in a direction."""
    cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    side = 0 if abs(cos) < 0.4 else math.copysign(1, cos)
    x = dot[0] + cos * far + side * size[0] / 2
    y = dot[1] + sin * far + (0 if side else sin * size[1] / 2)
    return _around((x, y), size[0] / 2, size[1] / 2)


def _overlap(one: Box, other: Box) -> float:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    return width * height if width > 0 and height > 0 else 0.0


def _outside(box: Box, frame: Box) -> float:
    return (box[2] - box[0]) * (box[3] - box[1]) - _overlap(box, frame)


def _nearest(box: Box, dot: Place) -> Place:
    return min(max(dot[0], box[0]), box[2]), min(max(dot[1], box[1]), box[3])


def _crosses(line: tuple[Place, Place], box: Box) -> bool:
    """Return True if a line crosses a box, checked at 11 positions of the line, which is enough for letters."""
    (x, y), (end_x, end_y) = line
    places = ((x + (end_x - x) * step / 12, y + (end_y - y) * step / 12) for step in range(1, 12))
    return any(box[0] < at_x < box[2] and box[1] < at_y < box[3] for at_x, at_y in places)


def _lead(axes: Axes, point: Labelled, end: Place) -> None:
    arrow = {"arrowstyle": "-", "color": point.style.color, "linewidth": 0.6, "shrinkA": 0, "shrinkB": 0}
    line = axes.annotate("", (point.x, point.y), end, textcoords="offset points", arrowprops=arrow, zorder=1.5)
    line.set_in_layout(False)


def _write(axes: Axes, point: Labelled, middle: Place) -> None:
    written = axes.annotate(point.text, (point.x, point.y), middle, textcoords="offset points", zorder=9)
    written.set(ha="center", va="center", fontsize=TEXT, fontweight=point.style.weight, in_layout=False)
