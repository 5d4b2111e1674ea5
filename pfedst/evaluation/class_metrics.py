"""Sensitivity, specificity and average precision of each class, with bootstrap intervals within a site."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from pfedst.evaluation.bootstrap import (
    Drawn,
    Estimate,
    Integers,
    Mask,
    Numbers,
    Ranking,
    draw,
    once,
    shares,
    with_interval,
)

ClassMetrics = list[dict[str, Any]]
"""One table a class: its `images` and `units`, the `other_units` that have an image of another class, and the estimate
of each metric of `CLASS_METRICS`."""


def class_metrics(models: Mapping[str, Numbers], targets: Integers, units: Integers, seed: int) -> dict[str, Any]:
    """Return what each model reaches at one site, class by class.

    A class without an image has neither sensitivity nor average precision; if all images are of one class, that class
    has neither specificity nor average precision.

    Args:
        models: by name the probabilities (N, K) of a model, rows sum to one. NaN counts as zero.
        targets: (N,) class indices.
        units: (N,) the number of the patient or lesion of each image, 0 to U - 1, each used.
        seed: of the resamples, which all models share.

    Returns:
        `images` and `units`: their numbers; and for each model its `ClassMetrics`.
    """
    number = int(units.max()) + 1 if len(units) else 0
    drawn = draw(number, seed)
    found: dict[str, Any] = {"images": len(targets), "units": number}
    for name, probabilities in models.items():
        filled = np.nan_to_num(probabilities)
        # of equal probabilities the first is the prediction, as in the counts
        predicted = filled.argmax(1) if len(filled) else targets
        found[name] = [_of_class(filled[:, c], targets == c, predicted == c, units, drawn) for c in _classes(filled)]
    return found


def _classes(probabilities: Numbers) -> range:
    return range(probabilities.shape[1])


def _of_class(scores: Numbers, positive: Mask, predicted: Mask, units: Integers, drawn: Drawn) -> dict[str, Any]:
    """Return one table of `ClassMetrics`."""
    with_class, without = (len(np.unique(units[images])) for images in (positive, ~positive))
    ranked = Ranking(scores, positive, units)
    value = ranked.average_precision(once(drawn))[0] if with_class and without else None
    return {
        "images": int(positive.sum()),
        "units": with_class,
        "other_units": without,
        "sensitivity": _share(positive, positive & predicted, units, with_class, drawn),
        "specificity": _share(~positive, ~positive & ~predicted, units, without, drawn),
        "average_precision": with_interval(value, min(with_class, without), lambda: ranked.average_precision(drawn)),
    }


def _share(images: Mask, right: Mask, units: Integers, number: int, drawn: Drawn) -> Estimate:
    """Return the share of some images that are right, with its interval; they are of so many units."""
    value = right.sum() / images.sum() if images.any() else None
    return with_interval(value, number, lambda: shares(right, images, units, drawn))
