"""Which value of an option applies to a run of a comparison."""

import pytest

from pfedst.comparison.arguments import arguments_of, check_overrides
from pfedst.comparison.plan import make_plan
from pfedst.configuration.command_line import options_of
from pfedst.errors import ConfigurationError


@pytest.mark.parametrize(
    ("common", "overrides", "own", "expected"),
    [
        # own options win over the command line, which wins over those of all runs, in either spelling of a key
        ({"a.x": 1}, ["--a.x=2"], {"a.x": 3}, ["--a.x=3"]),
        ({"a.x": 1, "a.y": 1}, ["--a.init_args.x", "2"], {}, ["--a.y=1", "--a.init_args.x", "2"]),
        ({"a.init_args.x": 1}, [], {"a.x": 3}, ["--a.x=3"]),
        ({"a.class_path": "A"}, ["--a=B", "-c"], {"b": 1}, ["--a=B", "-c", "--b=1"]),
        ({"a": ["A"]}, ["--a+=B"], {}, ['--a=["A"]', "--a+=B"]),  # what is appended replaces nothing
    ],
)
def test_one_value_for_each_option(common, overrides, own, expected) -> None:
    assert arguments_of(common, options_of(overrides), own) == expected


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["--seed_everything", "3"], "--seed_everything is set by the comparison"),
        (["--data.init_args.fold=1"], "--data.fold is set by the comparison"),
        (["--method", "Local"], "--method has no effect: every row of"),
        (["--method.init_args.mu", "1"], ""),  # of one row alone
        (["--a.lr=1"], "--a.lr has no effect"),
        (["--a.b", "1"], ""),
    ],
)
def test_an_option_for_all_runs_has_an_effect(tmp_path, given, told) -> None:
    (tmp_path / "base.yaml").touch()
    plan = make_plan(
        {
            "base": "base.yaml",
            "folds": 2,
            "seeds": [0],
            "rows": {"A": {"method": "FedAvg"}, "B": {"method.class_path": "FedProx", "method.mu": 0.1}},
            "tune": {"grid": {"a.lr": [1, 2]}},
        },
        tmp_path / "compare.yaml",
    )
    if not told:
        check_overrides(options_of(given), plan)
        return
    with pytest.raises(ConfigurationError, match=told):
        check_overrides(options_of(given), plan)
