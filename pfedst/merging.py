"""Merge rules over state-dict subsets."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

from pfedst.errors import StateError
from pfedst.payload import State, check_keys


def weighted_mean(states: Iterable[State], weights: Sequence[float]) -> State:
    """Mean of `states`, key by key, with `weights` normalised to sum to one.

    Sums run in float64 in the order given, so that the same uploads in the same order give the same bits. Integer
    and boolean tensors (counters of norm layers) are rounded back to their dtype. Each state is read once and let go,
    so that a generator needs the memory of one.

    Args:
        states: one or more states with the same keys and shapes.
        weights: one non-negative weight a state, not all zero (sample counts, or all equal).

    Raises:
        StateError: no states, states with different keys, or weights that cannot be normalised.
    """
    total = float(sum(weights))
    if not weights or min(weights) < 0 or not 0 < total < float("inf"):
        raise StateError(f"cannot merge with weights {list(weights)}: give one weight >= 0 a state, not all of them 0")
    sums: State = {}
    dtypes: dict[str, torch.dtype] = {}
    count = 0
    for count, state in enumerate(states, start=1):
        if count == 1:
            sums = {key: torch.zeros_like(tensor, dtype=torch.float64) for key, tensor in state.items()}
            dtypes = {key: tensor.dtype for key, tensor in state.items()}
        check_keys(state, sums, f"merging: state {count}")
        if count <= len(weights):
            for key, mean in sums.items():
                mean.add_(state[key].to(torch.float64), alpha=weights[count - 1] / total)
    if count != len(weights):
        raise StateError(f"cannot merge {count} states with weights {list(weights)}: give one weight a state")
    return {
        key: (mean if dtypes[key].is_floating_point else mean.round()).to(dtypes[key]) for key, mean in sums.items()
    }
