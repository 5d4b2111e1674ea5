"""Findings on names, and on the files that a reader does not use."""

from __future__ import annotations

from collections import defaultdict

from pfedst.data.audit.findings import Checked, Finding
from pfedst.data.left_out import OTHER_IMAGES, left_out_line
from pfedst.data.sites import Sites, Split
from pfedst.errors import listed
from pfedst.names import alike_names

HOW = "differ only in case, in white space, _ or - between words, or in the form of a letter or number"


def name_findings(sites: Sites) -> Checked:
    """Find names that look alike, and report the names of several spellings that were read as one."""
    remedy = f"write each in one way in {sites.read_from}" if sites.read_from else "write each in one way"
    findings = []
    for kind, names in (("classes", sites.class_names), ("sites", sites.splits)):
        if alike := alike_names(names):
            pairs = "; ".join(" and ".join(f'"{name}"' for name in together) for together in alike)
            findings.append(Finding("names_alike", "error", f"names of {kind} {HOW}: {pairs}", remedy))
    findings += _alike_groups(sites, remedy)
    if sites.respelled:
        findings.append(
            Finding(
                "names_respelled",
                "note",
                f"written in several ways, and read as one name: {listed(sites.respelled)}",
                "nothing: white space around a name and the form of its letters (Unicode NFC) make no difference",
            )
        )
    return findings, None


def _alike_groups(sites: Sites, remedy: str) -> list[Finding]:
    """Find groups that look alike: in two splits an error, since they may be one patient."""
    splits: dict[str, set[Split]] = defaultdict(set)
    for _, split, part in sites.parts():
        for group in part.groups:
            if group is not None:
                splits[group].add(split)
    alike = alike_names(splits)
    torn = [together for together in alike if len(set().union(*(splits[name] for name in together))) > 1]
    if not alike:
        return []
    pair = " and ".join(f'"{name}"' for name in (torn or alike)[0])
    where = f", and {len(torn):,} of them in two splits" if torn else ""
    return [
        Finding(
            "names_alike",
            "error" if torn else "warning",
            f"names of groups {HOW}: {len(alike):,} groups are written in several ways{where}, such as {pair}",
            f"if they are one patient or lesion, {remedy}",
        )
    ]


def left_out_findings(sites: Sites) -> Checked:
    """Report the files and folders that the reader does not use, for each site or for the data set."""
    findings = [
        Finding(
            "left_out",
            "warning" if OTHER_IMAGES in counts else "note",
            left_out_line(place, counts),
            "check that no image is missing",
        )
        for place, counts in sites.left_out.items()
    ]
    return findings, {place: dict(counts) for place, counts in sites.left_out.items()} or None
