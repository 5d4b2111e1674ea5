"""Subgroups: their metrics by hand, and which of them are withheld."""

import numpy as np
import pytest

from pfedst.evaluation.subgroups import HIDING, SMALL, subgroup_metrics


def of_sizes(sizes, minimum=10, units=None):
    """The tables of a column whose subgroups have so many images."""
    codes = np.repeat(np.arange(len(sizes)), sizes)
    units = np.arange(len(codes)) if units is None else units
    names = [f"g{number}" for number in range(len(sizes))]
    probabilities = {"personal": np.tile([0.8, 0.2], (len(codes), 1))}
    targets = np.zeros(len(codes), np.int64)
    found = subgroup_metrics(probabilities, targets, units, {"device": (names, codes)}, minimum, 0)
    assert found["minimum"] == minimum
    return {table["name"]: table for table in found["columns"]["device"]}


def test_by_hand() -> None:
    """Of four women three are right (recalls 1 and 1/2), of two men none."""
    probabilities = {"personal": np.array([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.6, 0.4], [0.4, 0.6], [0.7, 0.3]])}
    targets, sex = np.array([0, 0, 1, 1, 0, 1]), np.array([0, 0, 0, 0, 1, 1])
    found = subgroup_metrics(probabilities, targets, np.arange(6), {"sex": (["f", "m", "x"], sex)}, 2, 0)
    women, men = found["columns"]["sex"]  # nobody is x
    assert (women["name"], women["images"], women["units"], women["classes"]) == ("f", 4, 4, 2)
    values = {metric: estimate["value"] for metric, estimate in women["personal"].items()}
    # of the pairs of a 0 and a 1 all four are in order
    assert values == pytest.approx({"accuracy": 3 / 4, "balanced_accuracy": 3 / 4, "auroc": 1.0})
    values = {metric: estimate["value"] for metric, estimate in men["personal"].items()}
    assert values == pytest.approx({"accuracy": 0.0, "balanced_accuracy": 0.0, "auroc": 0.0})


def test_a_small_subgroup_shows_no_number() -> None:
    found = of_sizes([30, 4, 8, 10])
    assert found["g1"] == {"name": "g1", "withheld": SMALL.format(minimum=10)}
    assert found["g2"] == {"name": "g2", "withheld": SMALL.format(minimum=10)}
    assert (found["g0"]["images"], found["g3"]["images"]) == (30, 10)


def test_what_gives_a_small_subgroup_away_is_withheld_too() -> None:
    """All images are counted: 44 of which 30 and 10 leave 4."""
    found = of_sizes([30, 4, 10])
    assert found["g2"] == {"name": "g2", "withheld": HIDING}
    assert found["g0"]["images"] == 30
    assert all("withheld" in table for table in of_sizes([30, 4]).values())
    assert "withheld" not in of_sizes([30, 4], minimum=4)["g1"]


def test_many_images_of_few_patients_are_few() -> None:
    units = np.concatenate([np.arange(20), np.full(20, 20), np.arange(21, 41)])
    found = of_sizes([20, 20, 20], units=units)
    assert found["g1"]["withheld"] == SMALL.format(minimum=10)
    assert sorted("withheld" in table for table in found.values()) == [False, True, True]
