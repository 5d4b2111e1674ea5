"""Evaluates one or more models on one data split, with one pass of the encoder for all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pfedst.encoders.spec import Taps
from pfedst.encoders.stored import Inputs
from pfedst.evaluation.averages import Metrics
from pfedst.evaluation.counts import Counts, prediction_counts
from pfedst.evaluation.metrics import classification_metrics
from pfedst.evaluation.stated import Stated

Predictor = Callable[[Taps], Tensor]


@dataclass(frozen=True)
class Evaluated:
    """One model on one split of one client.

    Attributes:
        metrics: at the prior of the run.
        counts: the same.
        at_priors: metrics at stated priors.
    """

    metrics: Metrics
    counts: Counts
    at_priors: Stated = field(default_factory=dict)


def evaluate(
    models: Mapping[str, Predictor],
    taps_of: Callable[[Inputs], Taps],
    batches: Iterable[tuple[Inputs, Tensor]],
    device: torch.device,
    ordinal: bool = False,
    shifts: Mapping[str, Tensor] | None = None,
) -> tuple[dict[str, Evaluated], dict[str, Tensor], Tensor]:
    """Evaluate models on one data split.

    Args:
        models: name -> function from taps of B images to logits (B, K).
        taps_of: images (B, 3, H, W), or what a cache holds of them -> what the models need of the encoder.
        batches: (images or cached taps, targets), in a fixed order.
        device: where the models are. Predictions stay there until the end.
        ordinal: True if the classes are grades in their order.
        shifts: by model, what is added to its logits (K,) before metrics are computed; none for a model without one.

    Returns:
        Metrics and counts of every model by its name; logits (N, K) of every model on the CPU, without shifts; targets
            (N,).
    """
    logits: dict[str, list[Tensor]] = {name: [] for name in models}
    targets = []
    for inputs, labels in batches:
        taps = taps_of(inputs.to(device, non_blocking=device.type != "cpu"))
        for name, predict in models.items():
            logits[name].append(predict(taps).float())
        targets.append(labels)
    if not targets:
        empty, none = torch.empty(0, 1), torch.empty(0, dtype=torch.long)
        return {name: _evaluated(empty, none, ordinal) for name in models}, dict.fromkeys(models, empty), none
    all_targets = torch.cat(targets)
    found = {}
    for name, parts in logits.items():
        shift = (shifts or {}).get(name)
        shifted = parts if shift is None else [part.double() + shift.to(part.device) for part in parts]
        found[name] = _evaluated(torch.cat([part.softmax(1) for part in shifted]).cpu(), all_targets, ordinal)
    return found, {name: torch.cat(parts).cpu() for name, parts in logits.items()}, all_targets


def _evaluated(probabilities: Tensor, targets: Tensor, ordinal: bool) -> Evaluated:
    return Evaluated(classification_metrics(probabilities, targets, ordinal), prediction_counts(probabilities, targets))
