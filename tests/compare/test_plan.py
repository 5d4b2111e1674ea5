"""What a comparison's file may ask for, and what is refused."""

from pathlib import Path

import pytest
import yaml

from pfedst.compare import make_plan
from pfedst.compare.plan import as_arguments
from pfedst.errors import ConfigurationError

ROOT = Path(__file__).parents[2]
ROWS = {"A": {"method": "FedAvg"}, "B": {"method": "FedProx", "method.mu": 0.1}}


def plan(tmp_path, **changes):
    (tmp_path / "base.yaml").touch()
    content = {"base": "base.yaml", "seeds": [0, 1], "rows": ROWS} | changes
    return make_plan({key: value for key, value in content.items() if value is not None}, tmp_path / "compare.yaml")


def test_a_plan(tmp_path) -> None:
    made = plan(tmp_path, tune={"seeds": [9], "grid": {"lr": [1, 2], "x": [3]}, "rows": {"A": {"y": [1, 2]}}})
    assert list(made.rows) == ["A", "B"]
    assert made.reference == "A"
    assert made.rows["B"].trials == [{"lr": 1, "x": 3}, {"lr": 2, "x": 3}]
    assert made.rows["A"].trials == [{"y": 1}, {"y": 2}]
    assert made.base == tmp_path / "base.yaml"
    assert made.description == f"compare: A, B; seeds 0, 1 on {made.base}: 4 runs, after 4 runs of tuning on validation"


def test_a_plan_says_what_it_is_going_to_do(tmp_path) -> None:
    made = plan(tmp_path, seeds=[3])
    assert made.description == f"compare: A, B; seed 3 on {made.base}: 2 runs"


def test_only_some_rows_and_the_reference(tmp_path) -> None:
    made = plan(tmp_path, rows=ROWS | {"C": {"method": "Local"}}, reference="B")
    assert list(made.only(["C"]).rows) == ["B", "C"]
    with pytest.raises(ConfigurationError, match="--only c: there is no such row"):
        made.only(["c"])


def test_options_as_the_command_line_takes_them() -> None:
    options = {
        "method": "PFedST",
        "method.rank": 8,
        "data.centers": [1, 2],
        "model.adapter": None,
        "x": True,
        "y": 1e-5,
    }
    assert as_arguments(options) == [
        "--method=PFedST",
        "--method.rank=8",
        "--data.centers=[1, 2]",
        "--model.adapter=null",
        "--x=true",
        "--y=1e-05",
    ]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"base": None}, "base: give the path"),
        ({"base": "none.yaml"}, "base: no file .*none.yaml"),
        ({"seeds": None}, "seeds: give a list of different numbers"),
        ({"seeds": [1, 1]}, "seeds: give a list of different numbers"),
        ({"seeds": [True]}, "seeds: give a list"),
        ({"seeds": [-1]}, "seeds: give a list"),
        ({"rows": {}}, "rows: none"),
        ({"rows": None}, "rows: give keys with values"),
        ({"rows": {"A": "FedAvg"}}, "rows: A: give keys with values"),
        ({"rows": {"A": {"seed_everything": 3}}}, "seed_everything is set by the comparison"),
        ({"options": {"name": "x"}}, "options: name is set by the comparison"),
        ({"reference": "a"}, "reference: there is no row a"),
        ({"row": {}}, 'unknown key "row". Did you mean "rows"'),
        ({"tune": {"seeds": [1], "grid": {"lr": [1]}}}, "tune: seeds: 1 is a seed of the comparison too"),
        ({"tune": {"seeds": [7], "grid": {"lr": 1}}}, "tune: grid: lr: give a list of values"),
        ({"tune": {"seeds": [7], "grid": {"lr": []}}}, "tune: grid: lr: give a list of values"),
        ({"tune": {"seeds": [7], "grids": {}}}, 'unknown key "grids". Did you mean "grid"'),
        ({"tune": {"seeds": [7], "rows": {"D": {"lr": [1]}}}}, "tune: rows: there is no row D"),
        ({"tune": {"seeds": [7], "grid": {"lr": [1, 2]}, "rows": {"A": {"mu": [1]}}}}, "different numbers of trials"),
    ],
)
def test_what_cannot_work_is_told(tmp_path, changes, told) -> None:
    with pytest.raises(ConfigurationError, match=told) as error:
        plan(tmp_path, **changes)
    assert "compare.yaml" in str(error.value)


@pytest.mark.parametrize("content", [None, [], "text", 3])
def test_a_file_that_is_no_mapping(tmp_path, content) -> None:
    with pytest.raises(ConfigurationError, match="give keys with values"):
        make_plan(content, tmp_path / "compare.yaml")


@pytest.mark.parametrize("file", sorted((ROOT / "configs/compare").glob("*.yaml")), ids=lambda file: file.stem)
def test_shipped_files_are_plans(file) -> None:
    made = make_plan(yaml.safe_load(file.read_text()), file)
    assert "PFedST" in made.rows
    assert made.reference == "PFedST"
