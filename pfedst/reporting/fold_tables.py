"""Tables of a comparison over folds: the tests of the claims that were named in advance, and descriptions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from pfedst.errors import ConfigurationError, counted, listed, nearest
from pfedst.evaluation.resampled import POWER, ResampledTest, resampled_test, smallest_detectable
from pfedst.evaluation.statistics import LEVEL, holm
from pfedst.reporting.claims import Claim, difference, source_row
from pfedst.reporting.comparison import Compared, RunsOfARow
from pfedst.reporting.report_table import Cell, ReportTable, interval_cell, p_cell, points_cell
from pfedst.reporting.tables import metric_words


@dataclass(frozen=True)
class TestedClaim:
    """A claim with its test.

    Attributes:
        claim: the claim.
        test: the corrected resampled t-test of the difference.
        p_holm: p-value with Holm's correction over all claims; None without a p-value.
        detectable: smallest detectable difference, with the deviation found; None without a deviation.
        is_complete: True if every planned fold has its runs.
    """

    claim: Claim
    test: ResampledTest
    p_holm: float | None
    detectable: float | None
    is_complete: bool

    @property
    def result(self) -> str:
        """`higher`, `lower` or `none`: what may be claimed of the row."""
        if self.p_holm is None or self.p_holm >= LEVEL or self.test.mean is None or not self.is_complete:
            return "none"
        return "higher" if self.test.mean > 0 else "lower"

    @property
    def words(self) -> str:
        """The rows and the measure."""
        return f"{self.claim.row} against {self.claim.against}, {measure_words(self.claim)}"


def measure_words(claim: Claim) -> str:
    """Return the measure of a claim in words."""
    return metric_words(claim.measure) + (f" at the {claim.prior} prior" if claim.prior else "")


def tested_claims(compared: Compared) -> list[TestedClaim]:
    """Test the claims of a comparison over folds, in their order.

    Raises:
        ConfigurationError: If a claim names a row without runs.
        StateError: If a summary does not hold the measure of a claim.
    """
    tests = []
    for claim in compared.claims:
        found = paired(compared, claim)
        tests.append(resampled_test(found, test_to_train(compared)))
    adjusted = holm([1.0 if test.p_value is None else test.p_value for test in tests])
    return [
        TestedClaim(
            claim,
            test,
            None if test.p_value is None else p_holm,
            None if test.deviation is None else smallest_detectable(test.deviation, test.runs, test_to_train(compared)),
            test.runs == compared.planned,
        )
        for claim, test, p_holm in zip(compared.claims, tests, adjusted, strict=True)
    ]


def paired(compared: Compared, claim: Claim) -> list[float]:
    """Return the difference of a claim on each fold on which both rows have runs with the same seeds."""
    row, against = (_row(compared, source_row(label)) for label in (claim.row, claim.against))
    others = against.by_part()
    found = []
    for part, runs in row.by_part().items():
        beside = others.get(part, [])
        if {run.seed for run in runs} != {run.seed for run in beside}:
            continue
        sides = ([run.summary for run in runs], [run.summary for run in beside])
        value = difference(claim, *sides, compared.counted_sites)
        if value is not None:
            found.append(value)
    return found


def test_to_train(compared: Compared) -> float:
    """Return n_test / n_train over all folds of the sites that are counted: tested images for each trained on."""
    counts: Counter[str] = Counter()
    for part, runs in compared.row(compared.reference).by_part().items():
        assert part is not None
        for site in compared.counted_sites:
            samples = runs[0].protocol["samples"][site]
            counts.update({"test": samples["test"], "train": samples["train"]})
    return counts["test"] / counts["train"]


def claims_table(compared: Compared, tested: Sequence[TestedClaim]) -> ReportTable | None:
    """Table of the claims named in advance; None without any."""
    if not tested:
        return None
    rows = []
    for one in tested:
        rows.append((
            Cell(one.claim.row),
            Cell(one.claim.against),
            Cell(measure_words(one.claim)),
            points_cell(one.test.mean),
            interval_cell(one.test.interval),
            _unsigned(one.test.deviation),
            Cell(f"{one.test.runs} of {compared.planned}", one.test.runs),
            p_cell(one.test.p_value),
            p_cell(one.p_holm),
            _unsigned(one.detectable),
            Cell("none" if compared.is_demonstration else one.result),
        ))  # fmt: skip
    caption = (
        f"The comparisons that the plan names, each by one measure of the personal model on "
        f"{compared.protocol['split']}, in points: the difference on each fold of each repetition, averaged over the "
        f"sites, which are fixed. Corrected resampled t-test (Nadeau and Bengio 2003; Bouckaert and Frank 2004): "
        f"t = mean / sqrt(s^2 (1 / J + n_test / n_train)) with J - 1 degrees of freedom, n_test / n_train = "
        f"{test_to_train(compared):.3f}, validation in neither; interval: 95 %, from the same variance. A claim needs "
        f"p below {LEVEL:g} after Holm's correction over {counted(len(tested), 'claim')}, and all planned folds. "
        f"Detectable: the difference that would be found with a power of {POWER:.0%} at the level {LEVEL:g} without "
        f"correction, with the deviation found."
    )
    headings = (
        "row", "against", "measure", "difference", "interval", "deviation", "folds", "p", "p, Holm", "detectable",
        "claim",
    )  # fmt: skip
    return ReportTable("claims", "Claims named in advance", caption, headings, tuple(rows))


def differences_table(compared: Compared, metric: str) -> ReportTable | None:
    """Table of every row minus the reference, without a test; None with one row."""
    rows = []
    for row in compared.rows:
        if row.label == compared.reference:
            continue
        found = resampled_test(differences := paired(compared, Claim(row.label, compared.reference, metric)), 1.0)
        higher = sum(value > 0 for value in differences)
        cells = (points_cell(found.mean), _unsigned(found.deviation), Cell(f"{higher} of {found.runs}", higher))
        rows.append((Cell(row.label), *cells))
    if not rows:
        return None
    caption = (
        f"Each row minus {compared.reference}: {metric_words(metric)} of the personal model on "
        f"{compared.protocol['split']}, in points, mean and standard deviation over the folds of all repetitions, and "
        f"the number of folds in which the row is higher. Nothing is tested here."
    )
    headings = ("row", "difference", "deviation", "folds higher")
    return ReportTable("differences", f"Against {compared.reference}, described", caption, headings, tuple(rows))


def claims_note(compared: Compared, tested: Sequence[TestedClaim]) -> str:
    """Return what may be claimed, or the reason why nothing may."""
    if not tested:
        return "No comparison was named before the runs: all differences are a description, and nothing can be claimed."
    missing = [one for one in tested if not one.is_complete]
    if missing:
        return (
            f"Nothing is claimed of {listed([one.words for one in missing], '; ')} while folds are missing "
            f"({missing[0].test.runs} of {compared.planned} are there)."
        )
    claimed = [
        f"{one.claim.row} {one.result} than {one.claim.against} ({measure_words(one.claim)})"
        for one in tested
        if one.result != "none"
    ]
    how = f"corrected resampled t-test over {compared.planned} folds, Holm over {len(tested)} named comparisons"
    if not claimed:
        return f"None of the named differences can be claimed ({how})."
    return f"Claimed, of these sites ({how}): {listed(claimed, '; ', 20)}."


def _row(compared: Compared, label: str) -> RunsOfARow:
    labels = [row.label for row in compared.rows]
    if label not in labels:
        raise ConfigurationError(f"a claim names the row {label}, which has no finished run.{nearest(label, labels)}")
    return compared.row(label)


def _unsigned(value: float | None) -> Cell:
    return Cell("-") if value is None else Cell(f"{100 * value:.1f}", value)
