"""Configurations of other versions: old names of options load with a warning, unknown formats do not."""

import json

import pytest
import yaml

from pfedst import __version__
from pfedst.cli import main
from pfedst.configuration.renamed_options import CONFIG_FORMAT, present_arguments, with_present_names
from tests.cli.test_main import SMALL


def configuration(capsys, *arguments):
    """The resolved configuration of `fit`, and what was written to standard error."""
    assert main(["fit", *arguments, "--print_config"]) == 0
    printed = capsys.readouterr()
    return yaml.safe_load(printed.out), printed.err


@pytest.mark.parametrize(("executor", "transport"), [("sequential", "in_process"), ("processes", "processes")])
def test_old_names_in_a_file_load_with_a_warning(tmp_path, capsys, executor, transport) -> None:
    file = tmp_path / "old.yaml"
    file.write_text(f"coordinator:\n  executor: {executor}\n  save_fits: false\n  rounds: 7\n")
    found, told = configuration(capsys, *SMALL[:-2], "--config", str(file))
    assert found["coordinator"]["transport"] == transport
    assert found["coordinator"]["rounds"] == 7
    assert not {"executor", "save_fits"} & set(found["coordinator"])
    assert f"--coordinator.executor {executor} is now --coordinator.transport {transport}" in told
    assert "--coordinator.save_fits no longer exists" in told


@pytest.mark.parametrize("form", [lambda key, value: [f"{key}={value}"], lambda key, value: [key, value]])
def test_old_names_on_the_command_line_load_with_a_warning(capsys, form) -> None:
    old = [*form("--coordinator.executor", "sequential"), *form("--coordinator.save_fits", "true")]
    found, told = configuration(capsys, *SMALL, *old)
    assert found["coordinator"]["transport"] == "in_process"
    assert told.count("is now --coordinator.transport in_process") == 1
    assert told.count("--coordinator.save_fits no longer exists") == 1


def test_present_names_are_left_alone(capsys) -> None:
    arguments = ["fit", *SMALL, "--coordinator.transport=processes", "--name", "executor"]
    assert present_arguments(arguments) == arguments
    for other in (3, "x", None, [1], {"coordinator": None}, {"coordinator": {"rounds": 2}}, {"executor": "x"}):
        assert with_present_names(other) == other
    assert "WARNING" not in configuration(capsys, *SMALL)[1]


def test_an_old_name_with_a_wrong_value_is_refused_under_its_present_name(capsys) -> None:
    assert main(["fit", *SMALL, "--coordinator.executor=threads"]) == 2
    assert "--coordinator.transport" in capsys.readouterr().err


def test_a_saved_configuration_names_version_and_format_and_runs_again(tmp_path) -> None:
    common = [f"--runs_dir={tmp_path}", "--coordinator.rounds=1"]
    assert main(["fit", *SMALL, *common, "--name=a"]) == 0
    file = tmp_path / "a" / "config.yaml"
    saved = yaml.safe_load(file.read_text())
    assert (saved["pfedst_version"], saved["config_format"]) == (__version__, CONFIG_FORMAT)
    file.write_text(file.read_text().replace(f"pfedst_version: {__version__}", "pfedst_version: 0.0.1"))
    assert main(["fit", "--config", str(file), *common, "--name=b"]) == 0
    again = yaml.safe_load((tmp_path / "b" / "config.yaml").read_text())
    assert again["pfedst_version"] == __version__  # of the version that made this run
    one, other = (json.loads((tmp_path / name / "summary.json").read_text()) for name in "ab")
    for key in ("study", "personal", "generic", "protocol", "pfedst_version"):
        assert one[key] == other[key]


@pytest.mark.parametrize("written", [3, 0, -1])
def test_a_configuration_of_an_unknown_format_is_one_clear_error(tmp_path, capsys, written) -> None:
    file = tmp_path / "new.yaml"
    file.write_text(f"pfedst_version: 9.9.9\nconfig_format: {written}\nmethod: PFedST\nan_option_of_then: 3\n")
    assert main(["fit", "--config", str(file), f"--runs_dir={tmp_path}"]) == 2
    told = capsys.readouterr().err
    assert told.count("pfedst: error: ") == 1
    assert f"a configuration of format {written}: this version of pfedst, {__version__}, reads formats 1 to 2" in told
    assert "use pfedst 9.9.9, which wrote it" in told
    assert "an_option_of_then" not in told
    assert not list(tmp_path.rglob("summary.json"))


@pytest.mark.parametrize("written", ["null", "1", "2"])
def test_a_configuration_of_a_known_format_or_of_none_loads(tmp_path, capsys, written) -> None:
    file = tmp_path / "old.yaml"
    file.write_text(f"config_format: {written}\n")
    assert configuration(capsys, *SMALL, "--config", str(file))[0]["coordinator"]["rounds"] == 2
