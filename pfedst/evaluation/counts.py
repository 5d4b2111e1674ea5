"""Counts of a model's predictions on the images of a client, sufficient for recall, confusion and calibration."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

BINS = 15
"""Number of confidence bins of equal width, as in Guo et al. (ICML 2017)."""
Counts = dict[str, Any]
"""`confusion`: (K, K) numbers of images, rows are targets and columns predictions. `reliability`: for each bin of
confidence the number of images (`images`), the number of correct predictions (`right`), and the sum of confidences
(`confidence`)."""


def bins_of(confidence: Tensor) -> Tensor:
    """Return the bin of each confidence (n,): 0 to BINS - 1. A bin includes its lower edge, and the last one also 1."""
    edges = torch.linspace(0, 1, BINS + 1, dtype=torch.float64)
    return torch.bucketize(confidence.double().contiguous(), edges[1:-1], right=True)


def calibration_error(confidence: Tensor, right: Tensor) -> float:
    """Return the expected calibration error: the mean distance between confidence and accuracy over bins, by images.

    The bins are those of the counts, so that a table and a reliability diagram agree; torchmetrics gives confidence 1 a
    bin of its own.

    Args:
        confidence: (n,), 0 to 1, n >= 1; or (n, C), of which the mean over columns is returned.
        right: whether the prediction is correct, of the same shape.
    """
    columns = confidence.numel() // len(confidence)
    bins = bins_of(confidence).reshape(-1, columns) + BINS * torch.arange(columns)
    gaps = torch.bincount(bins.flatten(), (right.double() - confidence.double()).flatten(), BINS * columns)
    return float(gaps.abs().sum()) / confidence.numel()


def prediction_counts(probabilities: Tensor, targets: Tensor) -> Counts:
    """Return counts for (n, K) probabilities and (n,) targets, as numbers that JSON can hold."""
    # a broken model may give NaN: count it as zero confidence
    probabilities, classes = probabilities.double().nan_to_num(), probabilities.shape[1]
    confidence, predicted = probabilities.max(1)
    confusion = torch.bincount(targets * classes + predicted, minlength=classes * classes).reshape(classes, classes)
    bins = bins_of(confidence)
    return {
        "confusion": confusion.tolist(),
        "reliability": {
            "images": torch.bincount(bins, minlength=BINS).tolist(),
            "right": torch.bincount(bins[predicted == targets], minlength=BINS).tolist(),
            "confidence": [round(total, 6) for total in torch.bincount(bins, confidence, BINS).tolist()],
        },
    }
