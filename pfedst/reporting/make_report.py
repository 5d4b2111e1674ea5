"""Build a report from finished runs: tables, the protocol of the numbers, and notes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from pfedst.errors import counted, listed
from pfedst.evaluation.statistics import Difference, fewest_differences
from pfedst.reporting import fold_tables
from pfedst.reporting import report_tables as tables
from pfedst.reporting.comparison import Compared
from pfedst.reporting.environment import environment_lines, runs_text
from pfedst.reporting.fold_tables import TestedClaim
from pfedst.reporting.report import Report
from pfedst.reporting.report_table import ReportTable
from pfedst.reporting.stated_table import stated_table
from pfedst.reporting.subgroup_table import subgroup_table
from pfedst.reporting.summary import PRIOR
from pfedst.reporting.temperature_table import temperature_table
from pfedst.reporting.tuning_table import tuning_table

Protocols = Sequence[Mapping[str, Any]]
"""The protocols of all runs of a row."""


def make_report(compared: Compared, metric: str, made_with: Mapping[str, Any] | None = None) -> Report:
    """Build the report. Cells are marked as best only if a difference to the reference can be claimed.

    Args:
        compared: the runs.
        metric: metric by which rows are compared, such as `balanced_accuracy`.
        made_with: the `environment` of this report, to be named in it.
    """
    folds = compared.folds is not None
    differences = {} if folds else tables.differences(compared, metric)
    tested = fold_tables.tested_claims(compared) if folds else []
    made: list[ReportTable | None] = [
        tables.results_table(compared, metric),
        tables.tests_table(compared, metric, differences) if differences else None,
        fold_tables.claims_table(compared, tested) if folds else None,
        fold_tables.differences_table(compared, metric) if folds else None,
        tables.warnings_table(compared),
        tables.metrics_table(compared, metric),
        stated_table([(row.label, [run.summary for run in row.runs]) for row in compared.rows]),
        tables.recall_table(compared),
        subgroup_table(compared),
        tables.classes_table(compared),
        tables.calibration_table(compared),
        temperature_table(compared),
        tables.cost_table(compared),
        tuning_table(compared),
    ]
    found = [table for table in made if table is not None]
    if not any(tables.is_claimed(compared, differences, difference) for difference in differences.values()):
        found = [table.without_marks() for table in found]
    rows, sites = len(compared.rows), len(compared.sites)
    title = f"{compared.name}: {counted(rows, 'row')}, {counted(sites, 'site')}, {compared.runs_text}"
    return Report(
        title,
        (*protocol_lines(compared), *made_lines(compared, made_with)),
        notes(compared, differences, tested),
        tuple(found),
    )


def protocol_lines(compared: Compared) -> tuple[str, ...]:
    """Return the protocol of the row with most rounds. Notes report how other rows differ."""
    protocol = compared.protocol
    batches = "all" if protocol["local_batches"] == "all" else f"at most {protocol['local_batches']}"
    return (
        f"data: {protocol['data']}; {_images(compared)}; classes {', '.join(compared.classes)}",
        f"encoder: {protocol['encoder']}; class anchors: {protocol['anchors']}",
        f"budget of every row that trains: {_rounds(compared)}, {counted(protocol['local_epochs'], 'local epoch')} "
        f"({batches} batches of {protocol['batch_size']} images), participation {protocol['participation']:g}, "
        f"{_of_rows(compared, _optimizer)}, loss {_of_rows(compared, _loss)}, augmentation {protocol['augmentation']}"
        + (f", sampler {protocol['sampler']}" if "sampler" in protocol else ""),
        f"evaluation: {protocol['split']} split, {protocol['when']}, "
        f"{compared.round_words if compared.of_best_rounds else 'last round'}; all clients; personal: "
        f"{protocol['personal']}; generic: {protocol['generic']}",
        *_prior(compared),
        f"seeds: {', '.join(str(seed) for seed in compared.seeds)}{_folds(compared)}; validation selects (tuning), "
        f"test is only reported",
    )


def _rounds(compared: Compared) -> str:
    """Return the number of rounds, or the smallest and the largest one."""
    trained = {row.first.protocol["rounds"] for row in compared.rows if row.trains}
    numbers = sorted(trained or {compared.protocol["rounds"]})
    return counted(numbers[0], "round") if len(numbers) == 1 else f"{numbers[0]} to {numbers[-1]} rounds"


def _images(compared: Compared) -> str:
    samples = compared.protocol["samples"]
    tested = sum(compared.test_images(site) for site in compared.sites)
    if compared.folds is not None:
        return f"{tested:,} images in {compared.folds} folds, of which each in turn is test"
    images = {split: sum(site[split] for site in samples.values()) for split in ("train", "validation")} | {
        "test": tested
    }
    return ", ".join(f"{number:,} {split}" for split, number in images.items()) + " images"


def _folds(compared: Compared) -> str:
    if compared.folds is None:
        return ""
    parts = {run.part for row in compared.rows for run in row.runs}
    partitions = sorted({split_seed for split_seed, _ in filter(None, parts)})
    return f"; partitions into {compared.folds} folds by the split seeds {', '.join(map(str, partitions))}"


def made_lines(compared: Compared, made_with: Mapping[str, Any] | None) -> list[str]:
    """Return with which versions, when, by which command and on which hardware the runs and the report were made."""
    lines = [runs_text([run.environment for row in compared.rows for run in row.runs])]
    return lines if made_with is None else [*lines, f"report: {'; '.join(environment_lines(made_with))}"]


def notes(
    compared: Compared, differences: Mapping[str, Difference], tested: Sequence[TestedClaim] = ()
) -> tuple[str, ...]:
    """Return the notes that a reader must see."""
    found = []
    if any(row.has_random_weights for row in compared.rows):
        found.append(
            "The encoder has RANDOM WEIGHTS: the numbers show that the software works, and nothing can be claimed."
        )
    if any(row.has_synthetic_images for row in compared.rows):
        found.append("The images are SYNTHETIC: the numbers say nothing of medicine, and nothing can be claimed.")
    if differences and not compared.is_demonstration:
        found.append(_claims(compared, differences))
    if compared.folds is not None and not compared.is_demonstration:
        found.append(fold_tables.claims_note(compared, tested))
    if compared.of_best_rounds:
        found.append(
            f"The numbers are of no last round: {compared.round_words}. Validation chose the round, and test is only "
            f"reported; cost is that of whole runs."
        )
    if warned := [row.label for row in compared.rows if any(run.warnings for run in row.runs)]:
        found.append(
            f"Models predict one class only, or are worse than at their start: {listed(warned, ', ', 20)}; see the "
            f"table of models to look at."
        )
    left_out = {
        f"{row.label}, {run.words}: {site}"
        for row in compared.rows
        for run in row.runs
        for site in run.summary["left_out"]
    }
    if left_out:
        found.append(f"Sites were left out of rounds: {listed(sorted(left_out), '; ')}")
    found += [f"Not the same: {note}" if note.startswith("rows differ") else note for note in compared.notes]
    return tuple(found)


def _claims(compared: Compared, differences: Mapping[str, Difference]) -> str:
    """Return the differences to the reference that can be claimed, or the reason why there are none."""
    least = fewest_differences(len(differences))
    seeds = max(difference.seeds for difference in differences.values())
    if seeds < 2:
        return "One seed: nothing can be claimed of differences between rows."
    if seeds < least:
        return (
            f"Too few seeds to claim a difference between rows: {seeds}, and {len(differences)} comparisons need "
            f"{least} or more (Wilcoxon over seeds, Holm). Differences are a description; nothing is marked as best."
        )
    parts = [
        f"{listed(labels, ', ', 20)} {what} than {compared.reference}"
        for what in ("higher", "lower")
        if (labels := [label for label, found in differences.items() if _is(found, what)])
    ]
    if not parts:
        return f"No difference to {compared.reference} can be claimed (Wilcoxon over pairs and over seeds, Holm)."
    return f"Claimed, of these sites and images (Wilcoxon over pairs and over seeds, Holm): {'; '.join(parts)}."


def _is(difference: Difference, what: str) -> bool:
    if not difference.significant or difference.mean is None:
        return False
    return (difference.mean > 0) == (what == "higher")


def _of_rows(compared: Compared, describe: Callable[[Protocols], str]) -> str:
    """Return a part of the protocol of the rows that train. If rows differ, return each part with its rows."""
    labels_of: dict[str, list[str]] = {}
    for row in compared.rows:
        if row.trains:
            labels_of.setdefault(describe([run.protocol for run in row.runs]), []).append(row.label)
    if len(labels_of) == 1:
        return next(iter(labels_of))
    return "; ".join(f"{part}: {', '.join(labels)}" for part, labels in labels_of.items())


def _loss(protocols: Protocols) -> str:
    return _each(protocol.get("loss", "CrossEntropy()") for protocol in protocols)  # older runs had no other


def _each(values: Iterable[object]) -> str:
    """Return the values of the runs of a row, each once; they differ if the row is tuned within each fold."""
    return " / ".join(dict.fromkeys(str(value) for value in values))


def _prior(compared: Compared) -> list[str]:
    """Return the class prior of the predictions of each row, if it is not the one that models have learned."""
    labels_of: dict[str, list[str]] = {}
    for row in compared.rows:
        labels_of.setdefault(_each(run.protocol.get("prior", PRIOR) for run in row.runs), []).append(row.label)
    if set(labels_of) == {PRIOR}:
        return []
    shown = "; ".join(f"{prior} ({listed(labels)})" for prior, labels in labels_of.items())
    return [f"class prior of predictions: {shown}"]


def _optimizer(protocols: Protocols) -> str:
    options: dict[str, list[Any]] = {}
    for protocol in protocols:
        for key, value in protocol["optimizer"].items():
            options.setdefault(key, []).append(value)
    classes = options.pop("class")
    listing = [
        f"{key.replace('_', ' ')} {_each(f'{value:g}' for value in sorted(values))}" for key, values in options.items()
    ]
    listing.append(f"state: {_each(protocol['optimizer_state'] for protocol in protocols)}")
    schedules = [protocol["lr_schedule"] for protocol in protocols if "lr_schedule" in protocol]
    if schedules:
        listing.append(f"learning rate {_each(schedules)}")
    return f"{_each(classes)} ({', '.join(listing)})"
