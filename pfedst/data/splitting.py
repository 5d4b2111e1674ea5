"""Cutting one part from another (validation from train, test from all): stratified, seeded, never splitting a group."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from pfedst.seeds import derive_seed, generator


def split_groups(
    labels: Sequence[int], groups: Sequence[str | None], fraction: float, seed: int
) -> tuple[list[int], list[int]]:
    """Indices of what stays and of what is cut, each ascending.

    Units are groups; an image without a group is a unit of its own. Units are stratified by the class of their first
    image. Of every class at least one unit stays.

    Args:
        labels: class of each image.
        groups: group id of each image, or None.
        fraction: share of units that are cut, in [0, 1); rounded a class, so that a class with few units
            may have none.
        seed: of the draw.
    """
    units: dict[object, list[int]] = {}
    for index, group in enumerate(groups):
        units.setdefault(("alone", index) if group is None else ("group", group), []).append(index)
    by_class: dict[int, list[list[int]]] = {}
    for members in units.values():
        by_class.setdefault(labels[members[0]], []).append(members)
    cut: list[int] = []
    for label, candidates in by_class.items():
        count = min(round(fraction * len(candidates)), len(candidates) - 1)
        order = torch.randperm(len(candidates), generator=generator(derive_seed(seed, "validation", label)))
        for position in order[:count].tolist():
            cut += candidates[position]
    chosen = set(cut)
    return [index for index in range(len(labels)) if index not in chosen], sorted(cut)
