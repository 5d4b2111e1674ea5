"""Configurations of earlier states of the project: those that were shipped, and those that runs have written.

`format_1` holds `configs/` of the last state before `config_format` (`coordinator.executor`, modules before they moved),
`format_2` what was changed of it until there were losses, schedules and folds. `written` holds resolved configurations.
"""

import logging
from pathlib import Path

import pytest
import yaml

from pfedst.cli.start import parse_only
from pfedst.comparison.plan import as_arguments, make_plan
from pfedst.configuration.renamed_options import with_present_names

EARLIER = Path(__file__).parents[1] / "fixtures" / "configurations"
SHIPPED = sorted(EARLIER.glob("format_*/configs/*.yaml"))
PLANS = sorted(EARLIER.glob("format_*/configs/compare/*.yaml"))
SWEEPS = sorted(EARLIER.glob("format_*/configs/sweeps/*.yaml"))
WRITTEN = sorted((EARLIER / "written").glob("*.yaml"))
RENAMED = "--coordinator.executor {} is now --coordinator.transport {}; please rename it"
GONE = "--coordinator.save_fits no longer exists"
LOSS = "is read with the loss of that time, cross-entropy"
WARNINGS = {
    "format_1_PFedST": [RENAMED.format("sequential", "in_process"), GONE, LOSS],
    "format_1_FedCLIP": [RENAMED.format("sequential", "in_process"), GONE, LOSS],
    "format_2_without_loss": [LOSS],
    "format_2_with_loss": [],
    "0.2.0": [],
}


@pytest.fixture(scope="module")
def resolved():
    """The options that are not at their first default, of arguments of `fit`."""
    parse = parse_only()
    return lambda *arguments: yaml.safe_load(parse(arguments))


def name(path):
    return str(path.relative_to(EARLIER).with_suffix("")).replace("/configs", "")


def told(caplog):
    """Warnings about old names of options; those about modules come once a process."""
    words = ("executor", "save_fits", "older than")
    return [text for record in caplog.records if any(word in (text := record.getMessage()) for word in words)]


@pytest.mark.parametrize("file", SHIPPED, ids=name)
def test_a_shipped_configuration_still_parses(file, resolved) -> None:
    found = resolved(f"--config={file}")
    assert found["method.class_path"] == "pfedst.methods.pfedst.PFedST"
    assert found["data.class_path"].endswith(yaml.safe_load(file.read_text())["data"]["class_path"])


@pytest.mark.parametrize("file", WRITTEN, ids=name)
def test_a_configuration_that_a_run_wrote_still_means_the_same(file, resolved, caplog) -> None:
    with caplog.at_level(logging.WARNING, "pfedst"):
        found = resolved(f"--config={file}")
    expected = WARNINGS[file.stem]
    assert [any(words in text for text in told(caplog)) for words in expected] == [True] * len(expected)
    assert len(told(caplog)) == len(expected)
    written = yaml.safe_load(file.read_text())
    assert found.get("coordinator.optimizer_state", "reset") == written["coordinator"]["optimizer_state"]
    for key, value in written["method"]["init_args"].items():
        assert found.get(f"method.init_args.{key}", value) == value
    assert ("model.loss" in found and found["model.loss"] is None) == (LOSS in expected)


@pytest.mark.parametrize("file", PLANS, ids=name)
def test_a_plan_of_a_comparison_still_parses(file, resolved, caplog) -> None:
    """Its options and its reference; every row was parsed when this file was added."""
    plan = make_plan(yaml.safe_load(file.read_text()), file)
    row = plan.rows[plan.reference]
    with caplog.at_level(logging.WARNING, "pfedst"):
        found = resolved(f"--config={plan.base}", *as_arguments(plan.options | row.options | (row.trials or [{}])[0]))
    assert found["method.class_path"].endswith(f".{row.options['method']}")
    assert len(told(caplog)) == len(plan.options.keys() & {"coordinator.executor", "coordinator.save_fits"})


@pytest.mark.parametrize("file", SWEEPS, ids=name)
def test_a_sweep_still_parses(file, resolved) -> None:
    sweep = yaml.safe_load(file.read_text())
    options = {key: of["values"][0] if "values" in of else of.get("value", of.get("min")) for key, of in
               sweep["parameters"].items()}  # fmt: skip
    base = next(part for part in sweep["command"] if part.startswith("configs/"))
    assert resolved(f"--config={file.parents[2] / base}", *as_arguments(options))


def test_what_a_person_has_written_gets_the_loss_of_today() -> None:
    partial = {"model": {"encoder": "FrozenCLIP"}, "coordinator": {"rounds": 3}}
    assert with_present_names(partial) == partial
    assert with_present_names(partial | {"config_format": 2})["model"]["loss"] is None
    without_model = {"config_format": 2, "coordinator": {"rounds": 3}}
    assert with_present_names(without_model) == without_model
