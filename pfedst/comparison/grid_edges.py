"""Edges of a grid: where the best value may lie beyond, and the value that is tried there."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, Literal, get_args

from pfedst.comparison.plan import Bounds, Options, is_number

Side = Literal["low", "high"]
SIDES: tuple[Side, ...] = get_args(Side)
Edges = set[tuple[str, Side]]
"""Dotted keys of options, and the side of their grid."""
DIGITS = 3
"""Digits of a value that is added to a grid."""


def edges_of(grid: Mapping[str, list[Any]], chosen: Iterable[Options], bounds: Bounds) -> Edges:
    """Return the edges at which a best value lies, and beyond which there are further values.

    A grid of one value, or of other values than numbers, has no edges.
    """
    return {
        (key, side)
        for options in chosen
        for key, value in options.items()
        for side in SIDES
        if beyond(grid[key], side, bounds.get(key, (None, None))) is not None
        and value == (min if side == "low" else max)(grid[key])
    }


def extended(grid: Mapping[str, list[Any]], edges: Edges, bounds: Bounds) -> dict[str, list[Any]]:
    """Return the grid with one value more at each of these edges, after the others, so that ties keep theirs."""
    found = {}
    for key, values in grid.items():
        more = [beyond(values, side, bounds.get(key, (None, None))) for side in SIDES if (key, side) in edges]
        found[key] = [*values, *(value for value in more if value is not None)]
    return found


def beyond(values: list[Any], side: Side, bounds: tuple[float | None, float | None]) -> float | None:
    """Return the value that follows beyond an edge; None if the edge is a natural bound.

    The step is the one before the edge: as a factor if all values are positive, otherwise as a difference. Whole
    numbers stay whole. A value beyond a bound is replaced by the bound.
    """
    if not all(map(is_number, values)) or len(set(values)) < 2:
        return None
    ordered = sorted(set(values), reverse=side == "low")
    edge, before, bound = ordered[-1], ordered[-2], bounds[0 if side == "low" else 1]
    value: float = edge * edge / before if min(values) > 0 else 2 * edge - before
    value = float(f"{value:.{DIGITS}g}")
    if all(type(known) is int for known in values):
        value = math.floor(value) if side == "low" else math.ceil(value)
        if value == 0 and min(values) > 0:  # factors never reach zero
            return None
    if bound is not None:
        value = max(value, bound) if side == "low" else min(value, bound)
    return value if (value < edge if side == "low" else value > edge) else None
