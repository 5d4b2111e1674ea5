"""Measure how differently the images of two sites look to the encoder, with a classifier of the site.

Source: Lopez-Paz and Oquab, Revisiting Classifier Two-Sample Tests, ICLR 2017.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Sequence

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from pfedst.data.audit.findings import Checked, Finding
from pfedst.data.datasets import SiteDataset
from pfedst.data.sampling import InOrder
from pfedst.data.sites import LabelledImages, Place, Sites
from pfedst.data.threads import track
from pfedst.data.transforms import ImageTransform
from pfedst.encoders import Encoder
from pfedst.seeds import derive_seed, generator

FOLDS = 4
RIDGE = 1.0
FEWEST = 8
IMAGES_A_STEP = 16


def site_shift(
    sites: Sites, encoder: Encoder, images_per_site: int, unreadable: Collection[Place] = frozenset()
) -> Checked:
    """Measure for every two sites how well a linear classifier on the encoder's embedding separates them.

    Both sites contribute equally many training images of each class, so the result depends on how images look and not
    on the classes they show.

    Args:
        sites: sites, read and checked.
        encoder: encoder with pooled embeddings (B, E).
        images_per_site: maximum number of encoded images of each site, drawn evenly over its classes.
        unreadable: images to exclude.

    Returns:
        Findings, and in `told_apart` the cross-validated balanced accuracy of every pair: 0.5 if the sites look alike,
            1 if they look completely different, None if two sites share too few images of a class.
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
        accuracy = None
        if len(rows) >= FEWEST:
            accuracy = site_accuracy(
                embeddings[one][[a for a, _ in rows]],
                embeddings[other][[b for _, b in rows]],
                derive_seed(0, "folds", one, other),
            )
        found[one][other] = found[other][one] = accuracy
    figures = {"encoder": encoder.label, "images_per_site": images_per_site, "told_apart": found}
    return _finding(found, images_per_site, encoder.label), figures


def _embedded(sample: LabelledImages, encoder: Encoder) -> Tensor:
    """Return unit embeddings (n, E)."""
    dataset = SiteDataset(sample.source, sample.labels, ImageTransform(encoder.preprocessing))
    rows = []
    with torch.no_grad():
        batches = InOrder(len(dataset), IMAGES_A_STEP)
        for images, _ in DataLoader(dataset, None, sampler=batches, generator=generator(0)):
            rows.append(encoder.extract(images, "pooled").tensors[0].float())
    return torch.nn.functional.normalize(torch.cat(rows), dim=1)


def site_accuracy(one: Tensor, other: Tensor, seed: int) -> float:
    """Return the cross-validated balanced accuracy of a ridge classifier between two sets of embeddings.

    Args:
        one, other: (n, E) each.
        seed: seed of the folds.
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
        known, unknown = (inputs[fitted] - mean) / scale, (inputs[judged] - mean) / scale
        # dual form: there are fewer images than dimensions
        kernel = known @ known.T / known.shape[1]
        weights = torch.linalg.solve(kernel + RIDGE * torch.eye(len(kernel)), targets[fitted])
        scores = unknown @ known.T @ weights / known.shape[1]
        right += int(((scores > 0) == (targets[judged] > 0)).sum())
    return right / len(targets)


def _evenly(labels: Sequence[int], count: int, seed: int) -> list[int]:
    """Return indices of at most `count` images, taken from the classes in turn, in a seeded order."""
    order = torch.randperm(len(labels), generator=generator(seed)).tolist()
    turns: dict[int, int] = {}
    ranked: list[tuple[int, int, int]] = []
    for index in order:
        turn = turns[labels[index]] = turns.get(labels[index], -1) + 1
        ranked.append((turn, len(ranked), index))
    return sorted(index for _, _, index in sorted(ranked)[:count])


def _matched(one: Sequence[int], other: Sequence[int]) -> list[tuple[int, int]]:
    """Return pairs of images of one class; each image occurs once."""
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
    extremes = ", ".join(f"{one} and {other} in {100 * pairs[one, other]:.0f} % of images" for one, other in ends)
    return [
        Finding(
            "site_shift",
            "note",
            f"a linear classifier tells the sites apart by the encoder's embedding, classes matched: {extremes} "
            f"(chance 50 %, at most {images} images a site, {encoder})",
            "where sites look different, expect one shared model to fit some of them badly: report every site",
        )
    ]
