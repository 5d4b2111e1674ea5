"""What a model predicted on a client's images, as counts: enough for recall, confusion and calibration."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

BINS = 15
"""Of confidence, equally wide, as in Guo et al. (ICML 2017)."""
Counts = dict[str, Any]
"""`confusion`: (K, K) numbers of images, rows the target and columns the prediction; `reliability`: for each bin of
confidence the number of images (`images`), of those predicted rightly (`right`), and the sum of confidences
(`confidence`)."""


def prediction_counts(probabilities: Tensor, targets: Tensor) -> Counts:
    """Counts of (n, K) probabilities and (n,) targets; numbers that JSON can hold."""
    # a model that a fault has ruined may say NaN: no confidence
    probabilities, classes = probabilities.double().nan_to_num(), probabilities.shape[1]
    confidence, predicted = probabilities.max(1)
    confusion = torch.bincount(targets * classes + predicted, minlength=classes * classes).reshape(classes, classes)
    # a bin holds its lower edge; certainty itself belongs to the last
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
