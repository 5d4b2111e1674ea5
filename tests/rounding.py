"""Numbers that two ways of computing give: the same but for rounding, which differs between processors."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

FLOAT32 = 1e-5
"""Of numbers about 1: some tens of roundings of float32, and far less than any step of training moves them."""


def alike(one: Any, other: Any, atol: float = FLOAT32) -> bool:
    """Whether nested dicts and lists hold the same keys, texts and whole numbers, and nearly the same floats."""
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.allclose(one, other, rtol=FLOAT32, atol=atol)
    if isinstance(one, Mapping):
        return one.keys() == other.keys() and all(alike(one[key], other[key], atol) for key in one)
    if isinstance(one, Sequence) and not isinstance(one, str):
        return len(one) == len(other) and all(alike(a, b, atol) for a, b in zip(one, other, strict=True))
    if isinstance(one, float) and isinstance(other, float):
        return abs(one - other) <= atol + FLOAT32 * abs(other)
    return bool(one == other)
