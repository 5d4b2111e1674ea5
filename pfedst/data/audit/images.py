"""Findings on single images: what cannot be read, odd sizes and modes, text burnt into the picture."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from statistics import median

from pfedst.data.audit.facts import ImageFacts
from pfedst.data.audit.findings import Checked, Finding
from pfedst.data.sites import Place, Sites
from pfedst.data.sources import ImageHeader
from pfedst.errors import listed

TINY = 64
ELONGATED = 3.0
OUTLYING = 4.0


def image_findings(sites: Sites, facts: Mapping[Place, ImageFacts]) -> Checked:
    """Unreadable images, odd sizes and shapes, mixed modes, burnt-in text."""
    seen = {place: found.header for place, found in facts.items() if found.header is not None}
    findings = []
    if bad := [place for place, found in facts.items() if found.error]:
        findings.append(
            Finding(
                "unreadable",
                "error",
                f"{len(bad):,} of {len(facts):,} images cannot be read: "
                + listed([facts[place].error for place in bad]),
                "remove them (and their rows), or copy them again",
                _single(bad),
            )
        )
    findings += _sizes(sites, seen)
    findings += _burned_in(seen)
    modes = {
        site: Counter(header.mode for place, header in seen.items() if place.site == site) for site in sites.splits
    }
    if len(set().union(*modes.values())) > 1:
        told = "; ".join(f"{site}: {_counted(found)}" for site, found in modes.items())
        findings.append(
            Finding(
                "mixed_modes",
                "note",
                f"images of different colour modes ({told}); all become RGB",
                "see that grey images are grey on purpose; a site that alone is grey is told from the others by that",
            )
        )
    sides = {site: Counter((h.width, h.height) for p, h in seen.items() if p.site == site) for site in sites.splits}
    return findings, {
        "modes": {site: dict(found) for site, found in modes.items()},
        "commonest_sizes": {
            site: [{"width": w, "height": h, "images": count} for (w, h), count in found.most_common(3)]
            for site, found in sides.items()
        },
    }


def _sizes(sites: Sites, seen: Mapping[Place, ImageHeader]) -> list[Finding]:
    findings = []
    tiny = [place for place, header in seen.items() if min(header.width, header.height) < TINY]
    if tiny:
        findings.append(
            Finding(
                "tiny_images",
                "warning",
                f"{len(tiny):,} images have a side under {TINY} pixels",
                "see that they are no thumbnails or icons",
                _single(tiny),
            )
        )
    long = [
        place
        for place, header in seen.items()
        if max(header.width, header.height) > ELONGATED * min(header.width, header.height)
    ]
    if long:
        findings.append(
            Finding(
                "elongated_images",
                "warning",
                f"{len(long):,} images are more than {ELONGATED:g} times as long as wide",
                "only the central square reaches the encoder: crop them yourself",
                _single(long),
            )
        )
    odd = []
    for site in sites.splits:
        shorter = {place: min(header.width, header.height) for place, header in seen.items() if place.site == site}
        if shorter:
            usual = median(shorter.values())
            odd += [p for p, side in shorter.items() if side > OUTLYING * usual or side * OUTLYING < usual]
    if odd:
        findings.append(
            Finding(
                "odd_sizes",
                "warning",
                f"{len(odd):,} images are more than {OUTLYING:g} times larger or smaller than is usual at their site",
                "see whether they come from another source",
                _single(odd),
            )
        )
    return findings


def _burned_in(seen: Mapping[Place, ImageHeader]) -> list[Finding]:
    marked = [place for place, header in seen.items() if header.burned_in]
    if not marked:
        return []
    return [
        Finding(
            "burned_in_text",
            "warning",
            f"{len(marked):,} DICOM images say that text is burnt into their pixels",
            "look at them: names and dates there identify a patient, and side marks are learnt as a class",
            _single(marked),
        )
    ]


def _single(places: Iterable[Place]) -> tuple[tuple[Place, ...], ...]:
    return tuple((place,) for place in places)


def _counted(counts: Counter[str]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in counts.most_common())
