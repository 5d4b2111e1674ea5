"""What an audit found: findings with severity and remedy, and the figures behind them."""

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
    """One thing that a user should know.

    Attributes:
        code: a stable name, such as `group_overlap`.
        severity: `error`: numbers on test would mislead, or training would fail; `warning`: look at it;
            `note`: a fact of these data that results should be read with.
        message: what it is, with figures.
        remedy: what to do.
        images: those concerned, in tuples of images that belong together; empty where it is about counts.
    """

    code: str
    severity: Severity
    message: str
    remedy: str
    images: tuple[tuple[Place, ...], ...] = ()


Checked = tuple[list[Finding], Any]
"""What a check gives: its findings, and the figures behind them, ready for JSON (None without)."""


@dataclass(frozen=True)
class AuditReport:
    """Everything an audit says of some data.

    Attributes:
        label: what the data are.
        sites: the data themselves.
        opened: whether the images were opened, or the tables alone were read.
        findings: the gravest first.
        figures: by the name of a check, what it measured (ready for JSON).
    """

    label: str
    sites: Sites
    opened: bool
    findings: Sequence[Finding]
    figures: Mapping[str, Any] = field(default_factory=dict)

    def of(self, severity: Severity) -> list[Finding]:
        """The findings of one severity."""
        return [finding for finding in self.findings if finding.severity == severity]

    def tally(self) -> dict[Severity, int]:
        """Number of findings by severity."""
        return {severity: len(self.of(severity)) for severity in SEVERITIES}

    def headline(self) -> str:
        """One line: how many findings of each severity, and the gravest in words."""
        counts = ", ".join(f"{count} {severity}{'s' * (count != 1)}" for severity, count in self.tally().items())
        grave = next((f for f in self.findings if f.severity != "note"), None)
        return f"data audit: {counts}" + (f"; first: {grave.message}" if grave else "")

    def refuse_errors(self) -> None:
        """Raises if anything was found that makes results misleading.

        Raises:
            DataError: all errors, with their remedies.
        """
        if errors := self.of("error"):
            told = "; ".join(f"{finding.message}: {finding.remedy}" for finding in errors)
            raise DataError(f"--data.audit strict: {told}")

    def summary(self) -> dict[str, Any]:
        """For the record of a run: no image, no patient, only what was found how often."""
        return {
            "opened": self.opened,
            "findings": self.tally(),
            "codes": [finding.code for finding in self.findings if finding.severity != "note"],
        }

    def counts(self) -> dict[str, dict[str, list[int]]]:
        """Images of every site, split and class."""
        found: dict[str, dict[str, list[int]]] = {}
        for site, split, part in self.sites.parts():
            found.setdefault(site, {})[split] = part.counts(len(self.sites.class_names))
        return found

    def to_json(self) -> dict[str, Any]:
        """The whole report; it names files, and groups by nothing but their number."""
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
        """An image's site, split, class and name."""
        part = self.sites.splits[place.site][place.split]
        return {
            "site": place.site,
            "split": place.split,
            "class": self.sites.class_names[part.labels[place.row]],
            "image": part.source.name(place.row),
        }


def gravest_first(findings: Sequence[Finding]) -> list[Finding]:
    """By severity; within one as they came."""
    return sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity))
