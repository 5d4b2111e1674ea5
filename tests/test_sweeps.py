"""Every sweep that is shipped: W&B's own agent makes command lines of it that the real parser takes."""

import itertools
import json
from pathlib import Path

import pandas as pd
import pytest
import yaml

from pfedst.cli import main
from tests.fake_data.fed_isic2019.data import make as make_fed_isic
from tests.test_configs import NANO, SHORT
from tests.tracking.runs import TINY, run
from tests.tracking.wandb_file import files_of, read

ROOT = Path(__file__).parents[1]
SWEEPS = {path.name: yaml.safe_load(path.read_text()) for path in sorted((ROOT / "configs" / "sweeps").glob("*.yaml"))}


def arguments(sweep, point):
    """What the agent starts for one point, without the program's name."""
    from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args  # two seconds

    macros = create_sweep_command_args({"args": {name: {"value": value} for name, value in point.items()}})
    command = create_sweep_command(list(sweep["command"]))
    parts = [macros[part[2:-1]] if part.startswith("${") else [part] for part in command]
    program, *rest = itertools.chain(*parts)
    assert program == sweep["program"] == "pfedst"
    return [str(ROOT / part) if part.startswith("configs/") else part for part in rest]


def corners(sweep):
    """The first and the last value of every parameter, in all combinations."""
    ends = {}
    for name, parameter in sweep["parameters"].items():
        values = parameter.get("values") or [parameter[key] for key in ("value", "min", "max") if key in parameter]
        ends[name] = (values[0], values[-1]) if len(values) > 1 else values
    return [dict(zip(ends, values, strict=True)) for values in itertools.product(*ends.values())]


def parsed(given, capsys):
    """The configuration that the command line stands for."""
    assert main([*given, "--print_config"]) == 0
    return yaml.safe_load(capsys.readouterr().out)


def option(configuration, key):
    """An option as the command line names it."""
    for part in key.split("."):
        configuration = configuration.get("init_args", configuration)[part]
    return configuration.get("class_path", configuration) if isinstance(configuration, dict) else configuration


@pytest.mark.parametrize("name", SWEEPS)
def test_every_corner_is_a_command_line_that_the_parser_takes(name, capsys) -> None:
    for point in corners(SWEEPS[name]):
        configuration = parsed(arguments(SWEEPS[name], point), capsys)
        assert configuration["trainer"]["logger"]["class_path"].endswith("WandbLogger")
        assert option(configuration, "data.validation_fraction") > 0
        for key, value in point.items():
            assert option(configuration, key) == value, key


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model.optimizer.lr", 1e-05),
        ("coordinator.most_norm_ratio", None),
        ("data.verify_images", False),
        ("coordinator.held_out_sites", ["site_a", "site_b"]),
        ("data.samples_per_site", [12, 10, 8, 8]),
        ("method.schedule", "alternate"),
        ("name", "None_of_these"),
    ],
)
def test_values_as_the_agent_writes_them(key, value, capsys) -> None:
    assert option(parsed(arguments(SWEEPS["demo.yaml"], {key: value}), capsys), key) == value


def test_none_is_refused_where_null_is(capsys) -> None:
    assert main(arguments(SWEEPS["demo.yaml"], {"coordinator.rounds": None})) == 2
    assert "--coordinator.rounds" in capsys.readouterr().err


@pytest.mark.parametrize("name", SWEEPS)
def test_the_objective_is_logged(name, tmp_path) -> None:
    sweep = SWEEPS[name]
    options = ["--trainer.logger=CSVLogger", *SHORT, *NANO, f"--data.cache_folder={tmp_path / 'taps'}"]
    options += (
        [*TINY[2:5], "--data.image_size=32"]
        if name == "demo.yaml"
        else [f"--data.root={make_fed_isic(tmp_path / 'data')}"]
    )
    options += ["--data.validation_fraction=0.5", "--data.audit=off"]
    assert run(tmp_path, [*arguments(sweep, corners(sweep)[-1]), *options, f"--runs_dir={tmp_path}", "--name=a"]) == 0
    (table,) = (tmp_path / "a").rglob("metrics.csv")
    assert pd.read_csv(table)[sweep["metric"]["name"]].iloc[-1] >= 0
    assert sweep["metric"]["goal"] == "maximize"


def test_two_points_run_as_runs_of_their_sweep(tmp_path) -> None:
    from wandb.sdk.lib.config_util import save_config_file_from_dict

    sweep, points = SWEEPS["demo.yaml"], corners(SWEEPS["demo.yaml"])[1:3]
    for number, point in enumerate(points):
        of_the_agent = {"WANDB_SWEEP_ID": "sweep1", "WANDB_RUN_ID": f"point{number}", "WANDB_MODE": "offline"}
        of_the_agent["WANDB_SWEEP_PARAM_PATH"] = str(tmp_path / f"config-{number}.yaml")
        of_the_agent["WANDB_DIR"] = str(tmp_path)
        values = {name: {"value": value} for name, value in point.items()}
        save_config_file_from_dict(of_the_agent["WANDB_SWEEP_PARAM_PATH"], values)
        options = [*TINY, f"--data.cache_folder={tmp_path / 'taps'}", f"--runs_dir={tmp_path / 'runs'}"]
        options += ["--data.audit=off", "--data.image_size=32"]
        options += ["--trainer.logger.project=another", "--trainer.logger.id=mine"]  # the sweep's are its own
        assert run(tmp_path, [*arguments(sweep, point), *options], **of_the_agent) == 0
    found = [read(file) for file in files_of(tmp_path / "wandb")]
    summaries = [json.loads(file.read_text()) for file in sorted(tmp_path.glob("runs/*/summary.json"))]
    assert len(found) == len(summaries) == 2
    for number, (recorded, point) in enumerate(zip(found, points, strict=True)):
        assert (recorded.run.run_id, recorded.run.sweep_id) == (f"point{number}", "sweep1")
        assert recorded.run.project != "another"
        assert recorded.rows[-1][sweep["metric"]["name"]] == recorded.summary[sweep["metric"]["name"]]
        assert recorded.config.items() >= point.items()
        assert recorded.config["method"]["init_args"]["rank"] == point["method.rank"]
    assert {summary["protocol"]["method_options"]["rank"] for summary in summaries} == {4, 8}
