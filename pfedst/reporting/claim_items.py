"""Which items of the CLAIM 2024 checklist a card of a run answers, and where.

CLAIM: Checklist for Artificial Intelligence in Medical Imaging, update of 2024 (doi:10.1148/ryai.240300). Topics are in
our words. An item that the run has not recorded is never marked as answered.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Status = Literal["answered", "in part", "to be stated"]
STATED = "TO BE STATED"


@dataclass(frozen=True)
class Item:
    """An item of the checklist.

    Attributes:
        number: in the checklist.
        topic: what it is about.
        status: `answered` by the card, `in part`, or `to be stated` by people.
        where: section of the card; empty if there is none.
    """

    number: int
    topic: str
    status: Status
    where: str = ""


PEOPLE = {
    1: "title that names the kind of model",
    2: "abstract",
    3: "medical background and role of the model",
    4: "aims and hypotheses",
    5: "prospective or retrospective",
    6: "goal of the study",
    8: "source of the data",
    10: "selection of the data",
    11: "de-identification",
    13: "missing data",
    14: "acquisition",
    15: "reference standard",
    16: "reason for the reference standard",
    17: "annotators",
    18: "variability of annotations",
    21: "sample size",
    27: "ensembles",
    31: "explanation of predictions",
    34: "registration and protocol",
    35: "flow of patients",
    36: "demographics",
    40: "failures, as a person reads them",
    41: "limitations",
    42: "implications for practice",
    44: "funding",
}
"""Items that a run cannot answer."""
OF_DATA_CARD = {
    8: "source",
    10: "eligibility",
    11: "ethics",
    14: "devices",
    15: "reference_standard",
    17: "annotators",
    36: "population",
    44: "funding",
}
"""Items on which an entry of the data card says something."""


def claim_items(summary: Mapping[str, Any], data_card: Mapping[str, str]) -> list[Item]:
    """Return all items in their order; the status depends on what the run has recorded.

    Args:
        summary: in the present format.
        data_card: entries that people gave.
    """
    protocol, audit = summary["protocol"], summary["protocol"].get("data_audit")
    grouped = audit is not None and "not_audited" not in audit and "groups_unknown" not in audit["codes"]
    apart = bool(protocol["held_out_sites"] or protocol.get("new_sites"))
    means = summary["personal"]["mean"]
    of_sites = any(of["low"] is not None for site in summary["intervals"].values() for of in site["personal"].values())
    of_classes = any(
        of["sensitivity"]["low"] is not None
        for site in summary["class_metrics"].values()
        for of in site.get("personal", ())
    )
    environment = summary.get("environment")

    def known(condition: object, status: Status = "answered") -> Status:
        return status if condition else "to be stated"

    found = [
        Item(7, "data of the study", "in part", "Data"),
        Item(9, "preprocessing of images", "in part", "Model"),
        Item(12, "data elements", "in part", "Data"),
        Item(19, "partition into train, validation and test", "answered", "Data"),
        Item(20, "no patient in two parts", known(grouped), "Data"),
        Item(22, "architecture", "answered", "Model"),
        Item(23, "software and versions", known(environment), "Software and hardware"),
        Item(24, "weights at the start", "answered", "Model"),
        Item(25, "training", "answered", "Training"),
        Item(26, "choice of the model that is reported", "answered", "Training"),
        Item(28, "metrics", "answered", "Results"),
        Item(29, "uncertainty", known(of_sites or of_classes), "Results" if of_sites else "Results by class"),
        Item(30, "robustness", known(len(protocol["samples"]) > 1, "in part"), "Results"),
        Item(32, "test on images of the same hospitals", "answered", "Results"),
        Item(33, "test on images of other hospitals", known(apart), "Results"),
        Item(37, "results of each hospital", "answered", "Results"),
        Item(38, "discrimination", known(means.get("auroc") is not None), "Results"),
        Item(39, "errors by class", known(summary["personal"].get("counts")), "Results by class"),
        Item(43, "code and how to run it again", "in part", "Software and hardware"),
    ]
    numbers = {item.number for item in found}
    for number in range(1, 45):
        if number in numbers:
            continue
        said = OF_DATA_CARD.get(number) in data_card
        found.append(Item(number, PEOPLE[number], "in part" if said else "to be stated", "Data card" if said else ""))
    return [
        Item(item.number, item.topic, item.status, item.where if item.status != "to be stated" else "")
        for item in sorted(found, key=lambda item: item.number)
    ]
