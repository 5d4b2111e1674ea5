"""Edges of a grid, and the value beyond them."""

import pytest

from pfedst.comparison.grid_edges import beyond, edges_of, extended

OPEN = (None, None)


@pytest.mark.parametrize(
    ("values", "low", "high"),
    [
        ([3e-4, 1e-3, 3e-3], 9e-05, 0.009),
        ([1, 2, 4], None, 8),  # no whole number lies below 1 by a factor
        ([2, 4, 8], 1, 16),
        ([2, 5], 0 or None, 13),  # 4/5 rounds down to 0, which factors do not reach
        ([0.0, 0.5], -0.5, 1.0),
        ([3, 1, 2], None, 5),  # 9/2 is rounded up: beyond the edge
        ([0.1], None, None),
        (["a", "b"], None, None),
        ([False, True], None, None),
        ([[1], [2]], None, None),
    ],
)
def test_beyond(values, low, high) -> None:
    assert beyond(values, "low", OPEN) == (low if low is None else pytest.approx(low))
    assert beyond(values, "high", OPEN) == (high if high is None else pytest.approx(high))
    assert type(beyond(values, "high", OPEN)) in (type(values[0]), type(None))


def test_natural_bounds() -> None:
    assert beyond([0.0, 0.5], "low", (0, None)) is None
    assert beyond([0.2, 0.6], "high", (0, 1)) == 1
    assert beyond([0.2, 0.6], "low", (0.1, 1)) == 0.1
    assert beyond([0.5, 1.0], "high", (0, 1)) is None


def test_only_edges_that_have_something_beyond_count() -> None:
    grid = {"lr": [1, 2, 4], "mu": [0.0, 1.0]}
    bounds = {"mu": (0, None)}
    assert edges_of(grid, [{"lr": 2, "mu": 0.0}, {"lr": 1, "mu": 0.0}], bounds) == set()
    edges = edges_of(grid, [{"lr": 4, "mu": 0.0}, {"lr": 1, "mu": 1.0}], bounds)
    assert edges == {("lr", "high"), ("mu", "high")}
    assert extended(grid, edges, bounds) == {"lr": [1, 2, 4, 8], "mu": [0.0, 1.0, 2.0]}
    assert extended(grid, {("lr", "high")}, bounds) == {"lr": [1, 2, 4, 8], "mu": [0.0, 1.0]}
    assert extended({"x": [1.0, 10.0]}, {("x", "low"), ("x", "high")}, {}) == {"x": [1.0, 10.0, 0.1, 100.0]}
