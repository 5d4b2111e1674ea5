"""Test whether a method is better than a reference.

The tests use paired differences over (site, seed), with Wilcoxon, Holm and a bootstrap.

Demsar (2006) recommends the signed-rank test for two classifiers over several data sets, and Holm's correction if
several are compared with one. The test assumes independent values, but the sites of a seed share their training. If a
lucky seed lifts every site, p-values over (site, seed) pairs are too small (simulated with 4 sites, 5 seeds and 3
comparisons: a false claim in 4 % of studies without correlation within a seed, in 28 % with a correlation of 0.5).
Therefore the same test is also made over seeds, each with the mean over its sites, and a claim needs both.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

LEVEL = 0.05
"""Significance level, two-sided, after Holm."""
RESAMPLES = 10_000
"""Number of bootstrap resamples."""
DIGITS = 12
"""Decimals to which differences are rounded, so that floating-point noise does not break ties or zeros."""

Pair = tuple[str, int]  # site and seed


@dataclass(frozen=True)
class Difference:
    """Difference of a row to the reference over the pairs that both have; positive if the row is larger.

    With one seed there are no p-values and no interval: they would say nothing about the randomness of training.
    """

    pairs: int
    """Number of pairs with a value on both sides."""
    seeds: int
    """Number of distinct seeds among the pairs."""
    mean: float | None
    """Mean of row - reference; None without pairs."""
    interval: tuple[float, float] | None
    """See `bootstrap_interval`."""
    effect: float | None
    """See `rank_biserial`."""
    p_value: float | None
    """p-value over the pairs, see `wilcoxon`."""
    p_holm: float | None
    """`p_value`, adjusted over all rows that are compared with this reference."""
    p_seeds: float | None
    """p-value over seeds, each with the mean over its sites."""
    p_seeds_holm: float | None
    """`p_seeds`, adjusted."""
    significant: bool
    """True if `p_holm` and `p_seeds_holm` are below `LEVEL` and there are enough seeds for a claim."""


def holm(p_values: Sequence[float]) -> list[float]:
    """Return adjusted p-values (Holm 1979), in their order. They bound the chance of any false claim among them."""
    if not all(0 <= p <= 1 for p in p_values):
        raise ValueError(f"p-values are between 0 and 1, not {list(p_values)}")
    adjusted, largest = [0.0] * len(p_values), 0.0
    for done, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - done) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def wilcoxon(differences: Sequence[float]) -> float | None:
    """Return the exact two-sided p-value of the signed-rank test (Wilcoxon 1945), or None if all differences are zero.

    Zeros are ranked and then dropped (Pratt 1959). If zeros were dropped first, raising a difference could raise the
    evidence against it. Splitting their ranks ("zsplit") shifts both sides by a constant and gives the same exact
    p-value.
    """
    signed = _signed_ranks(differences)
    ranks = np.abs(signed[signed != 0])
    if not len(ranks):
        return None
    plus, minus = signed[signed > 0].sum(), -signed[signed < 0].sum()
    # Each rank is on the positive side with probability 1/2, so the distribution of the sum is a convolution; twice a
    # rank is an integer. scipy.stats has the same distribution without ties and zeros only, and its import takes longer
    # than the rest of a report without figures.
    doubled = np.rint(2 * ranks).astype(int)
    chances = np.zeros(round(2 * min(plus, minus)) + 1)  # of sums up to the smaller one
    chances[0] = 1.0
    for rank in doubled:
        chances[rank:] += chances[:-rank].copy()
        chances /= 2
    return min(1.0, 2 * float(chances.sum()))


def rank_biserial(differences: Sequence[float]) -> float | None:
    """Return the matched-pairs rank-biserial correlation (Kerby 2014).

    It is the favourable minus the unfavourable share of the ranks.

    In [-1, 1]; None if all differences are zero. Zeros are ranked as in `wilcoxon` and favour neither side, so 1 means
    that the row is larger in every pair.
    """
    signed = _signed_ranks(differences)
    if not signed.any():
        return None
    return float(signed.sum()) / (len(signed) * (len(signed) + 1) / 2)


def bootstrap_interval(differences: Sequence[float], seeds: Sequence[int]) -> tuple[float, float] | None:
    """Return a 95 % interval of the mean difference over training seeds, on these sites and test images.

    Whole seeds are drawn, each with all its sites: the sites of a seed come from one training, and drawing single pairs
    would treat them as independent. The interval makes no claim about other sites: a few hospitals are not a sample of
    all. Percentiles are used (Efron 1979), since BCa is undefined if the seeds agree and estimates its acceleration
    from as many values as there are seeds. With few seeds the interval is too narrow (simulated: covers 91 % with ten,
    85 % with five, 75 % with three).

    Args:
        differences: one value for each pair.
        seeds: seeds of the same pairs.

    Returns:
        Lower and upper end, independent of the order of the pairs; None with fewer than two seeds.
    """
    groups: dict[int, list[float]] = {}
    for difference, seed in zip(_rounded(differences), seeds, strict=True):
        groups.setdefault(seed, []).append(difference)
    if len(groups) < 2:
        return None
    sums = np.array([math.fsum(groups[seed]) for seed in sorted(groups)])
    counts = np.array([len(groups[seed]) for seed in sorted(groups)])
    # a separate generator: the interval of a row does not depend on other rows or earlier calls
    drawn = np.random.default_rng(0).integers(len(groups), size=(RESAMPLES, len(groups)))
    means = sums[drawn].sum(1) / counts[drawn].sum(1)
    lower, upper = np.quantile(means, [0.025, 0.975])
    return float(lower), float(upper)


def fewest_differences(comparisons: int, level: float = LEVEL) -> int:
    """Return the least number of differences with which a Wilcoxon p-value can be below the level after Holm.

    The smallest two-sided p-value of n differences is 2 / 2**n, and Holm multiplies the smallest of all by the number
    of comparisons.
    """
    if comparisons < 1 or not 0 < level <= 1:
        raise ValueError(f"need a comparison and a level in (0, 1], not {comparisons} and {level}")
    number = 1
    while comparisons * 2 / 2**number >= level:
        number += 1
    return number


def differences_to(reference: str, rows: Mapping[str, Mapping[Pair, float | None]]) -> dict[str, Difference]:
    """Compare every other row with `rows[reference]`, in the order of the rows.

    A pair that is missing or None on one side is excluded; the counts report this. Holm counts every compared row, also
    rows without a p-value: running further seeds only for the best row of one seed still makes all those comparisons.

    Raises:
        ValueError: If a value is not finite. The message names the row and the pair.
        KeyError: If there is no such reference.
    """
    for name, row in rows.items():
        for pair, value in row.items():
            if value is not None and not math.isfinite(value):
                raise ValueError(f"{name!r} has {value} at site {pair[0]!r} with seed {pair[1]}")
    base = rows[reference]
    compared = {name: _paired(row, base) for name, row in rows.items() if name != reference}
    seeds = {name: {seed for _, seed in paired} for name, paired in compared.items()}
    over_pairs = _tests({n: list(paired.values()) if len(seeds[n]) > 1 else [] for n, paired in compared.items()})
    over_seeds = _tests({n: _seed_means(paired) if len(seeds[n]) > 1 else [] for n, paired in compared.items()})
    least, found = fewest_differences(max(1, len(compared))), dict[str, Difference]()
    for name, paired in compared.items():
        values = list(paired.values())
        adjusted = (over_pairs[name][1], over_seeds[name][1])
        found[name] = Difference(
            pairs=len(values),
            seeds=len(seeds[name]),
            mean=math.fsum(values) / len(values) if values else None,
            interval=bootstrap_interval(values, [seed for _, seed in paired]),
            effect=rank_biserial(values),
            p_value=over_pairs[name][0],
            p_holm=adjusted[0],
            p_seeds=over_seeds[name][0],
            p_seeds_holm=adjusted[1],
            # Holm alone would let a row with fewer seeds pass after others; this way the minimum is known beforehand
            significant=len(seeds[name]) >= least and all(p is not None and p < LEVEL for p in adjusted),
        )
    return found


def _tests(differences: Mapping[str, Sequence[float]]) -> dict[str, tuple[float | None, float | None]]:
    """Return the p-value of every row and its Holm adjustment; None without differences."""
    p_values = {name: wilcoxon(values) for name, values in differences.items()}
    adjusted = holm([1.0 if p is None else p for p in p_values.values()])
    return {
        name: (p, None if p is None else p_holm) for (name, p), p_holm in zip(p_values.items(), adjusted, strict=True)
    }


def _seed_means(paired: Mapping[Pair, float]) -> list[float]:
    """Return the mean over the sites of each seed."""
    by_seed: dict[int, list[float]] = {}
    for (_, seed), value in paired.items():
        by_seed.setdefault(seed, []).append(value)
    return [math.fsum(values) / len(values) for _, values in sorted(by_seed.items())]


def _paired(row: Mapping[Pair, float | None], base: Mapping[Pair, float | None]) -> dict[Pair, float]:
    """Return row - base for pairs with a value on both sides."""
    pairs = ((pair, row[pair], base.get(pair)) for pair in sorted(row))
    return {pair: round(float(x) - float(y), DIGITS) for pair, x, y in pairs if x is not None and y is not None}


def _rounded(differences: Sequence[float]) -> list[float]:
    if not all(math.isfinite(d) for d in differences):
        raise ValueError(f"differences are finite, not {list(differences)}")
    return [round(float(d), DIGITS) for d in differences]  # numpy's round overflows at large values


def _signed_ranks(differences: Sequence[float]) -> NDArray[np.float64]:
    """Return the mean ranks of the absolute differences, zeros included, with the sign of the difference."""
    values = np.array(_rounded(differences), dtype=np.float64)
    _, group, sizes = np.unique(np.abs(values), return_inverse=True, return_counts=True)
    mean_ranks = np.cumsum(sizes) - (sizes - 1) / 2
    signed: NDArray[np.float64] = np.sign(values) * mean_ranks[group]
    return signed
