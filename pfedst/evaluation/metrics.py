"""Metrics of one client over the classes PRESENT in its targets.

A macro average that counts an absent class as 0 understates a client that has few classes: in FedISIC five of the six
test sets lack some classes. Therefore balanced accuracy, AUROC and macro F1 average over present classes only.
"""

from __future__ import annotations

import itertools
import math

import torch
from scipy.stats import rankdata
from torch import Tensor
from torchmetrics.functional.classification import multiclass_cohen_kappa, multiclass_f1_score, multiclass_recall

from pfedst.evaluation.averages import Metrics, metric_names
from pfedst.evaluation.counts import calibration_error


def classification_metrics(probabilities: Tensor, targets: Tensor, ordinal: bool = False) -> Metrics:
    """Return the metrics of one client.

    Args:
        probabilities: (n, K), rows sum to one.
        targets: (n,) class indices.
        ordinal: True if the classes are grades in their order.

    Returns:
        `balanced_accuracy`: mean recall. `auroc`: mean one-against-rest area, None with fewer than two classes present.
            `macro_f1`. `accuracy`. `ece`: mean distance between confidence and accuracy in 15 bins (Guo et al., ICML
            2017). `classwise_ece`: the same between the probability of a class and its share, averaged over all K
            classes (Kull et al., NeurIPS 2019). For grades also `auroc_ovo`, the mean area over pairs of classes (Hand
            and Till 2001), and `quadratic_kappa` (Cohen 1968), None if all targets and predictions are one class. All
            metrics are None without samples.
    """
    if len(targets) == 0:
        return dict.fromkeys(metric_names(ordinal))
    # ties and sums in float64: the same predictions give the same number for any batch size
    probabilities, classes = probabilities.double(), probabilities.shape[1]
    present = _present(targets, classes)
    auroc = None
    if int(present.sum()) > 1:
        areas = _areas(probabilities[:, present], targets[:, None] == torch.nonzero(present).flatten())
        auroc = float(areas.mean())
    predicted = predicted_metrics(probabilities, targets)
    found: Metrics = {
        "balanced_accuracy": predicted["balanced_accuracy"],
        "auroc": auroc,
        "macro_f1": predicted["macro_f1"],
        "accuracy": predicted["accuracy"],
        "ece": _defined(predicted["ece"]),
        "classwise_ece": _defined(calibration_error(probabilities, targets[:, None] == torch.arange(classes))),
    }
    if ordinal:
        kappa = float(multiclass_cohen_kappa(probabilities, targets, classes, weights="quadratic"))
        found["auroc_ovo"] = _one_against_one(probabilities, targets, torch.nonzero(present).flatten().tolist())
        found["quadratic_kappa"] = _defined(kappa)
    return found


def predicted_metrics(probabilities: Tensor, targets: Tensor) -> dict[str, float]:
    """Return `balanced_accuracy`, `macro_f1`, `accuracy` and `ece`, which need the predicted classes alone.

    Args:
        probabilities: (n, K), float64, n >= 1; NaN gives an `ece` of NaN.
        targets: (n,) class indices.
    """
    classes = probabilities.shape[1]
    present = _present(targets, classes)
    recall = multiclass_recall(probabilities, targets, classes, average=None)
    f1 = multiclass_f1_score(probabilities, targets, classes, average=None)
    confidence, predicted = probabilities.max(1)
    right = predicted == targets
    return {
        "balanced_accuracy": float(recall[present].double().mean()),
        "macro_f1": float(f1[present].double().mean()),
        "accuracy": float(right.double().mean()),
        "ece": calibration_error(confidence, right),
    }


def _areas(scores: Tensor, positive: Tensor) -> Tensor:
    """Return the area under the ROC curve of each column (C,), from mean ranks (Mann and Whitney 1947).

    torchmetrics sorts column by column and takes six times as long, which a small model notices in each evaluation.

    Args:
        scores: (n, C); NaN, of a broken model, counts as 0.
        positive: (n, C) booleans, both values in each column.
    """
    ranks = torch.from_numpy(rankdata(scores.nan_to_num().numpy(), axis=0))
    of_class = positive.sum(0)
    return ((ranks * positive).sum(0) - of_class * (of_class + 1) / 2) / (of_class * (len(scores) - of_class))


def _present(targets: Tensor, classes: int) -> Tensor:
    """Return for each class (K,) whether it has an image."""
    return torch.bincount(targets, minlength=classes) > 0


def _defined(value: float) -> float | None:
    """Return None in place of NaN, which results from NaN probabilities."""
    return None if math.isnan(value) else value


def _one_against_one(probabilities: Tensor, targets: Tensor, present: list[int]) -> float | None:
    """Return the mean over ordered pairs of classes of the area of one class's probability among the images of both."""
    areas = []
    for one, other in itertools.permutations(present, 2):
        among = (targets == one) | (targets == other)
        areas.append(float(_areas(probabilities[among, one, None], (targets[among] == one)[:, None])))
    return math.fsum(areas) / len(areas) if areas else None
