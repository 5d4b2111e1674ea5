"""Abstention: a model predicts where its confidence reaches a threshold, and leaves the other images to a person.

The confidence of an image is its largest probability. Shapes: N images.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

COVERAGE = 0.8
"""Share of the images that shall be predicted."""
MOST_POINTS = 20
"""Of a risk-coverage curve."""
IMAGES_A_POINT = 5
"""Number of images between two points of a curve: a small site gets fewer points, and no step is one image."""
ROUNDING = 1e-9
"""The largest error of a product of a share and a number of images."""


@dataclass(frozen=True)
class Selective:
    """What a threshold gives on some images.

    Attributes:
        coverage: share of the images that are predicted, in [0, 1].
        accuracy: share of these that are right; None if there is none.
    """

    coverage: float
    accuracy: float | None


def threshold_for(confidence: Tensor, coverage: float) -> float:
    """Return the highest threshold that at least this share of the images reaches.

    Args:
        confidence: (N,), N >= 1.
        coverage: in (0, 1].
    """
    wanted = max(1, math.ceil(coverage * len(confidence) - ROUNDING))
    return float(confidence.double().sort(descending=True).values[wanted - 1])


def selective(confidence: Tensor, right: Tensor, threshold: float) -> Selective:
    """Return coverage and accuracy of the images that reach a threshold.

    Args:
        confidence: (N,), N >= 1.
        right: (N,), whether the prediction is correct.
        threshold: in [0, 1]; an image with this confidence is predicted.
    """
    kept = confidence.double() >= threshold
    number = int(kept.sum())
    return Selective(number / len(kept), int(right[kept].sum()) / number if number else None)


def risk_coverage(confidence: Tensor, right: Tensor) -> list[list[float]]:
    """Return the risk-coverage curve: for rising coverages the share of wrong predictions among the predicted images.

    Images with equal confidence are predicted together. The last point holds all images.

    Args:
        confidence: (N,).
        right: (N,), whether the prediction is correct.

    Returns:
        At most `MOST_POINTS` pairs of coverage and risk, in [0, 1]; none without images.
    """
    number = min(MOST_POINTS, max(1, len(confidence) // IMAGES_A_POINT)) if len(confidence) else 0
    points: list[list[float]] = []
    for step in range(1, number + 1):
        found = selective(confidence, right, threshold_for(confidence, step / number))
        if found.accuracy is not None and (not points or found.coverage > points[-1][0]):
            points.append([found.coverage, 1 - found.accuracy])
    return points
