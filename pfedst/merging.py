"""Merge rules over state-dict subsets."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from pfedst.errors import StateError
from pfedst.payload import State, check_keys


def weighted_mean(states: Sequence[State], weights: Sequence[float]) -> State:
    """Mean of `states`, key by key, with `weights` normalised to sum to one.

    Sums run in float64 in the order given, so that the same uploads in the same order give the same bits. Integer
    and boolean tensors (counters of norm layers) are rounded back to their dtype.

    Args:
        states: one or more states with the same keys and shapes.
        weights: one non-negative weight a state, not all zero (sample counts, or all equal).

    Raises:
        StateError: no states, states with different keys, or weights that cannot be normalised.
    """
    total = float(sum(weights))
    if not states or len(states) != len(weights) or min(weights) < 0 or not 0 < total < float("inf"):
        raise StateError(
            f"cannot merge {len(states)} states with weights {list(weights)}: give one weight >= 0 a state"
        )
    for index, state in enumerate(states[1:], start=2):
        check_keys(state, states[0], f"merging: state {index}")
    merged: State = {}
    for key, first in states[0].items():
        mean = torch.zeros(first.shape, dtype=torch.float64, device=first.device)
        for state, weight in zip(states, weights, strict=True):
            mean.add_(state[key].to(torch.float64), alpha=weight / total)
        merged[key] = (mean if first.is_floating_point() else mean.round()).to(first.dtype)
    return merged
