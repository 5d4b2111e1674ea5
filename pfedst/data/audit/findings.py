"""The result of an audit: findings with severity and remedy, and the figures behind them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from pfedst.data.sites import Place, Sites
from pfedst.errors import DataError

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = get_args(Severity)


@dataclass(frozen=True)
class Finding:
    """One result of an audit.

    Attributes:
        code: a stable name, such as `group_overlap`.
        severity: `error`: test results would mislead, or training would fail. `warning`: needs a check. `note`: a fact
            about the data that matters for reading results.
        message: the finding, with figures.
        remedy: what to do.
        images: the images concerned, in tuples of images that belong together; empty for findings about counts.
    """

    code: str
    severity: Severity
    message: str
    remedy: str
    images: tuple[tuple[Place, ...], ...] = ()


Checked = tuple[list[Finding], Any]
"""Result of a check: its findings, and the figures behind them, ready for JSON (None if there are none)."""


@dataclass(frozen=True)
class AuditReport:
    """The complete result of an audit.

    Attributes:
        label: description of the data.
        sites: the data.
        opened: True if the images were opened, False if only the tables were read.
        findings: findings, the most severe first.
        figures: name of a check -> its measurements (ready for JSON).
    """

    label: str
    sites: Sites
    opened: bool
    findings: Sequence[Finding]
    figures: Mapping[str, Any] = field(default_factory=dict)

    def of(self, severity: Severity) -> list[Finding]:
        """Return the findings of one severity."""
        return [finding for finding in self.findings if finding.severity == severity]

    def tally(self) -> dict[Severity, int]:
        """Return the number of findings by severity."""
        return {severity: len(self.of(severity)) for severity in SEVERITIES}

    def headline(self) -> str:
        """Return one line: the number of findings of each severity, and the message of the most severe."""
        counts = ", ".join(f"{count} {severity}{'s' * (count != 1)}" for severity, count in self.tally().items())
        grave = next((f for f in self.findings if f.severity != "note"), None)
        return f"data audit: {counts}" + (f"; first: {grave.message}" if grave else "")

    def refuse_errors(self) -> None:
        """Raise an error if a finding makes results misleading.

        Raises:
            DataError: If there are errors. The message lists all with their remedies.
        """
        if errors := self.of("error"):
            messages = "; ".join(f"{finding.message}: {finding.remedy}" for finding in errors)
            raise DataError(f"--data.audit strict: {messages}")

    def summary(self) -> dict[str, Any]:
        """Return a summary for the record of a run: the number of findings, without images or patients."""
        return {
            "opened": self.opened,
            "findings": self.tally(),
            "codes": [finding.code for finding in self.findings if finding.severity != "note"],
        }

    def counts(self) -> dict[str, dict[str, list[int]]]:
        """Return the number of images of every site, split and class."""
        found: dict[str, dict[str, list[int]]] = {}
        for site, split, part in self.sites.parts():
            found.setdefault(site, {})[split] = part.counts(len(self.sites.class_names))
        return found

    def to_json(self) -> dict[str, Any]:
        """Return the whole report. It names files; groups appear only as counts."""
        return {
            "data": self.label,
            "opened": self.opened,
            "classes": list(self.sites.class_names),
            "counts": self.counts(),
            "tally": self.tally(),
            "figures": dict(self.figures),
            "findings": [
                {
                    "code": finding.code,
                    "severity": finding.severity,
                    "message": finding.message,
                    "remedy": finding.remedy,
                    "images": [[self.describe(place) for place in together] for together in finding.images],
                }
                for finding in self.findings
            ],
        }

    def describe(self, place: Place) -> dict[str, Any]:
        """Return site, split, class and name of an image."""
        part = self.sites.splits[place.site][place.split]
        return {
            "site": place.site,
            "split": place.split,
            "class": self.sites.class_names[part.labels[place.row]],
            "image": part.source.name(place.row),
        }


def most_severe_first(findings: Sequence[Finding]) -> list[Finding]:
    """Sort findings by severity, keeping their order within one severity."""
    return sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity))
