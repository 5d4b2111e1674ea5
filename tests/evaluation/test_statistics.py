"""Statistics against scipy, by hand and by going through every sign or resample; few seeds and pairs claim nothing."""

import itertools
import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from pfedst.evaluation.statistics import (
    LEVEL,
    Difference,
    bootstrap_interval,
    differences_to,
    fewest_differences,
    holm,
    rank_biserial,
    wilcoxon,
)

few = st.lists(st.integers(-4, 4), max_size=8)  # small integers: ties and zeros
SITES = ("a", "b", "c", "d")


def rank_sums(values):
    """Of the positive, of the negative and of all, written down once more: the mean place among equals."""
    sizes = sorted(abs(v) for v in values)
    ranks = [np.mean([i + 1 for i, size in enumerate(sizes) if size == abs(v)]) for v in values]
    plus, minus = (sum(r for r, v in zip(ranks, values, strict=True) if sign * v > 0) for sign in (1, -1))
    return plus, minus, sum(ranks)


def over_all_signs(values):
    smaller = min(rank_sums(values)[:2])
    flips = list(itertools.product((1, -1), repeat=len(values)))
    as_small = sum(rank_sums([f * v for f, v in zip(flip, values, strict=True)])[0] <= smaller for flip in flips)
    return min(1.0, 2 * as_small / len(flips))


@settings(max_examples=40, deadline=None)
@given(few)
def test_wilcoxon_over_all_signs(values) -> None:
    # thirds: sizes that are equal only but for rounding
    found = wilcoxon([v / 3 + 0.1 - 0.1 for v in values])
    if any(values):
        assert found == pytest.approx(over_all_signs(values), abs=1e-12)
    else:
        assert found is None


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 999), st.integers(1, 60))
def test_wilcoxon_against_scipy(seed, n) -> None:
    values = np.random.default_rng(seed).normal(0.2, 1, n)
    assert wilcoxon(list(values)) == pytest.approx(stats.wilcoxon(values, method="exact").pvalue, abs=1e-12)
    assert wilcoxon(list(-values)) == wilcoxon(list(values[::-1])) == wilcoxon(list(values))


@pytest.mark.parametrize("zeros_count", [0, 0.5])
@settings(max_examples=20, deadline=None)
@given(st.integers(0, 999), st.integers(2, 10))
def test_wilcoxon_with_ties_against_scipy(zeros_count, seed, n) -> None:
    values = np.random.default_rng(seed).integers(-3, 6, n).astype(float)

    def positive_sum(x, axis):  # 0: as Pratt; 0.5: "zsplit", which gives the same as the docstring says
        return (stats.rankdata(np.abs(x), axis=axis) * np.where(x == 0, zeros_count, x > 0)).sum(axis)

    if values.any():
        options = {"permutation_type": "samples", "vectorized": True, "n_resamples": math.inf}
        expected = stats.permutation_test((values,), positive_sum, **options).pvalue
        assert wilcoxon(list(values)) == pytest.approx(expected, abs=1e-12)
        assert wilcoxon(list(-values)) == wilcoxon(list(values[::-1])) == wilcoxon(list(values))


def test_wilcoxon_with_many_ties_and_zeros_is_near_the_normal_approximation() -> None:
    values = np.random.default_rng(0).normal(0.1, 1, 120).round(1)
    approximate = stats.wilcoxon(values, zero_method="pratt", correction=True).pvalue  # above 50
    assert 0.0 in values
    assert 0.04 < approximate < 0.06
    assert wilcoxon(list(values)) == pytest.approx(approximate, rel=0.02)


@pytest.mark.parametrize("n", [6, 20, 54, 100])
def test_the_extreme_sum_has_one_chance_in_all_signs(n) -> None:
    # a tie of the two least moves no extreme sum
    values = [float(v) for v in range(1, n + 1)]
    for sign in (1, -1):
        assert wilcoxon([sign * v for v in values]) == pytest.approx(2 / 2**n, rel=1e-9, abs=0)
        assert wilcoxon([sign * v for v in [2.0, *values[1:]]]) == pytest.approx(2 / 2**n, rel=1e-9, abs=0)


def test_noise_of_floating_point_is_no_difference() -> None:
    assert wilcoxon([1e-14, -1e-15, 0.0]) is rank_biserial([1e-14, -1e-15, 0.0]) is None
    assert wilcoxon([0.1 + 0.2 - 0.3, 0.3, 0.1 + 0.2]) == wilcoxon([0.0, 0.3, 0.3])
    assert wilcoxon([]) is rank_biserial([]) is None


def test_raising_a_difference_never_raises_the_evidence_against_it() -> None:
    # the sample of Pratt (1959), mostly positive, with a first value just below zero and at zero
    rest = [2, 3, 4, 6, 7, 8, 9, 11, 14, 15, 17, -18]
    assert wilcoxon([0, *rest]) < wilcoxon([-1, *rest])
    assert rank_biserial([0, *rest]) > rank_biserial([-1, *rest])
    dropped = wilcoxon(rest)
    assert dropped > wilcoxon([-1, *rest])  # what is avoided


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []
    assert holm([0.7, 0.6]) == [1.0, 1.0]
    for wrong in (math.nan, -0.1, 1.1):
        with pytest.raises(ValueError, match="between 0 and 1"):
            holm([0.5, wrong])


@given(
    st.lists(st.one_of(st.floats(0, 1), st.sampled_from([0.0, 0.01, 0.5, 1.0])), min_size=1, max_size=9), st.randoms()
)
def test_holm_properties(p_values, shuffle: random.Random) -> None:
    adjusted = holm(p_values)
    assert all(p <= a <= 1 for p, a in zip(p_values, adjusted, strict=True))
    by_size = sorted(zip(p_values, adjusted, strict=True))
    assert [a for _, a in by_size] == sorted(adjusted)  # monotone, and the same for equal ones
    assert all(a == b for (p, a), (q, b) in itertools.pairwise(by_size) if p == q)
    assert min(adjusted) == min(1.0, len(p_values) * min(p_values))  # Bonferroni
    order = list(range(len(p_values)))
    shuffle.shuffle(order)
    assert holm([p_values[i] for i in order]) == [adjusted[i] for i in order]


def test_rank_biserial_by_hand() -> None:
    # sizes 1, 2, 2, 4 have the ranks 1, 2.5, 2.5, 4: (2.5 + 4 - 1 - 2.5) / 10
    assert rank_biserial([-1, 2, -2, 4]) == pytest.approx(0.3)
    assert rank_biserial([0.1, 0.2]) == 1.0
    assert rank_biserial([-0.1, -0.2, -0.2]) == -1.0
    # a zero has rank 1 and favours neither: (2 + 3) / 6
    assert rank_biserial([0, 1, 2]) == pytest.approx(5 / 6)


@given(few)
def test_rank_biserial_is_the_share_of_ranks(values) -> None:
    plus, minus, total = rank_sums(values)
    assert rank_biserial(values) == (pytest.approx((plus - minus) / total) if any(values) else None)
    if any(values):
        assert rank_biserial([-v for v in values]) == -rank_biserial(values)


def of_seeds(by_seed):
    """Differences and their seeds."""
    return [d for ds in by_seed.values() for d in ds], [seed for seed, ds in by_seed.items() for _ in ds]


@pytest.mark.parametrize(
    "by_seed",
    [
        {0: [0.1, 0.3], 1: [0.0, -0.2], 2: [0.5, 0.4]},
        {0: [0.1], 7: [0.0, -0.2, 0.3], 2: [0.5, 0.4]},  # a site lacks seeds: pairs count, not seeds
        {5: [0.1, 0.3], 6: [-0.3, 0.2]},
        {s: [s * s / 10, -0.2] for s in range(5)},
    ],
)
def test_bootstrap_over_all_resamples(by_seed) -> None:
    means = [
        np.mean([d for seed in drawn for d in by_seed[seed]])
        for drawn in itertools.product(by_seed, repeat=len(by_seed))
    ]
    lower, upper = bootstrap_interval(*of_seeds(by_seed))
    # the share of resamples beyond either end is 2.5 %, but for what lies on the end and for the error of 10 000 draws
    for end in (lower, upper):
        assert min(abs(end - m) for m in means) < 0.02
    assert np.mean(np.array(means) < lower - 1e-9) <= 0.03
    assert np.mean(np.array(means) <= lower + 0.02) >= 0.02
    assert np.mean(np.array(means) > upper + 1e-9) <= 0.03
    assert np.mean(np.array(means) >= upper - 0.02) >= 0.02
    assert lower <= np.mean(of_seeds(by_seed)[0]) <= upper


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 999), st.integers(2, 6), st.integers(1, 4), st.randoms())
def test_bootstrap_interval_properties(seed, seeds, sites, shuffle: random.Random) -> None:
    values = np.random.default_rng(seed).normal(0, 1, seeds * sites)
    pairs = list(zip(values.tolist(), [s for s in range(seeds) for _ in range(sites)], strict=True))
    lower, upper = bootstrap_interval(*zip(*pairs, strict=True))
    assert lower - 1e-9 <= values.mean() <= upper + 1e-9
    shuffle.shuffle(pairs)
    assert bootstrap_interval(*zip(*pairs, strict=True)) == (lower, upper)  # to the bit


def test_sites_of_a_seed_stay_together() -> None:
    # no difference between seeds: the sites differ, and the interval says nothing of them
    assert bootstrap_interval([0.1, 0.9, 0.1, 0.9], [0, 0, 1, 1]) == pytest.approx((0.5, 0.5))
    assert bootstrap_interval([0.1, 0.9], [3, 3]) is bootstrap_interval([], []) is None
    with pytest.raises(ValueError, match="zip"):
        bootstrap_interval([0.1, 0.2], [1])


@pytest.mark.parametrize("comparisons", [1, 2, 3, 7, 22])
def test_fewest_differences_over_all_signs(comparisons) -> None:
    def smallest(n):
        everything = [[s * (i + 1) for i, s in enumerate(signs)] for signs in itertools.product((1, -1), repeat=n)]
        return min(wilcoxon(values) for values in everything) if n <= 7 else wilcoxon(range(1, n + 1))

    enough = fewest_differences(comparisons)
    assert holm([smallest(enough)] * comparisons)[0] < LEVEL
    assert holm([smallest(enough - 1)] * comparisons)[0] >= LEVEL
    assert fewest_differences(comparisons, 2 / 2**5 * comparisons / 2) >= 6  # below a level, not at it
    if comparisons == 1:
        assert (enough, fewest_differences(1, 0.01), fewest_differences(1, 0.0625)) == (6, 8, 6)


def test_fewest_differences_refuses() -> None:
    for wrong in ((0, 0.05), (1, 0.0), (1, 1.5)):
        with pytest.raises(ValueError, match="need a comparison"):
            fewest_differences(*wrong)


def row(values, seeds=5, sites=SITES):
    """Values of a grid of (site, seed)."""
    pairs = itertools.product(sites, range(seeds))
    return dict(zip(pairs, np.broadcast_to(values, (len(sites) * seeds,)).tolist(), strict=True))


def noise(seed, scale=0.01, n=32):
    return np.random.default_rng(seed).normal(0, scale, n)


def test_a_strong_effect_is_claimed_and_none_is_not() -> None:
    found = differences_to(
        "ref",
        {
            "better": row(0.8 + noise(1), 8),
            "ref": row(0.7 + noise(0), 8),
            "worse": row(0.6 + noise(2), 8),
            "alike": row(0.7 + noise(3), 8),
        },
    )
    assert list(found) == ["better", "worse", "alike"]
    better, worse, alike = found.values()
    assert better.significant
    assert worse.significant
    assert not alike.significant
    assert (better.pairs, better.seeds, better.effect, worse.effect) == (32, 8, 1.0, -1.0)
    assert better.mean == pytest.approx(0.1, abs=0.01)
    assert better.interval[0] < better.mean < better.interval[1]
    assert better.p_value == pytest.approx(2 / 2**32)
    assert better.p_seeds == pytest.approx(2 / 2**8)
    assert better.p_seeds_holm == pytest.approx(3 * better.p_seeds)
    assert better.p_holm == pytest.approx(3 * better.p_value)
    assert alike.p_holm == alike.p_value > LEVEL


def test_one_seed_claims_nothing() -> None:
    sites = tuple(f"site{i}" for i in range(30))
    found = differences_to("ref", {"ref": row(0.1, 1, sites), "x": row(0.9, 1, sites)})["x"]
    assert found == Difference(30, 1, pytest.approx(0.8), None, 1.0, None, None, None, None, False)


def test_too_few_seeds_claim_nothing() -> None:
    rows = {"ref": row(0.1, 9), "x": row(0.9, 9), "y": row(0.9, 6)}
    found = differences_to("ref", rows)
    # y alone: 6 seeds are enough, among two comparisons 7 are needed though Holm lets it pass after x
    assert found["y"].p_seeds_holm == pytest.approx(2 / 2**6)
    assert found["y"].p_seeds_holm < LEVEL
    assert (found["x"].significant, found["y"].significant) == (True, False)
    assert differences_to("ref", {n: rows[n] for n in ("ref", "y")})["y"].significant


def test_what_one_side_lacks_is_left_out() -> None:
    reference = {("a", 0): 0.5, ("a", 1): 0.5, ("b", 0): None, ("b", 1): 0.5, ("c", 9): 0.1}
    other = {("a", 0): 0.6, ("a", 1): None, ("b", 0): 0.9, ("b", 1): 0.8, ("d", 9): 0.1}
    found = differences_to("ref", {"ref": reference, "x": other, "apart": {("z", 1): 1.0}, "none": {}})
    assert (found["x"].pairs, found["x"].seeds, found["x"].mean) == (2, 2, pytest.approx(0.2))
    assert found["x"].interval == pytest.approx((0.1, 0.3))
    assert found["apart"] == found["none"] == Difference(0, 0, None, None, None, None, None, None, None, False)
    assert found["x"].p_holm == min(1.0, 3 * found["x"].p_value)  # rows without a p-value count


def test_no_difference_at_all() -> None:
    found = differences_to("ref", {"ref": row(0.3), "same": row(0.1 + 0.2)})["same"]
    assert found == Difference(20, 5, 0.0, (0.0, 0.0), None, None, None, None, None, False)
    assert differences_to("ref", {"ref": row(0.3)}) == {}


def test_the_order_of_the_input_changes_no_bit() -> None:
    rows = {"ref": row(noise(0), 8), "x": row(noise(1), 8), "y": row(noise(2), 8)}
    backwards = {name: dict(reversed(values.items())) for name, values in reversed(rows.items())}
    assert differences_to("ref", rows) == differences_to("ref", backwards) == differences_to("ref", rows)


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_refused(wrong) -> None:
    for bad in ("ref", "x"):  # also where the other side lacks the pair
        rows = {"ref": row(0.3), "x": row(0.4)}
        rows[bad]["far", 77] = wrong
        with pytest.raises(ValueError, match=rf"'{bad}' has -?(nan|inf) at site 'far' with seed 77"):
            differences_to("ref", rows)
    for function in (wilcoxon, rank_biserial, lambda d: bootstrap_interval(d, [0, 1])):
        with pytest.raises(ValueError, match="differences are finite"):
            function([0.1, wrong])
    with pytest.raises(KeyError, match="ref"):
        differences_to("ref", {"x": row(0.1)})


def false_claims(together, times=300):
    """Share of studies (4 sites, 8 seeds, 3 comparisons, no effect) that claim one, and that pairs alone would claim."""
    rng, claims, of_pairs = np.random.default_rng(0), 0, 0
    for _ in range(times):
        of_seed = {name: np.tile(rng.standard_t(3, 8), 4) for name in "rxyz"}
        rows = {name: row(together * of_seed[name] + (1 - together) * rng.standard_t(3, 32), 8) for name in "rxyz"}
        found = differences_to("r", rows).values()
        claims += any(d.significant for d in found)
        of_pairs += any(d.p_holm < LEVEL for d in found)
    return claims / times, of_pairs / times


def test_false_claims_are_rare_without_an_effect(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pfedst.evaluation.statistics.RESAMPLES", 10)  # the interval is not looked at
    most = LEVEL + 2 * math.sqrt(LEVEL * (1 - LEVEL) / 300)  # two standard errors of 300 studies above the level
    assert false_claims(together=0.0)[0] <= most
    # where a seed moves all its sites, pairs alone would claim far too often
    claimed, of_pairs = false_claims(together=0.5)
    assert 0 < claimed <= most < of_pairs
