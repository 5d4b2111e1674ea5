"""Claims that a comparison names before its runs, and their values in the summaries of runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pfedst.errors import StateError
from pfedst.evaluation.stated import STATED

OWN_PRIOR = " + own prior"
"""Ends the label of a derived row: the model of another row, with the class prior of each site."""
PRIORS = tuple(STATED)
"""Class priors at which a measure may be named; without one it is that of the predictions as they are."""


@dataclass(frozen=True)
class Claim:
    """A comparison of two rows by one measure, named before the runs.

    Attributes:
        row: label of the row.
        against: label of the row that is subtracted.
        measure: metric of the personal model, such as `balanced_accuracy`.
        prior: class prior at which the measure is taken, of `PRIORS`; None for predictions as they are.
    """

    row: str
    against: str
    measure: str
    prior: str | None = None

    def to_json(self) -> dict[str, str | None]:
        """Return the claim as `comparison.json` holds it."""
        return {"row": self.row, "against": self.against, "measure": self.measure, "prior": self.prior}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Claim:
        """Return the claim that `comparison.json` holds."""
        return cls(content["row"], content["against"], content["measure"], content["prior"])


def source_row(label: str) -> str:
    """Return the label of the row whose runs a row of a claim is read from."""
    return label.removesuffix(OWN_PRIOR)


def claim_value(summary: Mapping[str, Any], claim: Claim, site: str) -> float | None:
    """Return the value of a claim's measure at a site; None if it is not defined there.

    Raises:
        StateError: If the summary does not hold the measure at the prior of the claim.
    """
    found = summary["personal"]["clients"]
    if claim.prior is not None:
        try:
            stated = summary["at_priors"]["last"]
            found = stated[summary["protocol"]["split"]]["personal"][claim.prior]["clients"]
        except KeyError as error:
            raise StateError(
                f"{summary['name']}: summary.json has no metrics at the class prior {claim.prior}, which a claim of "
                f"the comparison names; leave prior out of the claim, or run it again with a version that writes them"
            ) from error
        if stated["round"] != summary["protocol"]["round"]:
            raise StateError(
                f"{summary['name']}: metrics at the class prior {claim.prior}, which a claim of the comparison names, "
                f"are those of the last round alone; use --round last"
            )
    if site not in found:  # it could not be evaluated
        return None
    if claim.measure not in found[site]:
        reason = f" ({found[site]['reason']})" if "reason" in found[site] else ""
        raise StateError(
            f"{summary['name']}: summary.json has no {claim.measure} of {site}{reason}, which a claim of the "
            f"comparison names"
        )
    value: float | None = found[site][claim.measure]
    return value


def difference(
    claim: Claim, row: Sequence[Mapping[str, Any]], against: Sequence[Mapping[str, Any]], sites: Sequence[str]
) -> float | None:
    """Return the difference of a claim on one fold: the mean over sites, of the means over the runs of each row.

    Args:
        claim: the claim.
        row: summaries of the runs of the row on this fold, which differ in their seed.
        against: the same of the other row.
        sites: sites that are counted; a site without a value on one side is left out.

    Returns:
        The difference; None without such a site.
    """
    differences = []
    for site in sites:
        sides = []
        for summaries in (row, against):
            values = [value for summary in summaries if (value := claim_value(summary, claim, site)) is not None]
            sides.append(sum(values) / len(values) if values else None)
        if sides[0] is not None and sides[1] is not None:
            differences.append(sides[0] - sides[1])
    return sum(differences) / len(differences) if differences else None
