"""Test whether a method is better than another over repetitions of folds: the corrected resampled t-test.

Each fold of each repetition gives one difference. The differences share most of their training images, so that their
variance is smaller than that of the mean of independent studies, and the usual t-test claims far too much
(benchmarks/README.md: measured). Nadeau and Bengio (2003) add the ratio of test to training images to the variance of
the mean; Bouckaert and Frank (2004) recommend the same over r repetitions of k folds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from pfedst.evaluation.statistics import LEVEL

POWER = 0.8
"""Probability of a claim at the smallest detectable difference."""


@dataclass(frozen=True)
class ResampledTest:
    """The test of paired differences, one for each fold of each repetition."""

    runs: int
    """Number J of differences."""
    mean: float | None
    """Mean difference; None without differences."""
    deviation: float | None
    """Standard deviation of the differences (J - 1); None with fewer than two."""
    interval: tuple[float, float] | None
    """95 % interval of the expected difference, from the same variance as the test."""
    p_value: float | None
    """Two-sided p-value; None with fewer than two differences."""


def resampled_test(differences: Sequence[float], test_to_train: float) -> ResampledTest:
    """Test whether the mean of differences over r x k folds is zero.

    t = mean / sqrt(s^2 (1 / J + n_test / n_train)) with J - 1 degrees of freedom.

    Args:
        differences: one value for each fold of each repetition; sites are averaged before.
        test_to_train: n_test / n_train, > 0: tested images for each image trained on, without validation.

    Raises:
        ValueError: If a difference is not finite, or the ratio is not positive.
    """
    number, values = len(differences), [float(value) for value in differences]
    if not all(map(math.isfinite, values)):
        raise ValueError(f"differences are finite, not {values}")
    if number < 2:
        return ResampledTest(number, values[0] if values else None, None, None, None)
    mean = math.fsum(values) / number
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (number - 1))
    error = deviation * scale(number, test_to_train)
    half = error * _quantile(1 - LEVEL / 2, number - 1)
    interval = (mean - half, mean + half)
    if error == 0:
        return ResampledTest(number, mean, deviation, interval, 1.0 if mean == 0 else 0.0)
    # the import of scipy takes longer than a report without folds
    from scipy.stats import t

    return ResampledTest(number, mean, deviation, interval, float(2 * t.sf(abs(mean) / error, number - 1)))


def smallest_detectable(deviation: float, runs: int, test_to_train: float, level: float = LEVEL) -> float | None:
    """Return the difference that the test claims with a probability of 80 %, in the unit of the deviation.

    Args:
        deviation: standard deviation of a difference over folds and repetitions, >= 0.
        runs: number J of differences.
        test_to_train: see `resampled_test`.
        level: two-sided level, in (0, 1).

    Returns:
        The difference; None with fewer than two runs.
    """
    if runs < 2:
        return None
    from scipy.optimize import brentq
    from scipy.stats import nct

    freedom, threshold = runs - 1, _quantile(1 - level / 2, runs - 1)

    def shortfall(shift: float) -> float:
        # a claim in the wrong direction has no part in it: its probability is below 1e-5
        return float(nct.sf(threshold, freedom, shift)) - POWER

    found = brentq(shortfall, 0.0, threshold + 20.0)
    return deviation * scale(runs, test_to_train) * float(found)


def scale(runs: int, test_to_train: float) -> float:
    """Return the standard error of the mean for a deviation of 1.

    Raises:
        ValueError: If the ratio is not positive.
    """
    if not (test_to_train > 0 and math.isfinite(test_to_train)):
        raise ValueError(f"n_test / n_train is above 0, not {test_to_train}")
    return math.sqrt(1 / runs + test_to_train)


def _quantile(probability: float, freedom: int) -> float:
    from scipy.stats import t

    return float(t.ppf(probability, freedom))
