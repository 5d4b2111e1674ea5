"""The table of a site that has joined a finished run, and what a reader must know before the model is used."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pfedst.evaluation.stated import BALANCED, SITE
from pfedst.reporting.report_table import Cell, ReportTable, percent

GENERIC, AT_SITE, TRAINED = "generic", "generic + prior of the site", "trained at the site"
METRICS = ("balanced_accuracy", "accuracy", "macro_f1", "auroc", "nll")
HEADINGS = ("balanced accuracy, balanced prior", "accuracy", "macro F1", "AUROC", "NLL")
SPLITS = ("validation", "test")

TRAINED_PARTS = {"personal": "its personal tensors", "copy": "a copy of the merged model"}

Values = dict[str, float | None]


def join_rows(generic: Mapping[str, Any], trained: Mapping[str, Any]) -> dict[str, Values]:
    """Return the numbers of the three rows on one split.

    Args:
        generic: `metrics` and `at_priors` of the generic model at the site.
        trained: the same of the model that the site trained.
    """
    found = {GENERIC: _values(generic, False), AT_SITE: _values(generic, True), TRAINED: _values(trained, True)}
    found[AT_SITE]["auroc"] = None  # computed without a shift
    return found


def _values(model: Mapping[str, Any], at_site: bool) -> Values:
    """Return the metrics of a model; all but two at the prior of the site, or as its logits are."""
    metrics, at_priors = model["metrics"], model["at_priors"]
    rest: Mapping[str, Any] = at_priors.get(SITE, {}) if at_site else metrics
    return {
        "balanced_accuracy": at_priors.get(BALANCED, {}).get("balanced_accuracy"),
        "accuracy": rest.get("accuracy"),
        "macro_f1": rest.get("macro_f1"),
        "auroc": metrics.get("auroc"),
        "nll": rest.get("nll"),
    }


def join_tables(summary: Mapping[str, Any]) -> list[ReportTable]:
    """Return a table for validation, and one for test if the site has test images."""
    joined, protocol = summary["joined"], summary["protocol"]
    sizes, tables = protocol["samples"][joined["site"]], []
    for split in (split for split in SPLITS if sizes[split]):
        rows = []
        for label, values in joined["rows"][split].items():
            kept = label == (TRAINED if joined["joined"] else AT_SITE)
            texts = [("-" if v is None else f"{v:.3f}") if m == "nll" else percent(v) for m, v in values.items()]
            rows.append((Cell(f"{label} (kept)" if kept else label), *map(Cell, texts)))
        title = f"{joined['site']} on {split}, {sizes[split]} images"
        tables.append(ReportTable(f"join-{split}", title, "", ("model", *HEADINGS), tuple(rows)))
    return tables


def joined_when(joined: Mapping[str, Any]) -> str:
    """Return the moment of an evaluation in words, for the protocol; `joined`: as in the identity of the folder."""
    if not joined["joined"]:
        return "after joining a finished run: the site keeps the generic model"
    return f"after joining a finished run: the site has trained {TRAINED_PARTS[joined['trained']]}"


def join_text(summary: Mapping[str, Any]) -> str:
    """Return in words what was decided, and why."""
    joined = summary["joined"]
    what = TRAINED_PARTS[joined["trained"]]
    if not joined["losses"]:
        decision = f"{joined['site']} has joined: {what}, {joined['passes']} passes; validation did not select."
    else:
        at = "at the prior of the site" if joined["prior"] else "of logits as they are"
        gain = f"{joined['gain']:.3f} (standard error {joined['standard_error']:.3f}) of {joined['losses'][0]:.3f}"
        tried = len(joined["losses"]) - 1
        verdict = (
            f"has joined: {what}, {joined['passes']} of {tried} passes"
            if joined["joined"]
            else f"has NOT joined: in {tried} passes, training {what} was not better by more than chance. The folder "
            f"holds the generic model; use it with the prior of the site"
        )
        decision = f"{joined['site']} {verdict}. Gain in mean loss on validation, {at}: {gain}."
    note = "Accuracy, macro F1 and NLL are at the prior of the site; those of the first row are of logits as they are."
    return "\n".join([decision, *(f"warning: {line}" for line in joined["warnings"]), note])


def few_labels(labels: int, passes: int) -> str:
    """Return the warning that validation could not select."""
    return (
        f"{labels} labelled images (train and validation) are too few to compare models: the site was trained for "
        f"{passes} passes without selection, and the result may be worse than the generic model with the prior of the "
        f"site; label more images"
    )


def lost_balance(rows: Mapping[str, Mapping[str, Values]], images: int) -> list[str]:
    """Return a warning if the trained model is below the generic one in balanced accuracy on validation."""
    before, after = (rows["validation"][row]["balanced_accuracy"] for row in (GENERIC, TRAINED))
    if before is None or after is None or after >= before:
        return []
    return [
        f"balanced accuracy on validation is {100 * (before - after):.1f} points below that of the generic model "
        f"({images} images): rare classes may be predicted worse"
    ]
