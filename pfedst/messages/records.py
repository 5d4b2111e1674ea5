"""The record of a local fit: which numbers every client reports, and of which kind they are."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeGuard

Check = Callable[[Any], bool]

LARGEST_INTEGER = 2**63
LARGEST_NUMBER = 1e100
"""Squares of such numbers, and sums of them, are finite."""


def is_integer(value: Any) -> bool:
    """True for an int that fits into 64 bits; a bool is no int, and one of thousands of digits would be no float."""
    return type(value) is int and abs(value) < LARGEST_INTEGER


def is_count(value: Any) -> bool:
    """True for an int that is not negative."""
    return is_integer(value) and value >= 0


def is_number(value: Any) -> bool:
    """True for an int or a finite float of a size that can be squared and summed."""
    return is_integer(value) or (type(value) is float and math.isfinite(value) and abs(value) < LARGEST_NUMBER)


def is_size(value: Any) -> bool:
    """True for a count, or None where a platform does not tell."""
    return value is None or is_count(value)


def is_positive(value: Any) -> bool:
    """True for a number that is not negative."""
    return is_number(value) and value >= 0


FIT_RECORD: dict[str, Check] = {
    "train_loss": is_number,
    "fit_seconds": is_positive,
    "images": is_count,
    "skipped_steps": is_count,
    "peak_memory_bytes": is_size,
}


def is_fit_record(record: Any) -> TypeGuard[dict[str, Any]]:
    """True if `record` holds what a client reports after a fit."""
    return isinstance(record, dict) and all(key in record and check(record[key]) for key, check in FIT_RECORD.items())
