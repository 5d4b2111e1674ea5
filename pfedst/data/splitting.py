"""Stratified, seeded splits that never divide a group (validation from train, test from all, folds of all)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from pfedst.seeds import derive_seed

Labels = Sequence[int]
Groups = Sequence[str | None]


def split_groups(
    labels: Labels,
    groups: Groups,
    fraction: float,
    seed: int,
    placed: Mapping[str, bool] | None = None,
    fewest: int = 0,
) -> tuple[list[int], list[int]]:
    """Split indices into two ascending lists: the kept part and the part that is cut off.

    The units of the split are groups; an image without a group is a unit of its own. Units are stratified by the class
    of their first image. At least one drawn unit of each class is kept.

    Args:
        labels: class of each image.
        groups: group id of each image, or None.
        fraction: share of units that are cut off, in [0, 1). The number is rounded for each class, so it may be zero
            for a class with few units.
        seed: seed of the draw.
        placed: groups that are not drawn; True if the group is cut off.
        fewest: minimum number of units that are cut off, as far as one drawn unit is kept; the class with the most
            units gives first.
    """
    cut: list[list[int]] = []
    by_class: dict[int, list[list[int]]] = {}
    for members in units_of(groups):
        group = groups[members[0]]
        if placed is not None and group is not None and group in placed:
            cut += [members] if placed[group] else []
        else:
            by_class.setdefault(labels[members[0]], []).append(members)
    left: dict[int, list[list[int]]] = {}
    for label, candidates in by_class.items():
        count = min(round(fraction * len(candidates)), len(candidates) - 1)
        order = [candidates[p] for p in drawn_order(len(candidates), derive_seed(seed, "validation", label))]
        cut, left[label] = cut + order[:count], order[count:]
    while len(cut) < fewest and sum(map(len, left.values())) > 1:
        cut.append(left[max(sorted(left), key=lambda label: len(left[label]))].pop(0))
    chosen = {index for members in cut for index in members}
    return [index for index in range(len(labels)) if index not in chosen], sorted(chosen)


def units_of(groups: Groups) -> list[list[int]]:
    """Return the indices of each unit, in the order of their first image: a group, or an image without a group."""
    units: dict[object, list[int]] = {}
    for index, group in enumerate(groups):
        units.setdefault(("alone", index) if group is None else ("group", group), []).append(index)
    return list(units.values())


def drawn_order(size: int, seed: int) -> list[int]:
    """Return the numbers from 0 to `size - 1` in the order of `torch.randperm` with a CPU generator of this seed.

    Written with NumPy, whose `RandomState` never changes its numbers: `pfedst data init` splits without importing
    torch, and a split does not depend on the version of torch.
    """
    # torch keeps the lower 32 bits of the seed and shuffles with one number of the Mersenne Twister for each place
    drawn = np.random.RandomState(seed % 2**32).randint(0, 2**32, size, dtype=np.uint32).tolist()
    order = list(range(size))
    for place, number in enumerate(drawn[:-1]):
        other = place + number % (size - place)
        order[place], order[other] = order[other], order[place]
    return order


def split_sites(
    sites: Mapping[str, tuple[Labels, Groups]], fraction: float, seed: int, purpose: str, fewest: int = 0
) -> dict[str, tuple[list[int], list[int]]]:
    """Apply `split_groups` to every site. A group of several sites lies on the same side at all of them.

    Such a group is drawn at its first site by name, so the order of the sites changes nothing. If a site would keep no
    image, its first group is kept, at all sites.

    Args:
        sites: labels and groups of the images of each site.
        fraction: share of units that are cut off, in [0, 1).
        seed: seed of the draws.
        purpose: purpose of the split; with the seed and the name of the site it seeds the draw of that site.
        fewest: minimum number of units that are cut off at a site with more units than that.
    """
    staying: dict[str, bool] = {}
    while True:
        found = _split_in_turn(sites, fraction, seed, purpose, staying, fewest)
        # the only group of a site may have been cut off at another site
        emptied = [site for site in sorted(sites) if not found[site][0] and sites[site][0]]
        if not emptied:
            return found
        staying |= {next(group for group in sites[emptied[0]][1] if group is not None and group not in staying): False}


def _split_in_turn(
    sites: Mapping[str, tuple[Labels, Groups]],
    fraction: float,
    seed: int,
    purpose: str,
    staying: Mapping[str, bool],
    fewest: int,
) -> dict[str, tuple[list[int], list[int]]]:
    placed = dict(staying)
    found = {}
    for site in sorted(sites):
        labels, groups = sites[site]
        kept, cut = split_groups(labels, groups, fraction, derive_seed(seed, purpose, site), placed, fewest)
        found[site] = (kept, cut)
        for indices, is_cut in ((kept, False), (cut, True)):
            placed |= {group: is_cut for index in indices if (group := groups[index]) is not None}
    return {site: found[site] for site in sites}


def fold_sites(sites: Mapping[str, tuple[Labels, Groups]], folds: int, seed: int) -> dict[str, list[int]]:
    """Deal the images of every site over folds and return the fold of each image.

    Units and their classes are those of `split_groups`. A group of several sites is in the same fold at all of them: it
    is dealt at its first site by name, so the order of the sites changes nothing. At a site without such groups, the
    numbers of units of a class in two folds differ by at most one, and so do the numbers of all units.

    Args:
        sites: labels and groups of the images of each site.
        folds: number of folds, 2 or more.
        seed: seed of the draws; with the name of a site it seeds the draw of that site.
    """
    placed: dict[str, int] = {}
    found = {}
    for site in sorted(sites):
        labels, groups = sites[site]
        found[site] = _dealt(labels, groups, folds, derive_seed(seed, "folds", site), placed)
        placed |= {group: fold for group, fold in zip(groups, found[site], strict=True) if group is not None}
    return {site: found[site] for site in sites}


def _dealt(labels: Labels, groups: Groups, folds: int, seed: int, placed: Mapping[str, int]) -> list[int]:
    """Return the fold of each image of a site; `placed` holds the folds of groups that are not dealt."""
    chosen = [0] * len(labels)
    by_class: dict[int, list[list[int]]] = {}
    of_class: dict[int, list[int]] = {}
    of_site = [0] * folds
    for members in units_of(groups):
        label, group = labels[members[0]], groups[members[0]]
        of_class.setdefault(label, [0] * folds)
        if group is None or group not in placed:
            by_class.setdefault(label, []).append(members)
            continue
        fold = placed[group]
        of_class[label][fold] += 1
        of_site[fold] += 1
        for index in members:
            chosen[index] = fold
    rank = drawn_order(folds, derive_seed(seed, "order of folds"))
    for label, units in sorted(by_class.items()):
        counts = of_class[label]
        for place in drawn_order(len(units), derive_seed(seed, "units", label)):
            # the fold with the fewest units of the class; of these, the one with the fewest of the site
            fold = min(range(folds), key=lambda fold: (counts[fold], of_site[fold], rank[fold]))
            counts[fold] += 1
            of_site[fold] += 1
            for index in units[place]:
                chosen[index] = fold
    return chosen
