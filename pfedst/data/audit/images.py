"""Findings on single images: unreadable files, unusual sizes and modes, text burnt into the picture."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from statistics import median

from pfedst.data.audit.facts import ImageFacts
from pfedst.data.audit.findings import Checked, Finding
from pfedst.data.decoding import ImageHeader
from pfedst.data.limits import REMEDY_FOR_MANY
from pfedst.data.sites import Place, Sites
from pfedst.errors import listed

TINY = 64
ELONGATED = 3.0
OUTLYING = 4.0
Headers = dict[str, dict[Place, ImageHeader]]


def image_findings(sites: Sites, facts: Mapping[Place, ImageFacts]) -> Checked:
    """Find unreadable images, unusual sizes and shapes, mixed colour modes and burnt-in text."""
    by_site: Headers = {site: {} for site in sites.splits}
    for place, found in facts.items():
        if found.header is not None:
            by_site[place.site][place] = found.header
    findings = []
    if bad := [place for place, found in facts.items() if found.error]:
        findings.append(
            Finding(
                "unreadable",
                "error",
                f"{len(bad):,} of {len(facts):,} images cannot be read: "
                + listed([facts[place].error for place in bad]),
                REMEDY_FOR_MANY,
                _single(bad),
            )
        )
    if guessed := [place for place, found in facts.items() if found.guessed]:
        findings.append(
            Finding(
                "guessed_pixel_range",
                "warning",
                f"{len(guessed):,} images declare no range of grey values, and the smallest and largest value of each "
                f"become black and white ({_counted(Counter(place.site for place in guessed))})",
                "set one range with --data.pixel_range, so that the brightness of images can be compared",
                _single(guessed),
            )
        )
    for code, places, message, remedy in _unusual(by_site):
        if places:
            findings.append(Finding(code, "warning", f"{len(places):,} {message}", remedy, _single(places)))
    modes = {site: Counter(header.mode for header in headers.values()) for site, headers in by_site.items()}
    if len(set().union(*modes.values())) > 1:
        by_mode = "; ".join(f"{site}: {_counted(found)}" for site, found in modes.items())
        findings.append(
            Finding(
                "mixed_modes",
                "note",
                f"images of different colour modes ({by_mode}); all become RGB",
                "check that grey images are intended; a model can recognise a site if only this site has grey images",
            )
        )
    sides = {site: Counter((h.width, h.height) for h in headers.values()) for site, headers in by_site.items()}
    return findings, {
        "modes": {site: dict(found) for site, found in modes.items()},
        "commonest_sizes": {
            site: [{"width": w, "height": h, "images": count} for (w, h), count in found.most_common(3)]
            for site, found in sides.items()
        },
    }


def _unusual(by_site: Headers) -> list[tuple[str, list[Place], str, str]]:
    """Return groups of unusual images: code, images, message and remedy."""
    shorter, longer, marked = {}, {}, []
    for headers in by_site.values():
        for place, header in headers.items():
            shorter[place], longer[place] = sorted((header.width, header.height))
            if header.burned_in:
                marked.append(place)
    outlying = []
    for headers in by_site.values():
        usual = median(shorter[place] for place in headers) if headers else 0
        outlying += [p for p in headers if shorter[p] > OUTLYING * usual or shorter[p] * OUTLYING < usual]
    return [
        (
            "tiny_images",
            [place for place, side in shorter.items() if side < TINY],
            f"images have a side under {TINY} pixels",
            "check that they are not thumbnails or icons",
        ),
        (
            "elongated_images",
            [place for place, side in shorter.items() if longer[place] > ELONGATED * side],
            f"images are more than {ELONGATED:g} times as long as wide",
            "only the central square reaches the encoder: crop them yourself",
        ),
        (
            "odd_sizes",
            outlying,
            f"images are more than {OUTLYING:g} times larger or smaller than is usual at their site",
            "check whether they come from another source",
        ),
        (
            "burned_in_text",
            marked,
            "DICOM images say that text is burnt into their pixels",
            "look at them: names and dates there identify a patient, and side marks are learnt as a class",
        ),
    ]


def _single(places: Iterable[Place]) -> tuple[tuple[Place, ...], ...]:
    return tuple((place,) for place in places)


def _counted(counts: Counter[str]) -> str:
    return ", ".join(f"{count:,} {name or 'of DICOM'}" for name, count in counts.most_common())
