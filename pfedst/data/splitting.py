"""Cutting one part from another (validation from train, test from all): stratified, seeded, never splitting a group."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from pfedst.seeds import derive_seed, generator

Labels = Sequence[int]
Groups = Sequence[str | None]


def split_groups(
    labels: Labels, groups: Groups, fraction: float, seed: int, placed: Mapping[str, bool] | None = None
) -> tuple[list[int], list[int]]:
    """Indices of what stays and of what is cut, each ascending.

    Units are groups; an image without a group is a unit of its own. Units are stratified by the class of their first
    image. Of every class at least one of the units that are drawn stays.

    Args:
        labels: class of each image.
        groups: group id of each image, or None.
        fraction: share of units that are cut, in [0, 1); rounded a class, so that a class with few units
            may have none.
        seed: of the draw.
        placed: groups that are not drawn: whether each is cut.
    """
    units: dict[object, list[int]] = {}
    for index, group in enumerate(groups):
        units.setdefault(("alone", index) if group is None else ("group", group), []).append(index)
    cut: list[int] = []
    by_class: dict[int, list[list[int]]] = {}
    for members in units.values():
        group = groups[members[0]]
        if placed is not None and group is not None and group in placed:
            cut += members if placed[group] else []
        else:
            by_class.setdefault(labels[members[0]], []).append(members)
    for label, candidates in by_class.items():
        count = min(round(fraction * len(candidates)), len(candidates) - 1)
        order = torch.randperm(len(candidates), generator=generator(derive_seed(seed, "validation", label)))
        for position in order[:count].tolist():
            cut += candidates[position]
    chosen = set(cut)
    return [index for index in range(len(labels)) if index not in chosen], sorted(cut)


def split_sites(
    sites: Mapping[str, tuple[Labels, Groups]], fraction: float, seed: int, purpose: str
) -> dict[str, tuple[list[int], list[int]]]:
    """`split_groups` of every site, drawn for itself; a group of several sites lies on one side at all of them.

    It is drawn at the first of them by name, so that the order of sites changes nothing. Where that would leave a site
    with nothing, its first group stays, at all sites.

    Args:
        sites: labels and groups of the images of each.
        fraction: share of units that are cut, in [0, 1).
        seed: of the draws.
        purpose: of the cut, which with the seed and the site's name seeds its draw.
    """
    staying: dict[str, bool] = {}
    while True:
        found = _split_in_turn(sites, fraction, seed, purpose, staying)
        # a group that is all that a site has may have been cut at another site
        emptied = [site for site in sorted(sites) if not found[site][0] and sites[site][0]]
        if not emptied:
            return found
        staying |= {next(group for group in sites[emptied[0]][1] if group is not None and group not in staying): False}


def _split_in_turn(
    sites: Mapping[str, tuple[Labels, Groups]], fraction: float, seed: int, purpose: str, staying: Mapping[str, bool]
) -> dict[str, tuple[list[int], list[int]]]:
    placed = dict(staying)
    found = {}
    for site in sorted(sites):
        labels, groups = sites[site]
        kept, cut = split_groups(labels, groups, fraction, derive_seed(seed, purpose, site), placed)
        found[site] = (kept, cut)
        for indices, is_cut in ((kept, False), (cut, True)):
            placed |= {group: is_cut for index in indices if (group := groups[index]) is not None}
    return {site: found[site] for site in sites}
