"""Bootstrap intervals within a site: how often each patient is drawn, and what metrics are in each resample.

The unit that is drawn is a patient or a lesion: several images of one patient agree more than images of several, and an
interval over images would be too narrow. The intervals describe one model at one site: they say which numbers other
patients of the same site would give, and nothing about other sites or other trainings.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 1000
"""Number of bootstrap resamples."""
INTERVAL = (0.025, 0.975)
"""Quantiles of the resamples at the ends of an interval."""
FEWEST_UNITS = 5
"""Number of patients (lesions, images) from which on a metric has an interval: fewer have too few resamples."""
MOST_WEIGHTS = 2**22
"""Maximum number of weights in memory at a time."""

Numbers = NDArray[np.float64]
Integers = NDArray[np.int64]
Mask = NDArray[np.bool_]
Drawn = NDArray[np.int32]
"""How often each resample holds each unit, (R, U)."""
Estimate = dict[str, float | None]
"""The `value` of a metric, and `low` and `high` of its 95 % interval; None where a number is not defined."""


def draw(units: int, seed: int) -> Drawn:
    """Return how often each resample holds each unit, (RESAMPLES, units)."""
    if not units:
        return np.zeros((RESAMPLES, 0), np.int32)
    return np.random.default_rng(seed).multinomial(units, [1 / units] * units, RESAMPLES).astype(np.int32)


def once(drawn: Drawn) -> Drawn:
    """Return the one sample that holds each unit once, (1, U): metrics of it are those of the images themselves."""
    return np.ones((1, drawn.shape[1]), np.int32)


def shares(right: Mask, images: Mask, units: Integers, drawn: Drawn) -> Numbers:
    """Return the share of some images that are right in each resample (R,); NaN where none of them is drawn.

    Args:
        right: (N,) images that are right, each among `images`.
        images: (N,) the images of which it is a share.
        units: (N,) the unit of each image.
        drawn: (R, U).
    """
    counts = np.stack([np.bincount(units, mask, drawn.shape[1]) for mask in (right, images)], 1)
    hits, total = (drawn.astype(np.float64) @ counts).T
    with np.errstate(invalid="ignore"):
        return np.asarray(hits / total)


def with_interval(value: Any, units: int, resampled: Callable[[], Numbers]) -> Estimate:
    """Return a value with the ends of its interval.

    There is no interval if the value is not defined, if fewer than `FEWEST_UNITS` units have an image that it depends
    on, or if all resamples agree: ten of ten lesions found do not prove that all are found.

    Args:
        value: of the images themselves; None or NaN if it is not defined.
        units: number of units that it depends on.
        resampled: returns the value of each resample, NaN if it is not defined.
    """
    ends: tuple[float | None, float | None] = (None, None)
    if value is None or np.isnan(value):
        return {"value": None, "low": None, "high": None}
    if units >= FEWEST_UNITS:
        values = resampled()
        low, high = np.quantile(values[~np.isnan(values)], INTERVAL)
        if low < high:
            ends = (float(low), float(high))
    return {"value": float(value), "low": ends[0], "high": ends[1]}


class Ranking:
    """The images of a site in the order of their scores for a class, cut behind each score that a positive image has.

    Args:
        scores: (N,).
        positive: (N,) whether an image is of the class.
        units: (N,).
    """

    def __init__(self, scores: Numbers, positive: Mask, units: Integers) -> None:
        order = np.argsort(-scores, kind="stable")
        self._units, self._hits = units[order], positive[order]
        last = np.append(np.diff(scores[order]) != 0, True)  # of images with equal scores, which no threshold separates
        levels = np.cumsum(last) - last
        kept = np.unique(levels[self._hits])
        ends = np.flatnonzero(last) + 1
        self._ends, self._begins = ends[kept], np.append(0, ends[:-1])[kept]
        self._starts = np.append(0, self._ends[:-1])
        self._levels = np.flatnonzero(np.diff(levels[self._hits], prepend=-1))

    def average_precision(self, drawn: Drawn) -> Numbers:
        """Return the precision at the scores of positive images, averaged over these images, for each row of weights.

        Args:
            drawn: (R, U) how often each unit counts.
        """
        return np.concatenate([self._precision(part) for part in self._parts(drawn)])

    def auroc(self, drawn: Drawn) -> Numbers:
        """Return the area under the ROC curve of the class for each row of weights; ties count half.

        Args:
            drawn: (R, U) how often each unit counts.

        Returns:
            (R,), NaN where the class or all other classes are not drawn.
        """
        return np.concatenate([self._area(part) for part in self._parts(drawn)])

    def _parts(self, drawn: Drawn) -> Iterator[Drawn]:
        rows = max(1, MOST_WEIGHTS // max(1, len(self._units)))
        return (drawn[start : start + rows] for start in range(0, len(drawn), rows))

    def _precision(self, drawn: Drawn) -> Numbers:
        end = self._ends[-1] if len(self._ends) else 0
        above = np.add.reduceat(drawn[:, self._units[:end]], self._starts, axis=1).cumsum(1)
        hits = self._positive(drawn)
        with np.errstate(invalid="ignore"):
            precision = np.nan_to_num(hits.cumsum(1) / above)
            return np.asarray((hits * precision).sum(1) / hits.sum(1))

    def _area(self, drawn: Drawn) -> Numbers:
        negative = np.where(self._hits, 0, drawn[:, self._units]).cumsum(1, dtype=np.int64)
        before = np.pad(negative, ((0, 0), (1, 0)))  # of each image, those with a higher score or listed before it
        higher, equal, total = before[:, self._begins], before[:, self._ends], negative[:, -1]
        below = total[:, None] - (higher + equal) / 2
        hits = self._positive(drawn)
        with np.errstate(invalid="ignore"):
            return np.asarray((hits * below).sum(1) / (hits.sum(1) * total))

    def _positive(self, drawn: Drawn) -> Drawn:
        """Return the weight of the positive images at each score that they have."""
        found: Drawn = np.add.reduceat(drawn[:, self._units[self._hits]], self._levels, axis=1)
        return found
