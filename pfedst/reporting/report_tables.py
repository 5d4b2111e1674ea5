"""The tables of a report: results of each row at each site, cost, and tests of differences."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any

from pfedst.errors import counted
from pfedst.evaluation.averages import CLASS_METRICS
from pfedst.evaluation.bootstrap import FEWEST_UNITS
from pfedst.evaluation.statistics import LEVEL, Difference, differences_to, fewest_differences
from pfedst.reporting.by_class import classes_at_sites, shown_run, units_text
from pfedst.reporting.comparison import Compared, FinishedRun, OverSites, RunsOfARow
from pfedst.reporting.report_table import (
    Cell,
    ReportTable,
    interval_cell,
    marked,
    mean_cell,
    p_cell,
    percent,
    points_cell,
)
from pfedst.reporting.run_warnings import warning_text
from pfedst.reporting.tables import HEADINGS, bytes_text, metric_title, metric_words

Values = Callable[[RunsOfARow], Sequence[float]]
"""Function of a row that returns one value per seed."""
Column = tuple[str, Values, bool | None]
"""Heading, values of a row, and True if higher is better (None if neither is)."""
WARNINGS = {
    "one_class": "one class only",
    "below_start": "below its start",
    "start_is_best": "no round is better than the start",
}
"""Headings of warnings."""
SEEDS = "Mean over {} seeds ± their standard deviation (n - 1)."
ONE_SEED = "One seed: no deviation, and no claim."


def results_table(compared: Compared, metric: str) -> ReportTable:
    """Table of rows by sites for the personal model, with the columns of a summary and the generic model."""
    columns: list[Column] = [(_heading(compared, site), _of("personal", site, metric), True) for site in compared.sites]
    columns += [
        ("mean", _of("personal", OverSites.MEAN, metric), True),
        ("weighted mean", _of("personal", OverSites.WEIGHTED_MEAN, metric), True),
        ("worst site", _of("personal", OverSites.WORST, metric), True),
        ("std over sites", _of("personal", OverSites.STD, metric), None),
        ("generic mean", _of("generic", OverSites.MEAN, metric), True),
        ("generic worst", _of("generic", OverSites.WORST, metric), True),
    ]
    if compared.held_out:
        columns.append(("mean of held out", _of("personal", OverSites.HELD_OUT_MEAN, metric), True))
    caption = (
        f"{metric_title(metric)}, %, of the personal model on {compared.protocol['split']} (images in brackets), "
        f"{compared.protocol['when']}, {compared.round_words}. {_over_seeds(compared)} Mean, worst and std over sites "
        f"are taken in each run. Generic: personal tensors at their start, the model for a hospital that joins."
        f"{_held_out(compared)}{_pooled(compared)}"
    )
    return _table("results", f"{metric_title(metric)} by site", caption, compared, columns, percent)


def metrics_table(compared: Compared, metric: str) -> ReportTable:
    """Table of the other metrics: mean over sites and worst site."""
    there = compared.rows[0].first.summary["personal"]["mean"]
    others = [name for name in HEADINGS if name in there and name != metric]
    columns = [
        (f"{HEADINGS[name]}, {heading}", _of("personal", column, name), True)
        for name in others
        for column, heading in ((OverSites.MEAN, "mean"), (OverSites.WORST, "worst site"))
    ]
    caption = (
        f"Personal model on {compared.protocol['split']}, %, over the classes that are present at a site. "
        f"{_over_seeds(compared)}"
    )
    return _table("metrics", "Other metrics", caption, compared, columns, percent)


def classes_table(compared: Compared) -> ReportTable | None:
    """Table of sensitivity, specificity and average precision of each class at each site, with intervals.

    None if the run of the reference has no such numbers.
    """
    run = shown_run(compared)
    if run is None:
        return None
    rows = []
    for found in classes_at_sites(run, compared.classes, compared.sites):
        cells = [Cell(found.site), Cell(found.name), _counted(found.images), _counted(found.units)]
        for estimate in found.estimates.values():
            ends = " to ".join(percent(end) for end in estimate.interval or ())
            cells += [Cell(percent(estimate.value), estimate.value), Cell(ends or f"- ({estimate.reason})")]
        rows.append(tuple(cells))
    headings = [text for metric in CLASS_METRICS for text in (metric_words(metric), f"{metric_words(metric)}, 95 %")]
    caption = (
        f"Each class against the others at a site, %, personal model of {compared.reference} with {run.words} on "
        f"{run.protocol['split']}, {run.protocol['when']}. The prediction is the class with the highest probability. "
        f"Average precision: for a random order it is the share of the class. Units: patients or lesions, or images "
        f"where these are not known. {units_text(run, compared.sites)} No interval if fewer than {FEWEST_UNITS} units "
        f"have an image that the number depends on, or if all resamples agree. summary.json has these for each run."
    )
    return ReportTable(
        "classes", "Sensitivity, specificity and average precision by class", caption,
        ("site", "class", "images", "units", *headings), tuple(rows),
    )  # fmt: skip


def warnings_table(compared: Compared) -> ReportTable | None:
    """Table of the warnings about models, by row and site; None if there are none."""
    found: dict[tuple[str, str, str], list[tuple[int, Mapping[str, Any]]]] = {}
    for row in compared.rows:
        for run in row.runs:
            for warning in run.warnings or ():
                site = "mean over sites" if warning["site"] is None else warning["site"]
                found.setdefault((row.label, site, warning["what"]), []).append((run.seed, warning))
    if not found:
        return None
    rows = []
    for (label, site, what), seeds in found.items():
        seed, worst = max(seeds, key=lambda pair: (pair[1].get("start") or 0) - (pair[1].get("now") or 0))
        numbers = ", ".join(str(number) for number, _ in seeds)
        rows.append(
            (Cell(label), Cell(site), Cell(WARNINGS[what]), Cell(numbers), Cell(f"seed {seed}: {warning_text(worst)}"))
        )
    unknown = [row.label for row in compared.rows if any(run.warnings is None for run in row.runs)]
    caption = (
        "Personal models that predict one class only, or that are below their start (round 0) in balanced accuracy; on "
        "validation, or on test at a site without validation images. In words: the largest difference of any seed."
        + (f" Not recorded by an older version: {', '.join(unknown)}." if unknown else "")
    )
    return ReportTable(
        "warnings", "Models to look at", caption, ("row", "site", "warning", "seeds", "in words"), tuple(rows)
    )


def calibration_table(compared: Compared) -> ReportTable:
    """Table of expected calibration errors."""
    columns = [
        (f"{heading}, {model} {column.value}", _of(model, column, name), False)
        for name, heading in (("ece", "ECE"), ("classwise_ece", "classwise ECE"))
        for model, column in (("personal", OverSites.MEAN), ("personal", OverSites.WORST), ("generic", OverSites.MEAN))
    ]
    caption = (
        f"Calibration errors on {compared.protocol['split']}, %, 15 bins, lower is better; worst: the highest of any "
        f"site. {_over_seeds(compared)}"
    )
    return _table("calibration", "Calibration", caption, compared, columns, percent)


def recall_table(compared: Compared) -> ReportTable:
    """Table of the recall of each class over the images of all sites."""
    first = compared.rows[0].confusions[0]
    there = [index for index in range(len(compared.classes)) if sum(first[index])]
    columns: list[Column] = [
        (f"{compared.classes[index]} ({sum(first[index])})", _recall([index]), True) for index in there
    ]
    columns.append(("mean of classes", _recall(there), True))
    caption = (
        f"Share of the images of a class that are predicted right, %, over all sites together (images in brackets); "
        f"personal model on {compared.protocol['split']}. In a mean over sites a site with few images of a class has "
        f"the same weight as others; here every image has the same weight. {_over_seeds(compared)}"
    )
    return _table("recall", "Recall by class", caption, compared, columns, percent)


def cost_table(compared: Compared) -> ReportTable:
    """Table of the cost of each row."""
    costs: list[tuple[str, Callable[[FinishedRun], float | None], Callable[[float], str]]] = [
        ("trained a client", lambda run: run.cost["parameters_trained"], _count),
        ("sent a client and round", lambda run: run.cost["parameters_sent"], _count),
        ("up before round 1", lambda run: run.cost["setup_upload_bytes"], bytes_text),
        ("up a round", lambda run: run.cost["upload_bytes_per_round"], bytes_text),
        ("down a round", lambda run: run.cost["download_bytes_per_round"], bytes_text),
        ("bytes in all", lambda run: run.total_bytes, bytes_text),
        ("GFLOP an image", lambda run: _scaled(run.cost["flops_per_image"], 1e9), _three_digits),
        ("TFLOP in all", lambda run: _scaled(run.total_flops, 1e12), _three_digits),
        ("peak memory", lambda run: run.cost["peak_memory_bytes"], bytes_text),
        ("seconds of fits", lambda run: run.cost["fit_seconds"], _count),
        ("seconds in all", lambda run: run.cost["total_seconds"], _count),
    ]
    rows = []
    for row in compared.rows:
        cells = [Cell(row.label)]
        for _, cost, text in costs:
            found = [value for run in row.runs if (value := cost(run)) is not None]
            cells.append(Cell(text(fmean(found)), fmean(found)) if found else Cell("-"))
        rows.append(tuple(cells))
    caption = (
        "Numbers of parameters; bytes of the messages of all clients, in all with class prototypes; FLOPs of forward "
        "and backward passes of training (matrix products, convolutions, attention; a multiply-add counts as two), "
        "without those that a tap cache saves; peak memory of the process; seconds on this machine, for a resumed run "
        "since it was resumed. Means over seeds."
    )
    return ReportTable("cost", "Cost", caption, ("row", *(heading for heading, _, _ in costs)), tuple(rows))


def tests_table(compared: Compared, metric: str, found: Mapping[str, Difference]) -> ReportTable:
    """Table of every row against the reference, from the result of `differences`."""
    enough = {label: may_claim(compared, found, difference) for label, difference in found.items()}
    rows = tuple((Cell(label), *_difference_cells(difference, enough[label])) for label, difference in found.items())
    caption = (
        f"Each row minus {compared.reference}: {metric_words(metric)} of the personal model on "
        f"{compared.protocol['split']}, in points, over pairs of (site, seed). Interval: 95 % bootstrap over seeds, on "
        f"these sites and images, if there are enough seeds for a claim; with ten seeds it covers about 91 %. Effect: "
        f"matched-pairs rank-biserial correlation in [-1, 1]. p: exact two-sided Wilcoxon signed-rank tests with "
        f"Holm's correction over {counted(len(found), 'row')}: over pairs, where p is too small because the sites of "
        f"a seed share their training, and over seeds. A claim needs both below {LEVEL:g}. Positive: the row is higher."
    )
    headings = ("row", "difference", "interval", "effect", "pairs", "seeds", "p, pairs", "p, seeds", "claim")
    return ReportTable("tests", f"Against {compared.reference}", caption, headings, rows)


def may_claim(compared: Compared, found: Mapping[str, Difference], difference: Difference) -> bool:
    """Return True if a difference to the reference has seeds enough for a claim, and its numbers are results."""
    return difference.seeds >= fewest_differences(len(found)) and not compared.is_demonstration


def is_claimed(compared: Compared, found: Mapping[str, Difference], difference: Difference) -> bool:
    """Return True if a difference to the reference can be claimed."""
    return difference.significant and may_claim(compared, found, difference)


def differences(compared: Compared, metric: str) -> dict[str, Difference]:
    """Compare every row with the reference over (site, seed) pairs of the personal model."""
    rows = {row.label: row.by_pair("personal", compared.counted_sites, metric) for row in compared.rows}
    return differences_to(compared.reference, rows)


# -- cells -----------------------------------------------------------------------------------------------------------


def _table(
    name: str,
    title: str,
    caption: str,
    compared: Compared,
    columns: Sequence[Column],
    text: Callable[[float | None], str],
) -> ReportTable:
    """Build a table with one line per row; the best cells of each column are marked."""
    ranked = [not row.pooled for row in compared.rows]
    made = []
    for _, values, higher in columns:
        cells = [mean_cell(values(row), text) for row in compared.rows]
        made.append(cells if higher is None else marked(cells, higher, ranked))
    rows = tuple((Cell(row.label), *cells) for row, *cells in zip(compared.rows, *made, strict=True))
    return ReportTable(name, title, caption, ("row", *(heading for heading, _, _ in columns)), rows)


def _difference_cells(difference: Difference, may_claim: bool) -> list[Cell]:
    effect = Cell("-" if difference.effect is None else f"{difference.effect:+.2f}", difference.effect)
    claim = "none"
    if may_claim and difference.significant and difference.mean is not None:
        claim = "higher" if difference.mean > 0 else "lower"
    return [
        points_cell(difference.mean),
        interval_cell(difference.interval if may_claim else None),
        effect,
        Cell(str(difference.pairs), difference.pairs),
        Cell(str(difference.seeds), difference.seeds),
        p_cell(difference.p_holm),
        p_cell(difference.p_seeds_holm),
        Cell(claim),
    ]


def _counted(count: int) -> Cell:
    return Cell(str(count), count)


def _heading(compared: Compared, site: str) -> str:
    return f"{site} ({compared.test_images(site)}{', held out' if site in compared.held_out else ''})"


def _held_out(compared: Compared) -> str:
    if not compared.held_out:
        return ""
    names = ", ".join(compared.held_out)
    told = f" Held out, and in no other number than its own and the mean of held out: {names}."
    for row in compared.rows:
        if sites := row.first.protocol.get("transductive_sites"):
            told += f" {row.label} is transductive: it trains on images of {', '.join(sites)} without their labels."
    return told


def _of(model: str, column: str | OverSites, metric: str) -> Values:
    return lambda row: row.values(model, column, metric)


def _recall(classes: Sequence[int]) -> Values:
    """Return a function for the mean recall of some classes."""

    def values(row: RunsOfARow) -> list[float]:
        found = [[counts[c][c] / sum(counts[c]) for c in classes if sum(counts[c])] for counts in row.confusions]
        return [fmean(recalls) for recalls in found if recalls]

    return values


def _over_seeds(compared: Compared) -> str:
    if compared.folds is not None:
        return (
            f"Mean over the folds of all repetitions ({compared.runs_text}) ± their standard deviation (n - 1), which "
            f"is no error of the mean: folds share their training images."
        )
    seeds = {len(row.runs) for row in compared.rows}
    return ONE_SEED if seeds == {1} else SEEDS.format(" to ".join(str(n) for n in sorted({min(seeds), max(seeds)})))


def _pooled(compared: Compared) -> str:
    pooled = ", ".join(row.label for row in compared.rows if row.pooled)
    return f" {pooled}: the images of all sites in one place, no part in best and second best." if pooled else ""


def _scaled(value: float | None, unit: float) -> float | None:
    return None if value is None else value / unit


def _count(value: float) -> str:
    return f"{value:,.0f}"


def _three_digits(value: float) -> str:
    return f"{value:.3g}"
