"""How the rows of a table differ: what they may not differ in, and notes on the rest."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from pfedst.errors import ConfigurationError, listed
from pfedst.reporting.comparison import FinishedRun, RunsOfARow, has_present_bins
from pfedst.reporting.rows import of_a_run

SAME = ("classes", "samples", "split")
"""What runs must have in common to stand in one table."""
BUDGET = (
    "encoder",
    "data",
    "anchors",
    "rounds",
    "local_epochs",
    "local_batches",
    "batch_size",
    "participation",
    "held_out_sites",
)
"""What is told where rows differ in it."""
BUDGET_OPTIONS = (
    "coordinator.held_out_sites",
    "coordinator.participation",
    "coordinator.rounds",
    "data.class_path",
    "data.init_args.batch_size",
    "trainer.limit_train_batches",
    "trainer.max_epochs",
)
"""The same as options."""
EQUAL_FOR_ALL = ("coordinator.", "data.", "trainer.", "init")
"""Groups of options that are no part of a method: a report names a difference in them between any rows that train."""


def notes_on_rows(rows: Sequence[RunsOfARow], tuned: Mapping[str, Any]) -> list[str]:
    """Return what a reader must know of differences between rows, and of numbers that some of them lack."""
    return [
        *_budgets(rows),
        *_options(rows, tuned),
        *_last_digits(rows),
        *_other_bins(rows),
        *_not_evaluated(rows),
    ]


def check_same(rows: Sequence[RunsOfARow]) -> None:
    """Check that rows can stand in one table.

    Raises:
        ConfigurationError: they differ in classes, images or folds, or a row has a seed twice.
    """
    first = rows[0].first
    of_part: dict[tuple[int, int] | None, FinishedRun] = {}
    for row in rows:
        seeds = [run.words.removeprefix("seed ") for run in row.runs]
        if len(set(seeds)) < len(seeds):
            what = "the same seed" if first.part is None else "the same seed and fold"
            raise ConfigurationError(f"{row.label}: two runs have {what} ({listed(seeds)}); give one of them")
        for run in row.runs:
            same_part = of_part.setdefault(run.part, run)
            if _folds(run) != _folds(first):
                raise ConfigurationError(
                    f"{run.folder} and {first.folder} cannot stand in one table: they differ in folds or images"
                )
            for key in SAME:
                other = same_part if key == "samples" else first
                if run.protocol[key] != other.protocol[key]:
                    raise ConfigurationError(
                        f"{run.folder} and {other.folder} cannot stand in one table: they differ in {key}"
                    )


def _folds(run: FinishedRun) -> Any:
    """Return the number of folds and the images of each site, which all folds share; None without folds."""
    if run.part is None:
        return None
    return run.protocol["folds"]["folds"], {site: sum(of.values()) for site, of in run.protocol["samples"].items()}


def _budgets(rows: Sequence[RunsOfARow]) -> list[str]:
    """Where rows that train had another budget, another encoder or other data."""
    notes = []
    for key in BUDGET:
        told: dict[str, list[str]] = {}
        for row in rows:
            value = row.first.protocol[key]
            if (row.trains or key in ("encoder", "data")) and value != "none":
                told.setdefault(str(value), []).append(row.label)
        if len(told) > 1:
            parts = "; ".join(f"{value}: {listed(labels)}" for value, labels in told.items())
            notes.append(f"rows differ in {key.replace('_', ' ')} ({parts})")
    return notes


def _options(rows: Sequence[RunsOfARow], tuned: Mapping[str, Any]) -> list[str]:
    """Where rows of one method differ in an option of the study, or any rows in what all share; with folders."""
    notes = []
    recorded = [row for row in rows if row.first.study]
    # options that are tuned within each fold differ from run to run, and have a table of their own
    in_folds = {
        option for of in tuned.values() for part in of["parts"] if part["fold"] is not None for option in _tried(part)
    }
    own = {_recorded(key) for key in in_folds}.union(*(of_a_run(row.first) for row in recorded))
    for key in sorted({key for row in recorded for key in row.first.study} - {*own, *BUDGET_OPTIONS}):
        values = {row.label: json.dumps(row.first.study.get(key, "default")).strip('"') for row in recorded}
        methods = {(row.first.protocol["method"], values[row.label]) for row in recorded}
        several = {method for method, number in Counter(method for method, _ in methods).items() if number > 1}
        if key.startswith("method."):  # an option of one method says nothing of the others, which do not have it
            compared = [row for row in recorded if row.first.protocol["method"] in several]
        else:
            compared = [row for row in recorded if several or (row.trains and key.startswith(EQUAL_FOR_ALL))]
        told: dict[str, list[str]] = {}
        for row in compared:
            folders = listed([str(run.folder) for run in row.runs], most=3)
            told.setdefault(values[row.label], []).append(f"{row.label} in {folders}")
        if len(told) > 1:
            parts = "; ".join(f"{value}: {listed(labels)}" for value, labels in told.items())
            # what rows of one method are for, and not a fault of the comparison
            differ = "rows of one method differ" if key.startswith("method.") else "rows differ"
            notes.append(f"{differ} in {key.replace('.init_args', '')} ({parts})")
    return notes


def _tried(part: Mapping[str, Any]) -> set[str]:
    return {key for trial in part["trials"] for key in trial["options"]}


def _recorded(key: str) -> str:
    """Return the key under which a run records an option of a command line: `method.mu` is `method.init_args.mu`."""
    group, _, name = key.rpartition(".")
    return f"{group}.init_args.{name}" if group in ("method", "data") or group.startswith("model.") else key


def _other_bins(rows: Sequence[RunsOfARow]) -> list[str]:
    """Which rows have no calibration errors, as those of an older version are not comparable."""
    labels = [row.label for row in rows if not all(has_present_bins(run.summary) for run in row.runs)]
    if not labels:
        return []
    return [
        f"calibration errors are left out of {listed(labels)}: an older version computed them in other bins; run it "
        f"again to have them"
    ]


def _not_evaluated(rows: Sequence[RunsOfARow]) -> list[str]:
    """Which runs have no numbers of a site, because it could not be evaluated."""
    missing = [(row, run, run.summary["personal"].get("not_evaluated")) for row in rows for run in row.runs]
    return [
        f"{row.label}, {run.words}: {listed(sites)} could not be evaluated, and is in no mean of this run"
        for row, run, sites in missing
        if sites
    ]


def _last_digits(rows: Sequence[RunsOfARow]) -> list[str]:
    """Where runs differ in options that change last digits, within rows and between them."""
    notes = []
    for key in sorted({key for row in rows for run in row.runs for key in run.last_digits}):
        told: dict[str, list[str]] = {}
        for row in rows:
            values = [str(run.last_digits.get(key, "default")) for run in row.runs]
            for run, value in zip(row.runs, values, strict=True):
                label = row.label if len(set(values)) == 1 else f"{row.label}, {run.words}"
                if label not in told.setdefault(value, []):
                    told[value].append(label)
        if len(told) > 1:
            parts = "; ".join(f"{value}: {listed(labels)}" for value, labels in told.items())
            notes.append(f"runs differ in {key}, which changes the last digits of results ({parts})")
    return notes
