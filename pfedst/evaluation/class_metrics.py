"""Sensitivity, specificity and average precision of each class, with bootstrap intervals within a site.

The unit that is drawn is a patient or a lesion: several images of one patient agree more than images of several, and an
interval over images would be too narrow. The intervals describe this model at this site: they say which numbers other
patients of the same site would give, and nothing about other sites or other trainings.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 1000
"""Number of bootstrap resamples."""
INTERVAL = (0.025, 0.975)
"""Quantiles of the resamples at the ends of an interval."""
FEWEST_UNITS = 5
"""Number of patients (lesions, images) with a class from which on it has intervals: fewer have too few resamples."""
MOST_WEIGHTS = 2**22
"""Maximum number of weights in memory at a time."""

Numbers = NDArray[np.float64]
Integers = NDArray[np.int64]
Mask = NDArray[np.bool_]
Drawn = NDArray[np.int32]
"""How often each resample holds each unit, (R, U)."""
ClassMetrics = list[dict[str, Any]]
"""One table a class: its `images` and `units`, the `other_units` that have an image of another class, and for each
metric of `CLASS_METRICS` the `value`, and `low` and `high` of its 95 % interval; None where a number is not defined."""


def class_metrics(models: Mapping[str, Numbers], targets: Integers, units: Integers, seed: int) -> dict[str, Any]:
    """Return what each model reaches at one site, class by class.

    A class without an image has neither sensitivity nor average precision; if all images are of one class, that class
    has neither specificity nor average precision. There is no interval if fewer than `FEWEST_UNITS` units have an image
    that the metric depends on, or if all resamples agree: ten of ten lesions found do not prove that all are found.

    Args:
        models: by name the probabilities (N, K) of a model, rows sum to one. NaN counts as zero.
        targets: (N,) class indices.
        units: (N,) the number of the patient or lesion of each image, 0 to U - 1, each used.
        seed: of the resamples, which all models share.

    Returns:
        `images` and `units`: their numbers; and for each model its `ClassMetrics`.
    """
    number = int(units.max()) + 1 if len(units) else 0
    drawn = _drawn(number, seed)
    found: dict[str, Any] = {"images": len(targets), "units": number}
    for name, probabilities in models.items():
        filled = np.nan_to_num(probabilities)
        # of equal probabilities the first is the prediction, as in the counts
        predicted = filled.argmax(1) if len(filled) else targets
        found[name] = [_of_class(filled[:, c], targets == c, predicted == c, units, drawn) for c in _classes(filled)]
    return found


def _classes(probabilities: Numbers) -> range:
    return range(probabilities.shape[1])


def _drawn(units: int, seed: int) -> Drawn:
    """Return how often each resample holds each unit, (RESAMPLES, units)."""
    if not units:
        return np.zeros((RESAMPLES, 0), np.int32)
    return np.random.default_rng(seed).multinomial(units, [1 / units] * units, RESAMPLES).astype(np.int32)


def _of_class(scores: Numbers, positive: Mask, predicted: Mask, units: Integers, drawn: Drawn) -> dict[str, Any]:
    """Return one table of `ClassMetrics`."""
    with_class, without = (len(np.unique(units[images])) for images in (positive, ~positive))
    ranked = _Ranking(scores, positive, units)
    value = ranked.average_precision(np.ones((1, drawn.shape[1]), np.int32))[0] if with_class and without else None
    return {
        "images": int(positive.sum()),
        "units": with_class,
        "other_units": without,
        "sensitivity": _share(positive, positive & predicted, units, with_class, drawn),
        "specificity": _share(~positive, ~positive & ~predicted, units, without, drawn),
        "average_precision": _with_interval(value, min(with_class, without), lambda: ranked.average_precision(drawn)),
    }


def _share(images: Mask, right: Mask, units: Integers, number: int, drawn: Drawn) -> dict[str, float | None]:
    """Return the share of some images that are right, with its interval; they are of so many units."""

    def resampled() -> Numbers:
        counts = np.stack([np.bincount(units, mask, drawn.shape[1]) for mask in (right, images)], 1)
        hits, total = (drawn.astype(np.float64) @ counts).T
        with np.errstate(invalid="ignore"):
            return np.asarray(hits / total)

    return _with_interval(right.sum() / images.sum() if images.any() else None, number, resampled)


def _with_interval(value: Any, units: int, resampled: Callable[[], Numbers]) -> dict[str, float | None]:
    """Return a value with the ends of its interval; `resampled` gives the value of each resample, NaN if undefined."""
    ends: tuple[float | None, float | None] = (None, None)
    if value is not None and units >= FEWEST_UNITS:
        values = resampled()
        low, high = np.quantile(values[~np.isnan(values)], INTERVAL)
        if low < high:
            ends = (float(low), float(high))
    return {"value": None if value is None else float(value), "low": ends[0], "high": ends[1]}


class _Ranking:
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
        ends = np.flatnonzero(last)[kept] + 1
        self._starts = np.append(0, ends[:-1])
        self._end = ends[-1] if len(ends) else 0
        self._levels = np.flatnonzero(np.diff(levels[self._hits], prepend=-1))

    def average_precision(self, drawn: Drawn) -> Numbers:
        """Return the precision at the scores of positive images, averaged over these images, for each row of weights.

        Args:
            drawn: (R, U) how often each unit counts.
        """
        rows = max(1, MOST_WEIGHTS // max(1, len(self._units)))
        return np.concatenate([self._of(part) for part in _parts(drawn, rows)])

    def _of(self, drawn: Drawn) -> Numbers:
        above = np.add.reduceat(drawn[:, self._units[: self._end]], self._starts, axis=1).cumsum(1)
        hits = np.add.reduceat(drawn[:, self._units[self._hits]], self._levels, axis=1)
        with np.errstate(invalid="ignore"):
            precision = np.nan_to_num(hits.cumsum(1) / above)
            return np.asarray((hits * precision).sum(1) / hits.sum(1))


def _parts(drawn: Drawn, rows: int) -> Iterator[Drawn]:
    return (drawn[start : start + rows] for start in range(0, len(drawn), rows))
