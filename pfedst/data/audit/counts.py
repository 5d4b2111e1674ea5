"""Checks that need only the tables: classes, label skew, and groups that lie in two splits."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from pfedst.data.audit.findings import Checked, Finding
from pfedst.data.sites import Place, Sites, Split
from pfedst.errors import counted

FEW = 5


def class_findings(sites: Sites) -> Checked:
    """Find classes that are absent from a split, or have so few images there that one image decides."""
    counts = {(site, split): part.counts(len(sites.class_names)) for site, split, part in sites.parts()}
    names = sites.class_names
    trained = [sum(counts[site, "train"][k] for site in sites.splits) for k in range(len(names))]
    tested = [sum(counts[site, "test"][k] for site in sites.splits) for k in range(len(names))]
    findings = []
    if untaught := [name for name, a, b in zip(names, trained, tested, strict=True) if b and not a]:
        findings.append(
            Finding(
                "class_never_trained",
                "error",
                f"no site has a training image of {', '.join(untaught)}, but test images exist",
                "add training images, or leave the class out",
            )
        )
    everywhere = [sum(column) for column in zip(*counts.values(), strict=True)]
    if empty := [name for name, count in zip(names, everywhere, strict=True) if not count]:
        findings.append(
            Finding("class_absent", "warning", f"no site has an image of {', '.join(empty)}", "leave the class out")
        )

    def by_site(wanted: Any) -> list[str]:
        lines = []
        for site in sites.splits:
            train, test = counts[site, "train"], counts[site, "test"]
            found = [name for name, a, b in zip(names, train, test, strict=True) if wanted(a, b)]
            if found:
                lines.append(f"{site}: {', '.join(found)}")
        return lines

    if lines := by_site(lambda train, test: test and not train):
        findings.append(
            Finding(
                "class_not_trained_at_site",
                "warning",
                f"in test of a site, but not in its train ({'; '.join(lines)})",
                "there only the shared part can learn the class; personal models may miss it",
            )
        )
    if lines := by_site(lambda train, test: train and not test):
        findings.append(
            Finding(
                "class_not_tested_at_site",
                "note",
                f"in train of a site, but not in its test ({'; '.join(lines)})",
                "macro metrics average over the classes that are present in a site's test; sites differ in them",
            )
        )
    if lines := by_site(lambda train, test: 0 < test < FEW):
        findings.append(
            Finding(
                "few_test_images",
                "note",
                f"fewer than {FEW} test images of a class ({'; '.join(lines)})",
                f"one image moves the recall of such a class by more than {100 // FEW} points: use several seeds "
                f"and splits before a difference is believed",
            )
        )
    return findings, None


def lone_class_findings(sites: Sites) -> Checked:
    """Find classes of which one site alone has images."""
    if len(sites.splits) < 2:
        return [], None
    sites_of: dict[int, set[str]] = defaultdict(set)
    for site, _, part in sites.parts():
        for label in set(part.labels):
            sites_of[label].add(site)
    lone = {label: next(iter(found)) for label, found in sorted(sites_of.items()) if len(found) == 1}
    if not lone:
        return [], None
    by_site = "; ".join(f"{sites.class_names[label]}: {site}" for label, site in lone.items())
    finding = Finding(
        "class_at_one_site",
        "warning",
        f"one site alone has images of a class ({by_site})",
        "check its spelling; the class identifies its site, and other sites cannot contribute to it",
    )
    return [finding], None


def skew_findings(sites: Sites) -> Checked:
    """Measure how far the class shares of each site's train are from the pooled shares (total variation, 0 to 1)."""
    counts = {site: sites.splits[site]["train"].counts(len(sites.class_names)) for site in sites.splits}
    pooled = [sum(column) for column in zip(*counts.values(), strict=True)]

    def shares(of: Sequence[int]) -> list[float]:
        return [count / max(1, sum(of)) for count in of]

    distances = {
        site: sum(abs(a - b) for a, b in zip(shares(of), shares(pooled), strict=True)) / 2
        for site, of in counts.items()
    }
    if len(distances) < 2 or not any(distances.values()):
        return [], distances
    far = max(distances, key=lambda site: distances[site])
    finding = Finding(
        "label_skew",
        "note",
        f"class shares differ from the pooled ones by up to {distances[far]:.2f} (total variation), most at {far}",
        "compare balanced accuracy and the worst site; accuracy favours the majority class",
    )
    return [finding], distances


def group_findings(sites: Sites) -> Checked:
    """Find groups (patients, lesions) that lie in more than one split, within a site or over sites."""
    where: dict[str, list[Place]] = defaultdict(list)
    unknown = total = 0
    for site, split, part in sites.parts():
        total += len(part.labels)
        for index, group in enumerate(part.groups):
            if group is None:
                unknown += 1
            else:
                where[group].append(Place(site, split, index))
    if not where:
        finding = Finding(
            "groups_unknown",
            "warning",
            "no image has a group, so it is unknown whether a patient or lesion is in both train and test",
            "give patients or lesions (the column group of a manifest, metadata of the data set)",
        )
        return [finding], None
    figures = {
        "groups": len(where),
        "images_without_group": unknown,
        "test_overlap": test_overlap(sites, where.values()),
    }
    findings = []
    if unknown:
        findings.append(
            Finding(
                "some_groups_unknown",
                "warning",
                f"{unknown:,} of {total:,} images have no group; each counts as a separate patient",
                "complete the groups",
            )
        )
    findings += _overlaps(sites, list(where.values()))
    shared = [places for places in where.values() if len({place.site for place in places}) > 1]
    if shared:
        findings.append(
            Finding(
                "group_at_several_sites",
                "warning",
                f"{counted(len(shared), 'group')} with images at more than one site",
                "if it is one patient, keep it at one site; if sites number their patients alike, put the site's "
                "name before the number",
                tuple(tuple(places) for places in shared),
            )
        )
    return findings, figures


def test_overlap(sites: Sites, groups: Iterable[Sequence[Place]]) -> dict[str, Any]:
    """Count the test images of each site and of all, and those that share a group with a train or validation image."""
    leaking = dict.fromkeys(sites.splits, 0)
    for places in groups:
        if any(place.split != "test" for place in places):
            for place in places:
                leaking[place.site] += place.split == "test"
    sizes = {site: len(sites.splits[site]["test"].labels) for site in sites.splits}

    def row(size: int, sharing: int) -> dict[str, Any]:
        return {"test_images": size, "sharing_a_group_with_train": sharing, "share": sharing / size if size else 0.0}

    return {
        "sites": {site: row(sizes[site], leaking[site]) for site in sizes},
        "all": row(sum(sizes.values()), sum(leaking.values())),
    }


def _overlaps(sites: Sites, groups: Sequence[Sequence[Place]]) -> list[Finding]:
    findings = []
    # models are selected on validation, so for test it counts as train
    cases: list[tuple[Split, tuple[Split, ...]]] = [("test", ("train", "validation")), ("validation", ("train",))]
    for judged, seen in cases:
        both = [
            [place for place in places if place.split == judged or place.split in seen]
            for places in groups
            if any(place.split == judged for place in places) and any(place.split in seen for place in places)
        ]
        if not both:
            continue
        images = sum(place.split == judged for places in both for place in places)
        size = sum(len(parts[judged].labels) for parts in sites.splits.values() if judged in parts)
        findings.append(
            Finding(
                "group_overlap",
                "error" if judged == "test" else "warning",
                f"{100 * images / size:.1f} % of the {judged} images ({images:,} of {size:,}) share a group (patient, "
                f"lesion) with a training image",
                sites.regroup,
                tuple(tuple(places) for places in both),
            )
        )
    return findings
