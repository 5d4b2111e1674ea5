"""From folders of runs, or of comparisons, to rows of one table."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pfedst.errors import ConfigurationError, StateError, listed, nearest
from pfedst.reporting.comparison import Compared, FinishedRun, RunsOfARow
from pfedst.reporting.run_folder import RunFolder
from pfedst.reporting.summary import FORMAT as SUMMARY_FORMAT

FILE = "comparison.json"
FORMAT = 1
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
OF_A_RUN = ("seed", "threads", "data_audit", "round")
"""What runs of one row may differ in."""


def load_compared(paths: Sequence[Path], reference: str | None = None) -> Compared:
    """What lies in folders of runs, or of comparisons.

    Args:
        paths: folders.
        reference: a label; by default the comparison's own, or else PFedST, or else the first row.

    Raises:
        ConfigurationError: no run, a folder that is none, or runs that cannot stand in one table.
        StateError: a damaged file.
    """
    rows: dict[str, list[FinishedRun]] = {}
    notes: list[str] = []
    tuned: dict[str, Any] = {}
    tuning, proposed, name = None, None, ""
    single: list[FinishedRun] = []
    for path in paths:
        asked = _read(path / FILE)
        if asked is None:
            single.append(_single(path))
            continue
        name, tuning, proposed = asked["name"], asked["tuning"], proposed or asked["reference"]
        for row in asked["rows"]:
            found, missing = _runs_of(path, row["runs"])
            rows.setdefault(row["label"], []).extend(found)
            notes += [f"{row['label']}, seed {seed}: missing, as it failed or is not done" for seed in missing]
            if not row["runs"]:
                notes.append(f"{row['label']}: missing, as all of its trials failed")
            if row["tuned"]:
                tuned[row["label"]] = row["tuned"]
    for label, runs in _labelled(single).items():
        rows.setdefault(label, []).extend(runs)
    made = tuple(
        RunsOfARow(label, tuple(sorted(runs, key=lambda run: run.seed))) for label, runs in rows.items() if runs
    )
    if not made:
        raise ConfigurationError(f"no finished run in {listed(paths)}: nothing to report")
    _check_same(made)
    labels = [row.label for row in made]
    chosen = reference or (proposed if proposed in labels else "PFedST" if "PFedST" in labels else labels[0])
    if chosen not in labels:
        raise ConfigurationError(
            f"--reference {chosen}: there is no such row.{nearest(chosen, labels)} {listed(labels)}"
        )
    return Compared(name or made[0].first.folder.name, made, chosen, (*_differences(made), *notes), tuned, tuning)


def _runs_of(path: Path, names: Mapping[str, str]) -> tuple[list[FinishedRun], list[str]]:
    found, missing = [], []
    for seed, run in names.items():
        finished = _finished(path / "runs" / run)
        if finished is None:
            missing.append(seed)
        else:
            found.append(finished)
    return found, missing


def _single(path: Path) -> FinishedRun:
    if not path.is_dir():
        raise ConfigurationError(f"{path}: no folder; give the folders of finished runs, or of a comparison")
    run = _finished(path)
    if run is None:
        raise ConfigurationError(f"{path} holds no summary.json: no run, or one that is not finished")
    return run


def _finished(path: Path) -> FinishedRun | None:
    """The run in a folder; None where it has no summary yet."""
    summary = RunFolder(path).summary()
    if summary is None:
        return None
    if summary.get("format") != SUMMARY_FORMAT:
        raise StateError(f"{path / 'summary.json'} is of another version of pfedst; run it again, under another name")
    return FinishedRun(path, summary)


def _read(file: Path) -> dict[str, Any] | None:
    try:
        content: dict[str, Any] = json.loads(file.read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise StateError(f"{file} is damaged ({error}); run pfedst compare again, finished runs are kept") from error
    if content.get("format") != FORMAT:
        raise StateError(f"{file} is of another version of pfedst (format {content.get('format')}, this is {FORMAT})")
    return content


def _labelled(runs: Sequence[FinishedRun]) -> dict[str, list[FinishedRun]]:
    """Runs whose protocols differ in their seed alone are a row; rows of one method are told apart by the rest."""
    groups: dict[str, list[FinishedRun]] = {}
    for run in runs:
        kept = {key: value for key, value in run.protocol.items() if key not in OF_A_RUN}
        groups.setdefault(json.dumps(kept, sort_keys=True), []).append(run)
    flat = {key: dotted(json.loads(key)) for key in groups}
    labelled: dict[str, list[FinishedRun]] = {}
    for key, of_row in groups.items():
        method = flat[key]["method"]
        rivals = [other for other in flat.values() if other["method"] == method]
        apart = sorted(name for name in flat[key] if any(other.get(name) != flat[key][name] for other in rivals))
        told = ", ".join(f"{name.split('.')[-1]} {flat[key][name]}" for name in apart)
        labelled[f"{method}, {told}" if told else method] = of_row
    return labelled


def dotted(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A tree of JSON or YAML with one key a leaf, such as `protocol.optimizer.lr`; an empty table is a leaf."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            found |= dotted(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


def _check_same(rows: Sequence[RunsOfARow]) -> None:
    first = rows[0].first
    for row in rows:
        seeds = [run.seed for run in row.runs]
        if len(set(seeds)) < len(seeds):
            raise ConfigurationError(f"{row.label}: two runs have the same seed ({listed(seeds)}); give one of them")
        for run in row.runs:
            for key in SAME:
                if run.protocol[key] != first.protocol[key]:
                    raise ConfigurationError(
                        f"{run.folder} and {first.folder} cannot stand in one table: they differ in {key}"
                    )


def _differences(rows: Sequence[RunsOfARow]) -> list[str]:
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
