"""What a comparison's file may ask for, and what is refused."""

from pathlib import Path

import pytest
import yaml

from pfedst.comparison import make_plan
from pfedst.comparison.plan import as_arguments
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
    assert made.description == (
        f"compare: A, B; seeds 0, 1 on {made.base}: 4 runs, after 4 runs of tuning on validation; more if grids are "
        f"extended"
    )


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
        ({"row": {}}, 'compare.yaml: unknown key "row". Did you mean "rows"'),
        ({"tune": {"seeds": [1], "grid": {"lr": [1]}}}, "tune: seeds: 1 is a seed of the comparison too"),
        ({"tune": {"seeds": [7], "grid": {"lr": 1}}}, "tune: grid: lr: give a list of values"),
        ({"tune": {"seeds": [7], "grid": {"lr": []}}}, "tune: grid: lr: give a list of values"),
        ({"tune": {"seeds": [7], "grids": {}}}, 'unknown key "grids". Did you mean "grid"'),
        ({"tune": {"seeds": [7], "rows": {"D": {"lr": [1]}}}}, "tune: rows: there is no row D"),
        ({"tune": {"seeds": [7], "grid": {"lr": [1, 2]}, "rows": {"A": {"mu": [1]}}}}, "different numbers of trials"),
        (
            {"tune": {"seeds": [7], "grid": {"method.init_args.mu": [1, 2]}}},
            "rows: B: method.mu is tuned; leave it out",
        ),
        ({"options": {"method.class_path": "Local"}}, "options: method.class_path has no effect: every row sets"),
    ],
)
def test_what_cannot_work_is_told(tmp_path, changes, told) -> None:
    with pytest.raises(ConfigurationError, match=told) as error:
        plan(tmp_path, **changes)
    assert "compare.yaml" in str(error.value)


def test_the_configuration_of_one_run_is_no_comparison(tmp_path) -> None:
    with pytest.raises(ConfigurationError, match="the configuration of one run; a comparison names it as its base"):
        make_plan({"method": "FedAvg", "seed_everything": 0}, tmp_path / "compare.yaml")


def test_a_label_with_a_comma_is_in_quotes(tmp_path) -> None:
    made = plan(tmp_path, rows={"A": {}, "A, strong": {}}, reference="A", tune=None)
    assert made.description.startswith('compare: A, "A, strong"; ')


@pytest.mark.parametrize("content", [None, [], "text", 3])
def test_a_file_that_is_no_mapping(tmp_path, content) -> None:
    with pytest.raises(ConfigurationError, match="give keys with values"):
        make_plan(content, tmp_path / "compare.yaml")


@pytest.mark.parametrize("file", sorted((ROOT / "configs/compare").glob("*.yaml")), ids=lambda file: file.stem)
def test_shipped_files_are_plans(file) -> None:
    made = make_plan(yaml.safe_load(file.read_text()), file)
    assert "PFedST" in made.rows
    assert made.reference == ("PFedST" if made.folds is None else "FedAvg")


FOLDS = {"folds": 5, "seeds": [0, 1, 2]}
CLAIM = {"row": "A", "against": "B", "measure": "accuracy"}


def test_a_plan_over_folds(tmp_path) -> None:
    made = plan(tmp_path, **FOLDS, claims=[CLAIM, {**CLAIM, "row": "A + own prior", "prior": "site"}])
    assert [(part.split_seed, part.fold, part.seeds) for part in made.parts[4:6]] == [(0, 4, (0,)), (1, 0, (1,))]
    assert len(made.parts) == 15
    assert made.description == f"compare: A, B; 3 repetitions (seeds 0; 1; 2) of 5 folds on {made.base}: 30 runs"
    assert [claim.row for claim in made.claims] == ["A", "A + own prior"]
    assert made.assumed_deviation == 4.0
    assert len(plan(tmp_path, **FOLDS, claims=[CLAIM], rows=ROWS | {"C": {"x": 1}}).only(["C"]).claims) == 0


def test_seeds_that_share_a_partition(tmp_path) -> None:
    made = plan(tmp_path, folds=2, seeds=[[0, 1], [2, 3]], tune={"grid": {"lr": [1, 2]}, "rows": {"B": {}}})
    assert [(part.split_seed, part.fold, part.seeds) for part in made.parts] == [
        (0, 0, (0, 1)), (0, 1, (0, 1)), (2, 0, (2, 3)), (2, 1, (2, 3)),
    ]  # fmt: skip
    assert "24 runs, of which validation chooses" in made.description


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"folds": 1}, "folds: give a whole number of 2 or more, not 1"),
        ({"folds": True}, "folds: give a whole number"),
        ({"claims": [CLAIM]}, "claims has no effect without folds"),
        ({"assumed_deviation": 3}, "assumed_deviation has no effect without folds"),
        ({**FOLDS, "assumed_deviation": 0}, "assumed_deviation: give points"),
        ({**FOLDS, "seeds": [[0, 1], [2]]}, "the same number of seeds"),
        ({**FOLDS, "seeds": [[0, 1], [1, 2]]}, "a list of different numbers"),
        ({"seeds": [[0, 1]]}, "a list of different numbers"),
        ({**FOLDS, "options": {"data.fold": 1}}, "data.fold is set by folds"),
        ({**FOLDS, "rows": {"A": {"data.init_args.split_seed": 1}}}, "split_seed is set by folds"),
        ({**FOLDS, "tune": {"seeds": [9], "grid": {"lr": [1, 2]}}}, "tune: seeds: leave it out"),
        ({**FOLDS, "tune": {"grid": {"lr": [1, 2]}, "bounds": {"lr": [1, 0]}}}, "bounds: lr: give the lowest"),
        ({**FOLDS, "tune": {"grid": {"lr": [1, 2]}, "bounds": {"mu": [0, 1]}}}, "bounds: mu is in no grid"),
        ({**FOLDS, "claims": CLAIM}, "claims: give a list"),
        ({**FOLDS, "claims": [{**CLAIM, "row": "C"}]}, "claims: number 1: row: there is no row C"),
        ({**FOLDS, "claims": [{**CLAIM, "measure": "acuracy"}]}, 'Did you mean "accuracy"'),
        ({**FOLDS, "claims": [{**CLAIM, "prior": "own"}]}, "prior: give one of balanced, site, federation"),
        ({**FOLDS, "claims": [{**CLAIM, "measure": "accuracy", "prior": "balanced"}]}, "is not computed at the prior"),
        ({**FOLDS, "claims": [{**CLAIM, "row": "A + own prior"}]}, "give prior: site"),
        ({**FOLDS, "claims": [CLAIM, CLAIM]}, "named twice"),
        ({**FOLDS, "claims": [{**CLAIM, "against": "A"}]}, "compares a row with itself"),
    ],
)
def test_what_a_plan_over_folds_may_not_ask(tmp_path, changes, told) -> None:
    with pytest.raises(ConfigurationError) as caught:
        plan(tmp_path, **changes)
    assert told in str(caught.value)
