"""Run all checks and collect them in one report."""

from __future__ import annotations

from pfedst.data.audit.counts import class_findings, group_findings, lone_class_findings, skew_findings
from pfedst.data.audit.duplicates import duplicate_findings
from pfedst.data.audit.facts import Seen
from pfedst.data.audit.findings import AuditReport, Checked, most_severe_first
from pfedst.data.audit.images import image_findings
from pfedst.data.audit.names import left_out_findings, name_findings
from pfedst.data.audit.shift import site_shift
from pfedst.data.sites import Sites
from pfedst.encoders import Encoder


def audit(
    sites: Sites, label: str, seen: Seen | None, encoder: Encoder | None = None, images_per_site: int = 64
) -> AuditReport:
    """Run every check for which the arguments suffice.

    Args:
        sites: sites, read and checked, with their validation splits.
        label: description of the data.
        seen: result of `scan`, or None to check the tables alone.
        encoder: encoder to measure the distance between sites. Without an encoder, or with one that has no embedding,
            this check is skipped.
        images_per_site: number of images of each site for the encoder.
    """
    checked: dict[str, Checked] = {
        "names": name_findings(sites),
        "classes": class_findings(sites),
        "lone_classes": lone_class_findings(sites),
        "groups": group_findings(sites),
        "label_skew": skew_findings(sites),
        "left_out": left_out_findings(sites),
    }
    if seen is not None:
        checked["images"] = image_findings(sites, seen.facts)
        checked["duplicates"] = duplicate_findings(sites, seen)
        if encoder is not None and "pooled" in encoder.offers and len(sites.splits) > 1:
            unreadable = {place for place, found in seen.facts.items() if found.error}
            checked["site_shift"] = site_shift(sites, encoder, images_per_site, unreadable)
    findings = [finding for found, _ in checked.values() for finding in found]
    figures = {name: figure for name, (_, figure) in checked.items() if figure is not None}
    return AuditReport(label, sites, seen is not None, most_severe_first(findings), figures)
