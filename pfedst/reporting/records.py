"""Checks of the records of rounds before a run continues with them: checksums alone can be forged."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from pfedst.errors import StateError
from pfedst.evaluation import METRICS
from pfedst.evaluation.stated import BALANCED, REASON, REASONS, SITE, STATED
from pfedst.messages.records import FIT_RECORD, is_integer, is_number, is_positive

Kind = Callable[[Any], bool]


def _is_bool(value: Any) -> bool:
    return type(value) is bool


def _is_text(value: Any) -> bool:
    return type(value) is str


EVERY: dict[str, Kind] = {"participated": _is_bool}
FIRST: dict[str, Kind] = {"setup_upload_bytes": is_integer}
FITTED: dict[str, Kind] = {"upload_bytes": is_integer, "download_bytes": is_integer, **FIT_RECORD}
LEFT_OUT: dict[str, Kind] = {"left_out": _is_text, "download_bytes": is_integer}
NOT_EVALUATED = "not_evaluated"
"""Key of a record: the kind of the fault for which a site could not be evaluated."""
EVALUATED: dict[str, set[str]] = {"received": {"personal", "generic"}, "trained": {"personal"}}
"""The moments of evaluation, and the models whose metrics must be there."""
SPLITS = {"validation", "test"}


def check_records(
    file: Path,
    records: Sequence[Any],
    members: Sequence[str],
    samples: Mapping[str, Mapping[str, int]],
    last_round: int,
) -> None:
    """Check everything that a resumed run reads of its records; other keys are ignored.

    Args:
        file: of the records, for the error.
        records: one a line; for every round one a member, in their order.
        members: names of all clients and of the client of a pooled method.
        samples: number of images of every site, by split: only sites are evaluated.
        last_round: number of the last round.

    Raises:
        StateError: naming the first line that no run writes, and what of it.
    """
    alike: dict[tuple[Any, ...], Any] = {}
    places = ((number, name) for number in range(last_round + 1) for name in members)
    for line, (record, place) in enumerate(zip_longest(records, places), start=1):
        wrong = next(_faults(record, place, samples, alike), None)
        if wrong is not None:
            raise StateError(
                f"{file}, line {line}: {wrong}, which no run writes; restore the original file, or start a new run"
            )


def _faults(
    record: Any,
    place: tuple[int, str] | None,
    samples: Mapping[str, Mapping[str, int]],
    alike: dict[tuple[Any, ...], Any],
) -> Iterator[str]:
    """Yield what is wrong with a record; `alike` holds the metric names of the records before it, by round."""
    if place is None:
        yield "a record after those of the last round"
        return
    number, name = place
    found = (record.get("round"), record.get("client")) if isinstance(record, dict) else None
    if found != place or not is_integer(record["round"]):
        yield f"no record of round {number}, client {name}"
        return
    for key, is_kind in _wanted(record).items():
        if key not in record or not is_kind(record[key]):
            yield f'"{key}" is missing or of another kind'
    # every run evaluates before its first round
    if number == 0 and name in samples and not {"received", NOT_EVALUATED} & set(record):
        yield "no evaluation"
    if "received" in record and not _are_counts(record.get("counts")):
        yield '"counts" is missing or of another kind'
    # older runs have none
    if "at_priors" in record:
        for path, stated, images in _tables(record["at_priors"], EVALUATED["received"], samples.get(name, {})):
            if stated != {} and not is_stated(stated, images):  # empty for a method without a generic model
                yield f'"at_priors" holds no metrics of {path}'
    for moment in (moment for moment in EVALUATED if moment in record):
        for path, metrics, images in _tables(record[moment], EVALUATED[moment], samples.get(name, {})):
            if not _are_metrics(metrics, images):
                yield f'"{moment}" holds no metrics of {path}'
            # a mean over clients needs metrics that all clients have
            elif alike.setdefault((number, moment, path), set(metrics)) != set(metrics):
                yield f'"{moment}" holds other metrics of {path} than the client before'


def _wanted(record: Mapping[str, Any]) -> dict[str, Kind]:
    """Return the keys that a record must hold, with the check of each."""
    wanted = dict(EVERY)
    for holds, keys in (
        (record["round"] == 0, FIRST),
        (record.get("participated") is True, FITTED),
        ("left_out" in record, LEFT_OUT),
        (NOT_EVALUATED in record, {NOT_EVALUATED: _is_text}),
    ):
        wanted |= keys if holds else {}
    return wanted


def _tables(table: Any, models: set[str], samples: Mapping[str, int]) -> Iterator[tuple[str, Any, int]]:
    """Yield for every split and model its place, its metrics (or what is there instead) and the number of images."""
    if not isinstance(table, dict) or set(table) != SPLITS or not set(samples) >= SPLITS:
        yield "validation and test", None, 0
        return
    for split, of_models in table.items():
        if not isinstance(of_models, dict) or not set(of_models) >= models:
            yield split, None, 0
            continue
        for model, metrics in of_models.items():
            yield f"{split}, {model}", metrics, samples[split]


def _are_metrics(metrics: Any, images: int) -> bool:
    """Return True for numbers, or None where a metric is not defined; without images all are None."""
    return (
        isinstance(metrics, dict)
        and set(metrics) >= set(METRICS)
        and all(value is None or (images > 0 and is_number(value)) for value in metrics.values())
    )


def _are_counts(table: Any) -> bool:
    """Return True if there are counts for every split and model, and a square confusion of the personal model."""
    return isinstance(table, dict) and all(
        isinstance(table.get(split), dict)
        and isinstance(table[split].get(model), dict)
        and (model != "personal" or _is_square(table[split][model].get("confusion")))
        for split in SPLITS
        for model in EVALUATED["received"]
    )


def _is_square(table: Any) -> bool:
    """Return True for as many lists as each of them holds numbers of images."""
    return isinstance(table, list) and all(
        isinstance(row, list) and len(row) == len(table) and all(is_integer(count) and count >= 0 for count in row)
        for row in table
    )


def is_stated(found: Any, images: int) -> bool:
    """True for metrics at stated class priors, each a number that is not negative (None if undefined), or a reason."""
    return (
        isinstance(found, dict)
        and {BALANCED, SITE} <= set(found) <= set(STATED)
        and all(_is_table(prior, table, images) for prior, table in found.items())
    )


def _is_table(prior: str, table: Any, images: int) -> bool:
    if not isinstance(table, dict):
        return False
    if set(table) == {REASON}:
        return table[REASON] in REASONS
    return set(table) == set(STATED[prior]) and all(
        value is None or (images > 0 and is_positive(value)) for value in table.values()
    )
