"""Merge rules over state-dict subsets: the weighted mean, and three rules that tolerate malicious clients."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from statistics import median
from typing import Literal

import torch
from torch import Tensor

from pfedst.errors import StateError
from pfedst.messages.payload import State, check_keys

MergeRule = Literal["mean", "median", "trimmed_mean", "clipped_mean"]


def weighted_mean(states: Iterable[State], weights: Sequence[float]) -> State:
    """Return the mean of `states`, key by key, with `weights` normalised to sum to one.

    Sums run in float64 in the order given, so that the same uploads in the same order give the same bits. Integer
    and boolean tensors (counters of norm layers) are rounded back to their dtype. Each state is read once, so that a
    generator needs the memory of one state.

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
    return {key: _to_dtype(mean, dtypes[key]) for key, mean in sums.items()}


def trimmed_mean(states: Iterable[State], trim: float) -> State:
    """Return the mean of each number over the states without its highest and lowest values; all states count alike.

    If at most a share `trim` of the clients is malicious, each number of the result lies between two numbers that
    honest clients sent. All states are in memory together.

    Source: Yin et al., Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates, ICML 2018 (Definition
    2; the median is Definition 1). If a share of the states is not a whole number, one more is left out at each end.

    Args:
        states: one or more states with the same keys and shapes.
        trim: share of the states that is left out at each end, in [0, 0.5]. One or two states in the middle always
            stay, so that 0.5 is the median.

    Raises:
        StateError: no states, or states with different keys.
    """
    gathered = _gathered(states)
    outside = min(math.ceil(round(trim * len(gathered), 9)), (len(gathered) - 1) // 2)
    merged: State = {}
    for key, first in gathered[0].items():
        ordered = torch.stack([state[key].to(torch.float64) for state in gathered]).sort(dim=0).values
        merged[key] = _to_dtype(ordered[outside : len(gathered) - outside].mean(dim=0), first.dtype)
    return merged


def clipped_mean(states: Iterable[State], weights: Sequence[float], around: State | None = None) -> State:
    """Return `around` plus the weighted mean of the changes, each clipped to the median length over the states.

    The norm is bounded as in Sun et al., Can You Really Backdoor Federated Learning?, 2019, with the median of the
    round as the bound. All states are in memory together.

    Args:
        states: one or more states with the same keys and shapes; integers are merged by the mean.
        weights: see `weighted_mean`.
        around: the state before training; None for zero, if the states are changes themselves.

    Raises:
        StateError: see `weighted_mean`.
    """
    gathered = _gathered(states)
    real = [key for key, tensor in gathered[0].items() if tensor.is_floating_point()]
    centre = {key: torch.zeros_like(gathered[0][key]) for key in real} if around is None else around
    check_keys(centre.keys() & set(real), real, "merging: what the states were before")

    def change(state: State, key: str) -> Tensor:
        return state[key].double() - centre[key].double()

    norms = [math.sqrt(sum(float(change(state, key).square().sum()) for key in real)) for state in gathered]
    most = median(norms)

    def clipped() -> Iterator[State]:
        for state, norm in zip(gathered, norms, strict=True):
            scale = min(1.0, most / norm) if norm else 1.0
            yield state | {key: centre[key].double() + scale * change(state, key) for key in real}

    return {key: _to_dtype(mean, gathered[0][key].dtype) for key, mean in weighted_mean(clipped(), weights).items()}


def _gathered(states: Iterable[State]) -> list[State]:
    gathered = list(states)
    if not gathered:
        raise StateError("cannot merge: there are no states")
    for number, state in enumerate(gathered, start=1):
        check_keys(state, gathered[0], f"merging: state {number}")
    return gathered


def _to_dtype(mean: Tensor, dtype: torch.dtype) -> Tensor:
    return (mean if dtype.is_floating_point else mean.round()).to(dtype)
