"""Findings on duplicate images: identical files, or pictures that look alike."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Literal

from pfedst.data.audit.facts import Seen
from pfedst.data.audit.findings import Checked, Finding, Severity
from pfedst.data.sites import Place, Sites

Relation = Literal["splits", "sites", "within"]
Together = tuple[Place, ...]


def duplicate_findings(sites: Sites, seen: Seen) -> Checked:
    """Find duplicate images across splits, across sites, and within one part of one site."""
    same = _identical(seen)
    alike = [(a, b) for a, b, _ in seen.alike]
    findings = [
        *_findings("identical_images", "images that are the same file", same, ("error", "warning", "warning")),
        *_findings("similar_images", "pairs of images that look like one", alike, ("warning", "note", "note")),
    ]

    def label(place: Place) -> int:
        return sites.splits[place.site][place.split].labels[place.row]

    if torn := [places for places in same if len({label(place) for place in places}) > 1]:
        findings.append(
            Finding(
                "contradicting_labels",
                "error",
                f"{len(torn):,} images occur twice with different classes",
                "find out which class is right, and remove the other row",
                tuple(torn),
            )
        )
    likeness = [{"images": [list(a), list(b)], "likeness": value} for a, b, value in seen.alike]
    return findings, {"identical": len(same), "similar": likeness}


def _identical(seen: Seen) -> list[Together]:
    by_digest: dict[str, list[Place]] = defaultdict(list)
    for place, found in seen.facts.items():
        if found.digest:
            by_digest[found.digest].append(place)
    return [tuple(places) for places in by_digest.values() if len(places) > 1]


def _relation(places: Together) -> Relation:
    splits = {place.split for place in places}
    if "test" in splits and len(splits) > 1:
        return "splits"
    return "sites" if len({place.site for place in places}) > 1 else "within"


def _findings(
    code: str, what: str, found: Sequence[Together], severities: tuple[Severity, Severity, Severity]
) -> list[Finding]:
    words: dict[Relation, tuple[str, str]] = {
        "splits": ("in test and in train or validation", "keep them in one split"),
        "sites": ("at different sites", "find out which site they belong to; a shared patient leaks between sites"),
        "within": ("within one site", "keep one of them: doubled images count twice"),
    }
    findings = []
    for (relation, (where, remedy)), severity in zip(words.items(), severities, strict=True):
        if concerned := [places for places in found if _relation(places) == relation]:
            pairs = code == "similar_images"
            count = len(concerned) if pairs else sum(map(len, concerned))
            findings.append(
                Finding(
                    f"{code}_{relation}",
                    severity,
                    f"{what}: {count:,} {where}",
                    ("look at them; if they show one thing, " if pairs else "") + remedy,
                    tuple(concerned),
                )
            )
    return findings
