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


def prediction_counts(probabilities: Tensor, targets: Tensor) -> Counts:
    """Return counts for (n, K) probabilities and (n,) targets, as numbers that JSON can hold."""
    # a broken model may give NaN: count it as zero confidence
    probabilities, classes = probabilities.double().nan_to_num(), probabilities.shape[1]
    confidence, predicted = probabilities.max(1)
    confusion = torch.bincount(targets * classes + predicted, minlength=classes * classes).reshape(classes, classes)
    # a bin includes its lower edge; confidence 1 belongs to the last bin
    edges = torch.linspace(0, 1, BINS + 1, dtype=torch.float64)
    bins = torch.bucketize(confidence, edges[1:-1], right=True)
    return {
        "confusion": confusion.tolist(),
        "reliability": {
            "images": torch.bincount(bins, minlength=BINS).tolist(),
            "right": torch.bincount(bins[predicted == targets], minlength=BINS).tolist(),
            "confidence": [round(total, 6) for total in torch.bincount(bins, confidence, BINS).tolist()],
        },
    }
