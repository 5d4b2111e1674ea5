"""File names that number the images of a patient."""

import re
from pathlib import PurePosixPath

import pytest

from pfedst.data.prepare.group_pattern import propose_pattern
from pfedst.data.prepare.init import InitOptions, make_manifest
from tests.data.prepare.test_init import tree

PATIENTS = [
    (["x/P17_L.png", "x/P17_R.png", "y/P18_l.png", "y/P18_r.png", "y/P19_L.png"], {"P17": 2, "P18": 2}),
    (["x/Maier_left.jpg", "x/Maier_right.jpg", "y/Huber_left.jpg", "y/Huber_right.jpg"], {"Maier": 2, "Huber": 2}),
    (["P17_1.png", "P17_2.png", "P17_10.png", "P18_1.png", "P18_2.png"], {"P17": 3, "P18": 2}),
    (["a 17-a.png", "a 17-b.png", "18-a.png", "18-b.png"], {"a 17": 2, "18": 2}),
    (["a/20_OD.tif", "a/20_OS.tif", "b/21_od.tif", "b/21_os.tif", "b/none.tif"], {"20": 2, "21": 2}),
    (["x/P17_L.png", "x/P17_2.png", "y/P18_1.png", "y/P18_R.png"], {"P17": 2, "P18": 2}),
]


@pytest.mark.parametrize(("names", "expected"), PATIENTS)
def test_patients(names, expected) -> None:
    found = propose_pattern([PurePosixPath(name) for name in names])
    assert found is not None
    assert (found.groups, found.images) == (len(expected), sum(expected.values()))
    groups = [match.group(1) for name in names if (match := re.search(found.pattern, name))]
    assert {group: groups.count(group) for group in groups if groups.count(group) > 1} == expected
    assert len(set(found.example)) == 2
    assert InitOptions(group_pattern=found.pattern)  # it has one group


@pytest.mark.parametrize(
    "names",
    [
        [],
        ["a.png", "b.png"],
        [f"naevus_{number}.png" for number in range(9)] + [f"mel_{number}.png" for number in range(9)],
        [f"ISIC_00243{number}.jpg" for number in range(10, 40)],
        [f"site1_{number}.png" for number in range(40)] + [f"site2_{number}.png" for number in range(40)],
        ["P17_L.png", "P17_R.png"],  # one patient alone may be chance
        ["P17_L.png", "P18_L.png", "P19_L.png"],
    ],
)
def test_numbers_that_are_no_patients(names) -> None:
    assert propose_pattern([PurePosixPath(name) for name in names]) is None


def test_the_proposal_gives_the_groups_of_a_manifest(tmp_path) -> None:
    root = tree(tmp_path, "{x,y}/P{17,18,19}_{L,R}.png")
    made = make_manifest(root, InitOptions())
    found = propose_pattern([PurePosixPath(path) for path in made.table["path"]])
    table = make_manifest(root, InitOptions(group_pattern=found.pattern)).table
    assert set(table["group"]) == {"P17", "P18", "P19"}
    assert set(table.groupby("group")["split"].nunique()) == {1}
