"""The table of options that were tuned: what was tried and chosen on validation, and what lies at an edge."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from statistics import fmean
from typing import Any

from pfedst.errors import listed
from pfedst.reporting.comparison import Compared
from pfedst.reporting.report_table import Cell, ReportTable, percent


def tuning_table(compared: Compared) -> ReportTable | None:
    """Table of the options that were chosen, in each fold if there are folds; None without tuning."""
    if not compared.tuned or compared.tuning is None:
        return None
    rows = []
    for label, tuned in compared.tuned.items():
        parts = tuned["parts"]
        chosen = Counter(_text(part["chosen"]) for part in parts if part["chosen"] is not None)
        scores: dict[str, list[float]] = {}
        for part in parts:
            for trial in part["trials"]:
                found = scores.setdefault(_text(trial["options"]), [])
                found += [] if trial["validation"] is None else [trial["validation"]]
        tried = ", ".join(f"{text}: {percent(fmean(of) if of else None)}" for text, of in scores.items())
        counts = ", ".join(
            text if compared.folds is None else f"{text}: {number} of {len(parts)}" for text, number in chosen.items()
        )
        rows.append((Cell(label), Cell(counts or "-"), Cell(tried), Cell(_edges(tuned["edges"]))))
    metric = compared.tuning["metric"]
    if compared.folds is None:
        seeds = ", ".join(str(seed) for seed in compared.tuning["seeds"])
        how = f"Options chosen by {metric}, %, of the personal model, with separate seeds ({seeds}). Test was not used."
    else:
        how = (
            f"Options chosen within each fold by {metric}, of the personal model, and how often; mean validation of "
            f"each trial over folds, %. A trial is run with the seeds of its fold, and the runs of the chosen trial "
            f"are those of the tables: test is reported and was not used."
        )
    caption = (
        f"{how} Every listed row had the same number of trials, the other rows none. At an edge: a best value is at an "
        f"edge of the grid, with possible values beyond it."
    )
    headings = ("row", "chosen", "tried", "at an edge")
    return ReportTable("tuning", "Tuned on validation", caption, headings, tuple(rows))


def _edges(edges: list[list[str]] | None) -> str:
    if edges is None:  # pfedst up to 0.2.0 looked for them only with folds
        return "not recorded"
    return listed([f"{key.split('.')[-1]} {side}est" for key, side in edges], most=20) or "-"


def _text(options: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{key.split('.')[-1]} {value:g}" if isinstance(value, float) else f"{key.split('.')[-1]} {value}"
        for key, value in options.items()
    )
