"""Metrics of the subgroups of a site's images: sex, age band, device and the like. Small subgroups are withheld."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pfedst.evaluation.bootstrap import Integers, Mask, Numbers
from pfedst.evaluation.site_metrics import site_metrics

NOT_STATED = "not stated"
"""The subgroup of the images whose cell is empty."""
MOST_SUBGROUPS = 20
"""Of one column: more are no subgroups, but names, dates or measurements."""
MOST_LETTERS = 100
"""Of the name of a column or subgroup."""
SMALL = "fewer than {minimum} images, patients or lesions"
HIDING = "its numbers would give away those of a smaller subgroup"


def reasons(minimum: int) -> tuple[str, str]:
    """Return the reasons for which a subgroup is withheld."""
    return SMALL.format(minimum=minimum), HIDING


def subgroup_metrics(
    models: Mapping[str, Numbers],
    targets: Integers,
    units: Integers,
    columns: Mapping[str, tuple[Sequence[str], Integers]],
    minimum: int,
    seed: int,
) -> dict[str, Any]:
    """Return what each model reaches on each subgroup.

    A subgroup of fewer than `minimum` patients or lesions, or of fewer images, is withheld: neither its number of
    images nor a metric is returned. The numbers of the whole site are known, so that those of a single withheld
    subgroup would be the difference to the others: the next larger subgroup is withheld, too, until the withheld ones
    together are large enough.

    Args:
        models: by name the probabilities (N, K) of a model.
        targets: (N,) class indices.
        units: (N,) the number of the patient or lesion of each image, or of the image itself.
        columns: by name of the column, the names of its subgroups, and the index (N,) of each image's.
        minimum: least size of a subgroup, >= 1.
        seed: of the resamples.

    Returns:
        `minimum`; and `columns`: by name, a table for each subgroup that has an image, in the order of the names:
        `name`, and either `withheld`, one of the `reasons`, or what `site_metrics` returns.
    """

    def of(images: Mask) -> dict[str, Any]:
        parts = {model: probabilities[images] for model, probabilities in models.items()}
        return site_metrics(parts, targets[images], units[images], seed)

    found: dict[str, list[dict[str, Any]]] = {}
    for column, (names, codes) in columns.items():
        there = {name: codes == code for code, name in enumerate(names) if (codes == code).any()}
        withheld = _withheld({name: len(np.unique(units[images])) for name, images in there.items()}, minimum)
        found[column] = [
            {"name": name, **({"withheld": withheld[name]} if name in withheld else of(images))}
            for name, images in there.items()
        ]
    return {"minimum": minimum, "columns": found}


def _withheld(sizes: Mapping[str, int], minimum: int) -> dict[str, str]:
    """Return the subgroups of a column that are withheld, with the reason."""
    small, hiding = reasons(minimum)
    found = {name: small for name, size in sizes.items() if size < minimum}
    for name in sorted(sizes.keys() - found.keys(), key=lambda name: (sizes[name], name)):
        if not found or sum(sizes[hidden] for hidden in found) >= minimum:
            break
        found[name] = hiding
    return found
