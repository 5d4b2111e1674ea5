"""Compare finished runs from their JSON files.

A row is a method with its options; its runs differ only in the seed.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property
from pathlib import Path
from typing import Any

from pfedst.errors import StateError, counted
from pfedst.reporting.claims import Claim
from pfedst.reporting.run_folder import RunFolder
from pfedst.reporting.summary import CALIBRATION_BINS

COUNTS = ', "counts": {'
"""Where the counts of a record begin, as `RunFolder` writes them."""


class OverSites(Enum):
    """What a summary holds over sites. It is no text, because a site may be called `mean`."""

    MEAN = "mean"
    WEIGHTED_MEAN = "weighted_mean"
    WORST = "worst"
    STD = "std"
    HELD_OUT_MEAN = "held_out_mean"


@dataclass(frozen=True)
class FinishedRun:
    """A finished run, read from its folder."""

    folder: Path
    summary: Mapping[str, Any]

    @property
    def protocol(self) -> Mapping[str, Any]:
        """The protocol of the run's numbers."""
        protocol: Mapping[str, Any] = self.summary["protocol"]
        return protocol

    @property
    def seed(self) -> int:
        """Seed of the run."""
        return int(self.protocol["seed"])

    @property
    def part(self) -> tuple[int, int] | None:
        """Seed of the partition into folds, and the fold that is test; None without folds."""
        folds = self.protocol.get("folds")
        return None if folds is None else (int(folds["split_seed"]), int(folds["fold"]))

    @property
    def words(self) -> str:
        """The seed of the run, and with folds its fold, in words."""
        return f"seed {self.seed}" if self.part is None else f"seed {self.seed}, fold {self.part[1]}"

    @property
    def study(self) -> Mapping[str, Any]:
        """The options of the study that differ from their defaults; empty if they were not recorded."""
        study: Mapping[str, Any] = self.summary["study"]
        return study

    @property
    def last_digits(self) -> Mapping[str, Any]:
        """The options that change last digits and that differ from their defaults."""
        options: Mapping[str, Any] = self.summary["last_digits"]
        return options

    @property
    def content(self) -> Mapping[str, Any]:
        """The hashes of images and of the encoder's weights; empty if they were not recorded."""
        content: Mapping[str, Any] = self.summary["content"]
        return content

    @property
    def cost(self) -> Mapping[str, Any]:
        """Cost of the run."""
        cost: Mapping[str, Any] = self.summary["cost"]
        return cost

    @property
    def environment(self) -> Mapping[str, Any] | None:
        """Versions, date, command and hardware; None for a run before this was recorded."""
        found: Mapping[str, Any] | None = self.summary["environment"]
        return found

    @property
    def class_metrics(self) -> Mapping[str, Any]:
        """By site, what it reports of each class; empty for a run before this was computed."""
        found: Mapping[str, Any] = self.summary["class_metrics"]
        return found

    @property
    def subgroups(self) -> Mapping[str, Any]:
        """By site, what it reports of its subgroups; empty without `--data.subgroups`."""
        found: Mapping[str, Any] = self.summary["subgroups"]
        return found

    @property
    def calibration(self) -> Mapping[str, Any]:
        """What sites report of temperature and abstention; empty for older versions."""
        found: Mapping[str, Any] = self.summary["calibration"]
        return found

    @property
    def warnings(self) -> list[Mapping[str, Any]] | None:
        """Warnings about models; None for a run before these were recorded."""
        found: list[Mapping[str, Any]] | None = self.summary.get("warnings")
        return found

    @property
    def total_bytes(self) -> float:
        """Bytes that all clients sent and received up to the last round, class prototypes included."""
        a_round = self.cost["upload_bytes_per_round"] + self.cost["download_bytes_per_round"]
        return float(a_round * self.summary["evaluated"]["round"] + self.cost["setup_upload_bytes"])

    @property
    def total_flops(self) -> float | None:
        """FLOPs of training; None if they were not counted."""
        an_image = self.cost["flops_per_image"]
        return None if an_image is None else float(an_image * self.cost["images_trained"])

    @property
    def held_out(self) -> list[str]:
        """Sites that never trained."""
        return list(self.protocol["held_out_sites"])

    @property
    def counted(self) -> list[Mapping[str, Any]]:
        """Counts of the personal model at each site that is not held out."""
        counts = self.summary["personal"]["counts"]
        return [counts[site] for site in counts if site not in self.held_out]

    @cached_property
    def confusion(self) -> list[list[int]]:
        """Numbers of images for the personal model, summed over sites that are not held out; rows are targets."""
        return summed(counts["confusion"] for counts in self.counted)

    @cached_property
    def records(self) -> list[dict[str, Any]]:
        """The records in `rounds.jsonl`, without their counts, which are nine tenths of the file.

        Raises:
            StateError: If the file is missing or damaged.
        """
        file = RunFolder(self.folder).records_file
        try:
            return [_without_counts(line) for line in file.read_text().splitlines()]
        except (OSError, ValueError) as error:
            raise StateError(f"{file} is missing or damaged ({error}); run it again") from error

    def value(self, model: str, column: str | OverSites, metric: str) -> float | None:
        """Return a metric of a model for the site of a name, or over sites."""
        found = self.summary[model]
        of_column = found[column.value] if isinstance(column, OverSites) else found["clients"][column]
        value: float | None = of_column[metric]
        return value


@dataclass(frozen=True)
class RunsOfARow:
    """A row: runs that differ only in their seed and fold, sorted by them."""

    label: str
    runs: tuple[FinishedRun, ...]

    @property
    def first(self) -> FinishedRun:
        """The first run, for properties that all runs share."""
        return self.runs[0]

    @property
    def trains(self) -> bool:
        """True if the row trains parameters."""
        return bool(self.first.cost["parameters_trained"])

    @property
    def pooled(self) -> bool:
        """True if the row pools the images of all sites, which no federation can."""
        return bool(self.first.protocol["pooled"])

    @property
    def has_random_weights(self) -> bool:
        """True if the encoder was never trained."""
        return bool(self.first.protocol["random_weights"])

    @property
    def has_synthetic_images(self) -> bool:
        """True if the images are synthetic."""
        return str(self.first.protocol["data"]).startswith("SYNTHETIC")

    @property
    def confusions(self) -> list[list[list[int]]]:
        """The confusion of each seed; over the folds of a seed it is summed, as each image is tested once."""
        by_seed: dict[int, list[list[list[int]]]] = {}
        for run in self.runs:
            by_seed.setdefault(run.seed, []).append(run.confusion)
        return [summed(found) for found in by_seed.values()]

    def by_part(self) -> dict[tuple[int, int] | None, list[FinishedRun]]:
        """Return the runs of each part; those of one part differ in their seed."""
        found: dict[tuple[int, int] | None, list[FinishedRun]] = {}
        for run in self.runs:
            found.setdefault(run.part, []).append(run)
        return found

    def values(self, model: str, column: str | OverSites, metric: str) -> list[float]:
        """Return the values of all seeds for which the metric is defined."""
        found = [run.value(model, column, metric) for run in self.runs]
        return [value for value in found if value is not None]

    def by_pair(self, model: str, sites: Sequence[str], metric: str) -> dict[tuple[str, int], float | None]:
        """Return (site, seed) -> value."""
        return {(site, run.seed): run.value(model, site, metric) for run in self.runs for site in sites}


@dataclass(frozen=True)
class Compared:
    """The input of a report.

    Attributes:
        name: name of the comparison.
        rows: rows in the order of the table.
        reference: label of the row against which the others are tested.
        notes: remarks that a reader must know: rows that differ in budget, missing runs.
        tuned: label -> `parts` with `chosen` and `trials`, and `edges`; empty without tuning.
        tuning: seeds and metric of the trials; None without tuning.
        claims: the comparisons of rows over folds that were named before the runs.
        planned: number of folds of all repetitions of the comparison; 0 without folds.
    """

    name: str
    rows: tuple[RunsOfARow, ...]
    reference: str
    notes: tuple[str, ...] = ()
    tuned: Mapping[str, Any] = field(default_factory=dict)
    tuning: Mapping[str, Any] | None = None
    claims: tuple[Claim, ...] = ()
    planned: int = 0

    @property
    def folds(self) -> int | None:
        """Number of folds; None if test is that of the data set."""
        folds = self.rows[0].first.protocol.get("folds")
        return None if folds is None else int(folds["folds"])

    @property
    def has_spread(self) -> bool:
        """True if rows have several runs."""
        return self.folds is not None or len(self.seeds) > 1

    @property
    def runs_text(self) -> str:
        """The number of seeds, and of folds, in words."""
        seeds = counted(len(self.seeds), "seed")
        return seeds if self.folds is None else f"{seeds} x {self.folds} folds"

    @property
    def protocol(self) -> Mapping[str, Any]:
        """Protocol of the row with most rounds."""
        return max((row.first.protocol for row in self.rows), key=lambda protocol: protocol["rounds"])

    @property
    def of_best_rounds(self) -> bool:
        """True if the numbers are of the best round of each run on validation, and not of its last round."""
        return bool(self.protocol.get("round_choice") == "best")

    @property
    def round_words(self) -> str:
        """The round of the numbers, in words."""
        if not self.of_best_rounds:
            return "after the last round"
        rounds = sorted({run.protocol["round"] for row in self.rows for run in row.runs})
        span = f"{rounds[0]} to {rounds[-1]}" if len(rounds) > 1 else f"{rounds[0]}"
        return f"after the round of each run that is BEST ON VALIDATION (round {span}), not the last"

    @property
    def is_demonstration(self) -> bool:
        """True if a row has random weights or synthetic images: nothing can be claimed of its numbers."""
        return any(row.has_random_weights or row.has_synthetic_images for row in self.rows)

    @property
    def sites(self) -> list[str]:
        """Sites in the order of the table."""
        return list(self.rows[0].first.summary["personal"]["clients"])

    @property
    def classes(self) -> list[str]:
        """Classes in the order of a confusion matrix."""
        return list(self.protocol["classes"])

    @property
    def seeds(self) -> list[int]:
        """Seeds of all runs."""
        return sorted({run.seed for row in self.rows for run in row.runs})

    @property
    def held_out(self) -> list[str]:
        """Sites that never trained, which means and tests leave out."""
        return [site for site in self.sites if site in self.protocol["held_out_sites"]]

    @property
    def counted_sites(self) -> list[str]:
        """Sites over which means and tests are taken."""
        return [site for site in self.sites if site not in self.held_out]

    def test_images(self, site: str) -> int:
        """Return the number of images on which a site was evaluated; with folds over all folds."""
        if self.folds is not None:
            return sum(self.protocol["samples"][site].values())
        return int(self.protocol["samples"][site][self.protocol["split"]])

    def row(self, label: str) -> RunsOfARow:
        """Return the row with this label."""
        return next(row for row in self.rows if row.label == label)


def _without_counts(line: str) -> dict[str, Any]:
    """Return a record; its counts come last, and are not parsed.

    Raises:
        ValueError: If the line is no JSON.
    """
    before, counts, _ = line.partition(COUNTS)  # no name holds this, as JSON writes a quote within a name with a slash
    record: dict[str, Any] = json.loads(before + "}" if counts and line.endswith("}}}}}") else line)
    return record


def has_present_bins(summary: Mapping[str, Any]) -> bool:
    """Return True if the calibration errors of a summary are in the bins of this version."""
    return bool(summary["evaluated"].get("bins") == CALIBRATION_BINS)


def summed(matrices: Iterable[Sequence[Sequence[int]]]) -> list[list[int]]:
    """Return the elementwise sum of matrices of one shape."""
    return [[sum(cells) for cells in zip(*rows, strict=True)] for rows in zip(*matrices, strict=True)]
