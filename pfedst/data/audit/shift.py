"""How differently the sites' images look to the encoder: whether a classifier can tell two sites apart.

Source: Lopez-Paz and Oquab, Revisiting Classifier Two-Sample Tests, ICLR 2017.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Sequence

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from pfedst.data.audit.findings import Checked, Finding
from pfedst.data.datasets import SiteDataset, evaluation_transform
from pfedst.data.sites import LabelledImages, Place, Sites
from pfedst.data.threads import track
from pfedst.encoders import Encoder
from pfedst.seeds import derive_seed, generator

FOLDS = 4
RIDGE = 1.0
FEWEST = 8


def site_shift(
    sites: Sites, encoder: Encoder, images_per_site: int, unreadable: Collection[Place] = frozenset()
) -> Checked:
    """For every two sites, how well a linear classifier on the encoder's embedding tells them apart.

    Both sites give as many training images of a class, so that what is told is how images look and not which classes
    they show.

    Args:
        sites: read and checked.
        encoder: gives pooled embeddings (B, E).
        images_per_site: at most so many of each site are encoded, drawn evenly over its classes.
        unreadable: images that are left out.

    Returns:
        Findings, and in `told_apart` the balanced accuracy of every pair, cross-validated: 0.5 where sites look
        alike, 1 where they look quite different; None where two sites share too few images of a class.
    """
    embeddings: dict[str, Tensor] = {}
    labels: dict[str, list[int]] = {}
    for site in track(list(sites.splits), "comparing sites"):
        whole = sites.splits[site]["train"]
        part = whole.subset([r for r in range(len(whole.labels)) if Place(site, "train", r) not in unreadable])
        sample = part.subset(_evenly(part.labels, images_per_site, derive_seed(0, "site shift", site)))
        embeddings[site], labels[site] = _embedded(sample, encoder), list(sample.labels)
    found: dict[str, dict[str, float | None]] = {site: {} for site in sites.splits}
    for one, other in itertools.combinations(sites.splits, 2):
        rows = _matched(labels[one], labels[other])
        told = None
        if len(rows) >= FEWEST:
            told = told_apart(
                embeddings[one][[a for a, _ in rows]],
                embeddings[other][[b for _, b in rows]],
                derive_seed(0, "folds", one, other),
            )
        found[one][other] = found[other][one] = told
    figures = {"encoder": encoder.label, "images_per_site": images_per_site, "told_apart": found}
    return _finding(found, images_per_site, encoder.label), figures


def _embedded(sample: LabelledImages, encoder: Encoder) -> Tensor:
    """(n, E) of length one."""
    transform = evaluation_transform(encoder.preprocessing)
    dataset = SiteDataset(sample.source, sample.labels, transform, transform)
    rows = []
    with torch.no_grad():
        for images, _ in DataLoader(dataset, batch_size=16, generator=generator(0)):
            rows.append(encoder.extract(images, "pooled").tensors[0].float())
    return torch.nn.functional.normalize(torch.cat(rows), dim=1)


def told_apart(one: Tensor, other: Tensor, seed: int) -> float:
    """Cross-validated balanced accuracy of a ridge classifier between two sets of embeddings.

    Args:
        one, other: (n, E) each.
        seed: of the folds.
    """
    order = torch.randperm(len(one), generator=generator(seed))
    fold = torch.empty(len(one), dtype=torch.long)
    fold[order] = torch.arange(len(one)) % FOLDS
    inputs = torch.cat([one, other]).double()
    targets = torch.cat([torch.ones(len(one)), -torch.ones(len(other))]).double()
    folds = torch.cat([fold, fold])  # a pair of one class stays together
    right = 0
    for held_out in range(FOLDS):
        fitted, judged = folds != held_out, folds == held_out
        mean, scale = inputs[fitted].mean(0), inputs[fitted].std(0) + 1e-8
        known, asked = (inputs[fitted] - mean) / scale, (inputs[judged] - mean) / scale
        # dual form: there are fewer images than dimensions
        kernel = known @ known.T / known.shape[1]
        weights = torch.linalg.solve(kernel + RIDGE * torch.eye(len(kernel)), targets[fitted])
        scores = asked @ known.T @ weights / known.shape[1]
        right += int(((scores > 0) == (targets[judged] > 0)).sum())
    return right / len(targets)


def _evenly(labels: Sequence[int], count: int, seed: int) -> list[int]:
    """Indices of at most `count` images, in turns over the classes, in a seeded order."""
    order = torch.randperm(len(labels), generator=generator(seed)).tolist()
    turns: dict[int, int] = {}
    ranked: list[tuple[int, int, int]] = []
    for index in order:
        turn = turns[labels[index]] = turns.get(labels[index], -1) + 1
        ranked.append((turn, len(ranked), index))
    return sorted(index for _, _, index in sorted(ranked)[:count])


def _matched(one: Sequence[int], other: Sequence[int]) -> list[tuple[int, int]]:
    """Pairs of images of one class, each image once."""
    pairs: list[tuple[int, int]] = []
    for label in sorted(set(one) & set(other)):
        pairs += zip(
            [index for index, found in enumerate(one) if found == label],
            [index for index, found in enumerate(other) if found == label],
            strict=False,
        )
    return pairs


def _finding(found: dict[str, dict[str, float | None]], images: int, encoder: str) -> list[Finding]:
    pairs = {
        (one, other): value
        for one, row in found.items()
        for other, value in row.items()
        if one < other and value is not None
    }
    if not pairs:
        return []
    ends = [max(pairs, key=lambda p: pairs[p]), min(pairs, key=lambda p: pairs[p])][: len(pairs)]
    told = ", ".join(f"{one} and {other} in {100 * pairs[one, other]:.0f} % of images" for one, other in ends)
    return [
        Finding(
            "site_shift",
            "note",
            f"a linear classifier tells the sites apart by the encoder's embedding, classes matched: {told} (chance "
            f"50 %, at most {images} images a site, {encoder})",
            "where sites look different, expect one shared model to fit some of them badly: report every site",
        )
    ]
