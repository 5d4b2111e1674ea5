"""Whether records of rounds are what a run writes: whoever can write a run's folder can make their sums right."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from pfedst.errors import StateError
from pfedst.evaluation import METRICS

MOST_INT = 2**63
FITTED = ("upload_bytes", "download_bytes", "train_loss", "fit_seconds", "images", "skipped_steps")


def check_records(file: Path, records: Sequence[Any], names: Collection[str], last_round: int) -> None:
    """Check all that is read again of them by a run that goes on.

    Args:
        file: of the records, for the error.
        records: of rounds 0 to `last_round`, a line each.
        names: of those that there may be records of.
        last_round: number of the last one.

    Raises:
        StateError: naming the first line that no run writes.
    """
    before, keys = 0, set[tuple[str, ...]]()
    for line, record in enumerate(records, start=1):
        try:
            number = record["round"]
            whole = type(number) is int and before <= number <= before + 1 and record["client"] in names
            keys |= {tuple(sorted(metrics)) for metrics in _metrics(record)}
            whole = whole and all(_is_number(value) for value in _numbers(record))
            whole = whole and len(keys) < 2 and all(set(METRICS) <= set(found) for found in keys)
        except (KeyError, TypeError, AttributeError, ValueError):
            whole = False
        if not whole:
            raise StateError(f"{file}, line {line}: not what a run writes; put back what it was, or start a new run")
        before = number
    if not records or before != last_round:
        raise StateError(f"{file}: no record of round {last_round}; put back what it was, or start a new run")


def _numbers(record: dict[str, Any]) -> Iterator[Any]:
    """What must be numbers."""
    if record["round"] == 0:
        yield record["setup_upload_bytes"]
    if type(record["participated"]) is not bool:
        raise ValueError("who took part")
    if record["participated"]:
        yield from (record[key] for key in FITTED)
        yield record["peak_memory_bytes"] or 0
    elif "left_out" in record:
        yield record["download_bytes"]
        if not isinstance(record["left_out"], str):
            raise ValueError("the kind of a fault")
    for metrics in _metrics(record):
        yield from (value for value in metrics.values() if value is not None)


def _metrics(record: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Of both moments, and every split and model that is asked for."""
    for moment, models in (("received", ("personal", "generic")), ("trained", ("personal",))):
        if moment not in record:
            continue
        if set(record[moment]) != {"validation", "test"}:
            raise ValueError("the splits")
        for split in record[moment].values():
            if set(split) != set(models):
                raise ValueError("the models")
            yield from split.values()
    if "received" in record and any(
        not isinstance(record["counts"][split][model], dict)
        for split, models in record["received"].items()
        for model in models
    ):
        raise ValueError("the counts")


def _is_number(value: Any) -> bool:
    """Finite; an int of thousands of digits would be no float."""
    if isinstance(value, float):
        return math.isfinite(value)
    return type(value) is int and abs(value) < MOST_INT
