"""From folders of runs, or of comparisons, to rows of one table."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pfedst.errors import ConfigurationError, StateError, listed, nearest
from pfedst.reporting.best_round import RoundChoice, at_best_round
from pfedst.reporting.claims import Claim
from pfedst.reporting.comparison import Compared, FinishedRun, RunsOfARow
from pfedst.reporting.earlier_formats import in_parts, in_present_bins, present_summary
from pfedst.reporting.row_differences import check_same, notes_on_rows
from pfedst.reporting.rows import free_label, labelled
from pfedst.reporting.run_folder import RunFolder

FILE = "comparison.json"
FORMAT = 1


def load_compared(
    paths: Sequence[Path], reference: str | None = None, round_choice: RoundChoice | None = None
) -> Compared:
    """What lies in folders of runs, or of comparisons.

    Args:
        paths: folders.
        reference: a label; by default the comparison's own, or else PFedST, or else the first row.
        round_choice: the round of each run that is reported; by default that of the comparisons, or else the last.

    Raises:
        ConfigurationError: no run, a folder that is none, or runs that cannot stand in one table.
        StateError: a damaged file.
    """
    plans = {path: _read(path / FILE) for path in paths}
    comparisons = {path: plan for path, plan in plans.items() if plan is not None}
    choice = round_choice or _proposed_round(comparisons.values())
    rows: dict[str, list[FinishedRun]] = {}
    tuned: dict[str, Any] = {}
    notes = [note for path, plan in comparisons.items() for note in _add_rows(path, plan, choice, rows, tuned)]
    single = [_at_round(path, RunFolder(path).finished(), choice) for path in plans if path not in comparisons]
    for label, runs in labelled(single, rows).items():
        rows.setdefault(label, []).extend(runs)
    made = tuple(
        RunsOfARow(label, tuple(sorted(runs, key=lambda run: (run.seed, run.part or ()))))
        for label, runs in rows.items()
        if runs
    )
    if not made:
        raise ConfigurationError(f"no finished run in {listed(paths)}: nothing to report")
    check_same(made)
    labels = [row.label for row in made]
    proposed = next((plan["reference"] for plan in comparisons.values()), None)
    chosen = reference or (proposed if proposed in labels else "PFedST" if "PFedST" in labels else labels[0])
    if chosen not in labels:
        raise ConfigurationError(
            f"--reference {chosen}: there is no such row.{nearest(chosen, labels)} {listed(labels)}"
        )
    told = (*notes_on_rows(made, tuned), *notes)
    last = next(reversed(comparisons.values()), None)
    name, tuning = (made[0].first.folder.name, None) if last is None else (last["name"], last["tuning"])
    claims = next((plan["claims"] for plan in comparisons.values() if plan.get("claims")), ())
    planned = next((plan["parts"] for plan in comparisons.values() if plan.get("parts")), 0)
    return Compared(name, made, chosen, told, tuned, tuning, tuple(map(Claim.from_json, claims)), planned)


def _add_rows(
    path: Path,
    plan: Mapping[str, Any],
    choice: RoundChoice,
    rows: dict[str, list[FinishedRun]],
    tuned: dict[str, Any],
) -> Iterator[str]:
    """Add the finished runs of a comparison to rows by label, and what it tuned; yield notes on what is missing."""
    for row in plan["rows"]:
        found, missing = _runs_of(path, row["runs"], choice)
        label = free_label(row["label"], found, rows, path.name)
        rows.setdefault(label, []).extend(found)
        yield from (f"{label}, seed {seed}: missing, as it failed or is not done" for seed in missing)
        if not row["runs"]:
            yield f"{label}: missing, as all of its trials failed"
        if row["tuned"]:
            tuned[label] = in_parts(row["tuned"])
            yield from (
                f"{label}, split seed {part['split_seed']}, fold {part['fold']}: missing, as all trials failed"
                for part in tuned[label]["parts"]
                if part["chosen"] is None and part["fold"] is not None
            )


def _proposed_round(plans: Iterable[Mapping[str, Any]]) -> RoundChoice:
    """Return the round that all comparisons report, or the last one."""
    proposed = {plan.get("round", "last") for plan in plans}
    return "best" if proposed == {"best"} else "last"


def _runs_of(path: Path, names: Mapping[str, str], choice: RoundChoice) -> tuple[list[FinishedRun], list[str]]:
    found, missing = [], []
    for seed, run in names.items():
        folder = path / "runs" / run
        summary = RunFolder(folder).summary()
        if summary is None:
            missing.append(seed)
        else:
            found.append(_at_round(folder, summary, choice))
    return found, missing


def _at_round(path: Path, summary: Mapping[str, Any], choice: RoundChoice) -> FinishedRun:
    """Return the run in a folder, at its last or its best round."""
    present = present_summary(summary, path / "summary.json")
    return FinishedRun(path, in_present_bins(at_best_round(present, path) if choice == "best" else present))


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
