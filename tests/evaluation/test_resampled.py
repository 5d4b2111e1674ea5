"""The corrected resampled t-test by hand, against scipy, and what it can detect."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from pfedst.evaluation.resampled import resampled_test, smallest_detectable


def test_by_hand() -> None:
    """Mean 2, s^2 = 10 / 4 = 2.5, J = 5, n_test / n_train = 1/4: t = 2 / sqrt(2.5 x 0.45) = 1.885618."""
    found = resampled_test([0.0, 1.0, 2.0, 3.0, 4.0], 0.25)
    assert (found.runs, found.mean, found.deviation) == (5, 2.0, pytest.approx(math.sqrt(2.5)))
    t = 2 / math.sqrt(2.5 * 0.45)
    # P(T > t) with 4 degrees of freedom in closed form: 1/2 - 3/8 sin(a) (1 + ... ), a = atan(t / 2)
    a = math.atan(t / 2)
    tail = 0.5 - 0.5 * math.sin(a) * (1 + 0.5 * math.cos(a) ** 2)
    assert found.p_value == pytest.approx(2 * tail, rel=1e-12)
    assert found.interval == pytest.approx((2 - 2.7764451 * math.sqrt(1.125), 2 + 2.7764451 * math.sqrt(1.125)))


@given(st.lists(st.floats(-1, 1).map(lambda x: round(x, 3)), min_size=2, max_size=30), st.floats(0.01, 2))
def test_without_correction_it_is_the_t_test_of_scipy(values, ratio) -> None:
    found = resampled_test(values, ratio)
    if np.std(values) < 1e-6:
        return
    usual = stats.ttest_1samp(values, 0)
    scaled = usual.statistic * math.sqrt((1 / len(values)) / (1 / len(values) + ratio))
    assert found.p_value == pytest.approx(2 * stats.t.sf(abs(scaled), len(values) - 1), rel=1e-9)
    assert found.p_value >= usual.pvalue - 1e-12
    assert (found.p_value < 0.05) == (found.interval[0] > 0 or found.interval[1] < 0)
    assert resampled_test(values, 1e-12).p_value == pytest.approx(usual.pvalue, rel=1e-6)


def test_few_or_equal_differences() -> None:
    assert resampled_test([], 0.25).mean is None
    one = resampled_test([0.1], 0.25)
    assert (one.runs, one.mean, one.deviation, one.p_value) == (1, 0.1, None, None)
    assert resampled_test([0.0, 0.0], 0.25).p_value == 1.0
    assert resampled_test([0.5, 0.5], 0.25).p_value == 0.0
    with pytest.raises(ValueError, match="finite"):
        resampled_test([float("nan"), 1.0], 0.25)
    with pytest.raises(ValueError, match="above 0"):
        resampled_test([0.0, 1.0], 0.0)


@pytest.mark.parametrize(("runs", "ratio"), [(5, 0.25), (15, 0.28), (50, 1 / 9)])
def test_the_smallest_detectable_difference_is_found_in_four_of_five_studies(runs, ratio) -> None:
    """Differences that share a part of their errors, so that the variance of their mean is s^2 (1 / J + ratio)."""
    found = smallest_detectable(2.0, runs, ratio)
    rng = np.random.default_rng(0)
    # the deviation within a study is 2, and that of its mean is 2 sqrt(1 / J + ratio): a shared error makes up the rest
    shared = rng.normal(0, 2 * math.sqrt(ratio), (20_000, 1))
    differences = found + shared + rng.normal(0, 2, (20_000, runs))
    t = differences.mean(1) / (differences.std(1, ddof=1) * math.sqrt(1 / runs + ratio))
    claimed = (2 * stats.t.sf(np.abs(t), runs - 1) < 0.05).mean()
    assert claimed == pytest.approx(0.8, abs=0.012)
    assert smallest_detectable(4.0, runs, ratio) == pytest.approx(2 * found)
    assert smallest_detectable(2.0, runs, ratio, level=0.01) > found


def test_one_run_detects_nothing() -> None:
    assert smallest_detectable(2.0, 1, 0.25) is None
