"""The table of metrics at stated class priors, with the derived row of a global model at the prior of each site."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pfedst.evaluation.stated import BALANCED, FEDERATION, OF_A_HOSPITAL, REASON, SITE
from pfedst.reporting.claims import OWN_PRIOR
from pfedst.reporting.report_table import Cell, ReportTable, marked, mean_cell, percent

BALANCED_ACCURACY = "balanced_accuracy"
IN_PERCENT = ("accuracy", "macro_f1", "ece")
HEADINGS = {"accuracy": "accuracy", "macro_f1": "macro F1", "ece": "ECE", "nll": "NLL", "brier": "Brier"}
HIGHER_IS_BETTER = ("accuracy", "macro_f1")

Summary = Mapping[str, Any]


@dataclass(frozen=True)
class _Row:
    """One row.

    Attributes:
        label: its label.
        summaries: of its runs.
        prior: the prior of all columns but balanced accuracy.
        derived_from: label of the row that has the same model at another prior; empty for a row of its own.
    """

    label: str
    summaries: Sequence[Summary]
    prior: str
    derived_from: str = ""

    @property
    def is_pooled(self) -> bool:
        return bool(self.summaries[0]["protocol"]["pooled"])

    def values(self, prior: str, metric: str) -> list[float]:
        """Return the mean over sites of each run for which it is defined."""
        found = [_stated(summary).get(prior, {}).get("mean", {}).get(metric) for summary in self.summaries]
        return [value for value in found if value is not None]

    @property
    def reason(self) -> str:
        """Why there are no numbers; empty if there are."""
        clients = [_stated(s).get(at, {}).get("clients", {}) for s in self.summaries for at in (BALANCED, self.prior)]
        found = {str(table[REASON]) for of_run in clients for table in of_run.values() if REASON in table}
        return ", ".join(sorted(found))


def stated_table(rows: Sequence[tuple[str, Sequence[Summary]]]) -> ReportTable | None:
    """Table of rows by metrics, each at the class prior that its column or its row names.

    A global model (one for all sites, that trains, and not on pooled images) has two rows: at the prior of the
    federation, and derived from it, with the prior of each site. The derived row is a personal model of K numbers a
    site, without any training.

    Args:
        rows: label and summaries of the runs, one a seed.

    Returns:
        The table; None if no row has such a number.
    """
    made = [row for label, summaries in rows for row in _rows_of(label, summaries)]
    known = [row.values(row.prior, metric) for row in made for metric in OF_A_HOSPITAL]
    if not any([*known, *(row.values(BALANCED, BALANCED_ACCURACY) for row in made)]):
        return None
    first = [mean_cell(row.values(BALANCED, BALANCED_ACCURACY), percent) for row in made]
    first = marked(first, True, [not row.derived_from and not row.is_pooled for row in made])
    first = [
        Cell(f"= {row.derived_from}", cell.value, cell.spread) if row.derived_from and cell.value is not None else cell
        for row, cell in zip(made, first, strict=True)
    ]
    # numbers at different priors are not compared
    ranked = [row.prior == SITE and not row.is_pooled for row in made]
    columns = [
        marked(
            [mean_cell(row.values(row.prior, metric), percent if metric in IN_PERCENT else _number) for row in made],
            metric in HIGHER_IS_BETTER,
            ranked,
        )
        for metric in OF_A_HOSPITAL
    ]
    cells = zip(made, first, *columns, strict=True)
    return ReportTable(
        "priors",
        "At stated class priors",
        _caption(made),
        ("row", "balanced accuracy, balanced prior", "prior of the others", *(HEADINGS[m] for m in OF_A_HOSPITAL)),
        tuple((Cell(row.label), balanced, Cell(row.prior), *others) for row, balanced, *others in cells),
    )


def _rows_of(label: str, summaries: Sequence[Summary]) -> list[_Row]:
    protocol = summaries[0]["protocol"]
    if not _is_global(protocol):
        return [_Row(label, summaries, SITE)]
    rows = [_Row(label, summaries, FEDERATION)]
    if protocol["rounds"] and not protocol["pooled"]:
        rows.append(_Row(label + OWN_PRIOR, summaries, SITE, label))
    return rows


def _is_global(protocol: Mapping[str, Any]) -> bool:
    """Return True if all sites predict with one model: by the method, and by the options that every method has."""
    options = protocol["method_options"]
    personal = options.get("finetune_epochs", 0) > 0 or options.get("norm_statistics") == "private"
    return not protocol.get("personalises", True) and not personal


def _stated(summary: Summary) -> Mapping[str, Any]:
    """Return the metrics of the personal model at stated priors; empty for older versions."""
    last = summary.get("at_priors", {}).get("last", {})
    found: Mapping[str, Any] = last.get(summary["protocol"]["split"], {}).get("personal", {})
    return found


def _caption(rows: Sequence[_Row]) -> str:
    split = rows[0].summaries[0]["protocol"]["split"]
    sentences = [
        f"Personal model on {split}, means over sites; %, except NLL (nats) and Brier scores (0 to 2).",
        "The numbers of a row are of one model, with logits shifted to a prior. Balanced: equal class frequencies. "
        "Site: the class frequencies of the training split of each site. Federation: their mean over sites. Rows at "
        "different priors are not compared.",
    ]
    if derived := [row for row in rows if row.derived_from]:
        sentences.append(
            f"{derived[0].label}: the model of {derived[0].derived_from}, shifted to the frequencies of each site: a "
            f"personal model with one number per class and no training. A method that personalises should be better."
        )
    if any(row.prior == FEDERATION and not row.values(FEDERATION, "accuracy") for row in rows):
        sentences.append("The prior of the federation is known only if sites share class counts.")
    for row in rows:
        if row.reason and not row.derived_from:
            which = "" if not row.values(BALANCED, BALANCED_ACCURACY) else " at the prior of some sites"
            sentences.append(f"{row.label}: no numbers{which}, as {row.reason}.")
    return " ".join(sentences)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
