"""What loggers are told of a run, read back from what they kept; and that none of them can end a run."""

import functools
import http.server
import json
import re
import socket
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
import pytest
import wandb
import yaml
from lightning.pytorch.loggers import Logger, WandbLogger
from pfedst_baselines.fedavg import FedAvg

import pfedst
from pfedst.testing.small import fit as small_fit
from pfedst.tracking import wandb_run
from pfedst.tracking.loggers import flat_options
from tests.server.test_resume import StopAfter, StopError
from tests.tracking.runs import clean, fit
from tests.tracking.wandb_file import files_of, read

WANDB = ["--trainer.logger=WandbLogger", "--trainer.logger.project=sites", "--trainer.logger.group=seeds"]
KEY = "a" * 40
QUICK = ["--data.audit=off", "--data.image_size=32"]
"""For runs whose images are not looked at."""


def expected_rows(run):
    """What a row of every round must hold, from the records of the run itself."""
    rows = {}
    for line in (run / "rounds.jsonl").read_text().splitlines():
        record = json.loads(line)
        row = rows.setdefault(record["round"], {"round": record["round"]})
        name = record["client"]
        if "train_loss" in record:
            row[f"client/{name}/train_loss"] = record["train_loss"]
        for split, models in record.get("received", {}).items():
            row |= {f"client/{name}/{split}/{metric}": value for metric, value in models["personal"].items()}
            for group in ("federation", "generic"):
                row |= {f"{group}/{split}/{metric}": None for metric in models["personal"]}
    return [rows[number] for number in sorted(rows)]


def same_rows(found, expected) -> None:
    assert [set(row) for row in found] == [set(row) for row in expected]
    for row, wanted in zip(found, expected, strict=True):
        for key, value in wanted.items():
            assert value is None or row[key] == pytest.approx(value), key


# -- W&B ---------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def offline(tmp_path_factory):
    """A folder with an offline run, and one that went on with it for a round more."""
    folder = tmp_path_factory.mktemp("offline")
    assert fit(folder, *WANDB, WANDB_MODE="offline") == 0
    assert fit(folder, *WANDB, "--resume", "--coordinator.rounds=3", WANDB_MODE="offline") == 0
    return folder


def test_one_run_of_wandb_has_a_row_a_round(offline) -> None:
    first, second = (read(file) for file in files_of(offline))
    same_rows(first.rows + second.rows, expected_rows(offline / "runs" / "a"))
    assert [row["round"] for row in first.rows] == [0, 1, 2]
    assert "federation/validation/balanced_accuracy" in first.rows[0]
    assert first.steps == {"round": "", "client/*": "round", "federation/*": "round", "generic/*": "round"}
    assert (first.run.project, first.run.run_group, first.run.display_name) == ("sites", "seeds", "a")
    assert first.exit_code == 0


def test_a_run_that_goes_on_is_the_same_run_of_wandb(offline) -> None:
    first, second = (read(file) for file in files_of(offline))
    assert first.run.run_id == second.run.run_id == (offline / "runs" / "a" / wandb_run.ID_FILE).read_text()


def test_the_configuration_is_logged_once_as_it_is(offline) -> None:
    found = {key: value for key, value in read(files_of(offline)[-1]).config.items() if key != "_wandb"}
    assert found == yaml.safe_load((offline / "runs" / "a" / "config.yaml").read_text())


def test_the_summary_and_the_files_of_the_run_are_kept(offline) -> None:
    found = read(files_of(offline)[-1])
    run = offline / "runs" / "a"
    summary = json.loads((run / "summary.json").read_text())
    assert found.summary["cost/upload_bytes_per_round"] == summary["cost"]["upload_bytes_per_round"]
    for model in ("personal", "generic"):
        for column in ("mean", "worst"):
            assert found.summary[f"{model}/{column}/balanced_accuracy"] == summary[model][column]["balanced_accuracy"]
    assert found.summary["best_on_validation/round"] == summary["best_on_validation"]["round"]
    assert not [key for key in found.summary if "/clients/" in key]
    (artifact,) = found.artifacts
    assert artifact.name == f"pfedst-{found.run.run_id}"
    assert {file.path: file.size for file in artifact.manifest.contents} == {
        name: (run / name).stat().st_size
        for name in (
            "summary.json",
            "config.yaml",
            "rounds.jsonl",
            *(f"report/{file.name}" for file in (run / "report").iterdir()),
        )
    }
    assert (run / "report" / "report.html").is_file()


def test_all_of_it_lies_in_the_folder_of_the_run(offline) -> None:
    assert {path.name for path in offline.iterdir()} == {"home", "runs", "taps"}
    assert len(files_of(offline / "runs" / "a" / "wandb")) == 2


def test_disabled_leaves_nothing(tmp_path) -> None:
    assert fit(tmp_path, *WANDB, *QUICK, WANDB_MODE="disabled") == 0
    assert (tmp_path / "runs" / "a" / "summary.json").is_file()
    assert not list(tmp_path.rglob("*wandb*"))


@contextmanager
def closed():
    """A port where nothing listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    yield port


@contextmanager
def silent():
    """A server that takes what is sent, and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@contextmanager
def useless():
    """A server that answers, and is none of W&B's."""

    class NotFound(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.send_error(404)

        def log_message(self, *_) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), NotFound) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


@pytest.mark.parametrize(
    ("network", "key", "reason", "modes"),
    [
        (closed, KEY, "refused", ["offline"]),
        (silent, KEY, "no answer within 1 s", ["offline"]),
        (useless, KEY, "CommError", ["online", "offline"]),
        (useless, "", "no API key", ["offline"]),
        (useless, "short", "40", ["offline"]),
    ],
)
def test_a_dead_network_costs_one_question_and_no_record(
    network, key, reason, modes, tmp_path, monkeypatch, capsys
) -> None:
    """Neither W&B's own patience nor a question a round: a run asks once, and then goes on offline."""
    questions, begun, ask, init = [], [], wandb_run._request, wandb.init

    def asked(settings):
        questions.append(settings.base_url)
        return ask(settings)

    @functools.wraps(init)  # the command line reads options of the logger off its signature
    def started(**options):
        begun.append(options)
        return init(**options)

    monkeypatch.setattr(wandb_run, "ANSWER_SECONDS", 1.0)
    monkeypatch.setattr(wandb_run, "_request", asked)
    monkeypatch.setattr(wandb, "init", started)
    with network() as port:
        url = f"http://127.0.0.1:{port}"
        variables = {"WANDB_MODE": "online", "WANDB_BASE_URL": url, "WANDB_API_KEY": key}
        assert fit(tmp_path, *WANDB, *QUICK, **variables) == 0
    assert questions == [url]
    assert [options.get("mode", "online") for options in begun] == modes
    for options in begun:
        patience = options["settings"]
        assert max(patience["init_timeout"], patience["finish_timeout"]) <= 15
    (file,) = [file for file in files_of(tmp_path) if read(file).history]
    same_rows(read(file).rows, expected_rows(tmp_path / "runs" / "a"))
    assert read(file).exit_code == 0
    (told,) = [
        line for line in capsys.readouterr().err.splitlines() if "WARNING" in line and "WARNING: round" not in line
    ]
    assert reason in told
    assert f"wandb sync {file.parent}" in told


def test_what_is_not_taken_in_time_at_the_end_is_told(tmp_path, caplog) -> None:
    class Run:
        id, disabled, sync_dir = "1", True, "there"

        def finish(self, exit_code) -> None:
            raise TimeoutError

    recorder = wandb_run.WandbRecorder(WandbLogger(offline=True))
    recorder.run, recorder._owned = Run(), True
    recorder.end(tmp_path, {}, lambda folder: None)
    assert "wandb sync there" in caplog.text


def test_a_run_that_fails_is_failed_there_too(tmp_path, monkeypatch) -> None:
    clean(monkeypatch, tmp_path)
    options = {"callbacks": [StopAfter(1)], "logger": WandbLogger(offline=True, prefix="my")}
    with pytest.raises(StopError):
        small_fit(tmp_path, FedAvg(), trainer_options=options)
    wandb.teardown()  # W&B's own process writes the end of the file
    (file,) = files_of(tmp_path / "run")
    found = read(file)
    assert found.exit_code == 1
    assert [row["my-round"] for row in found.rows] == [0, 1]
    assert found.steps["my-client/*"] == "my-round"


def test_wandb_that_is_not_installed_is_told(tmp_path, monkeypatch, capsys) -> None:
    class Missing:
        def __bool__(self) -> bool:
            return False

        def __str__(self) -> str:
            return "Requirement 'wandb' not met"

    monkeypatch.setattr(sys.modules[WandbLogger.__module__], "_WANDB_AVAILABLE", Missing())
    assert fit(tmp_path, *WANDB) == 2
    assert "pfedst[wandb]" in capsys.readouterr().err


def test_without_its_logger_wandb_is_not_imported() -> None:
    at_once = re.compile(r"^(import wandb|from (wandb|pfedst\.tracking\.wandb_run))\b", re.MULTILINE)
    package = Path(pfedst.__file__).parent
    assert [path.name for path in package.rglob("*.py") if at_once.search(path.read_text())] == ["wandb_run.py"]


# -- other loggers -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def others(tmp_path_factory):
    """The folder of a run with two loggers, and no `save_dir`."""
    folder = tmp_path_factory.mktemp("others")
    loggers = "--trainer.logger=[{class_path: CSVLogger}, {class_path: TensorBoardLogger, init_args: {name: board}}]"
    assert fit(folder, loggers) == 0
    assert {path.name for path in folder.iterdir()} <= {"home", "runs", "taps"}
    return folder / "runs" / "a"


def test_csv_has_a_row_a_round_and_columns_that_come_later(others) -> None:
    table = pd.read_csv(others / "lightning_logs" / "version_0" / "metrics.csv")
    rows = [{key: value for key, value in row.items() if value == value} for row in table.to_dict("records")]
    same_rows(
        [{**row, "round": row["step"]} for row in rows], [{**r, "step": r["round"]} for r in expected_rows(others)]
    )


def test_the_options_are_kept_as_they_are_written(others) -> None:
    kept = yaml.safe_load((others / "lightning_logs" / "version_0" / "hparams.yaml").read_text())
    assert kept["method"] == "PFedST"
    assert kept["method.rank"] == 2
    assert kept["model.optimizer"] == "AdamW"
    assert kept["coordinator.rounds"] == 2
    assert kept == flat_options(yaml.safe_load((others / "config.yaml").read_text()))


def test_tensorboard_has_rounds_as_steps_and_one_row_of_options(others) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(others / "board" / "version_0"))
    events.Reload()
    expected = expected_rows(others)
    for key in set().union(*expected) - {"round"}:
        found = {event.step: event.value for event in events.Scalars(key)}
        assert found.keys() == {row["round"] for row in expected if key in row}
    assert "hp_metric" not in events.Tags()["scalars"]
    (worst,) = events.Scalars("personal/worst/balanced_accuracy")
    summary = json.loads((others / "summary.json").read_text())
    assert worst.value == pytest.approx(summary["personal"]["worst"]["balanced_accuracy"])
    plugin = events.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    assert b"method.rank" in plugin


class BadLogger(Logger):
    """Raises whatever it is told."""

    name = "bad"
    version = 0

    def _raise(self, *_, **__) -> None:
        raise OSError("no more")

    log_hyperparams = log_metrics = save = finalize = _raise


class GoodLogger(BadLogger):
    def __init__(self) -> None:
        super().__init__()
        self.told = []

    def log_hyperparams(self, *_, **__) -> None:
        self.told.append("options")

    def log_metrics(self, metrics, step) -> None:
        self.told.append(step)

    def save(self) -> None: ...

    def finalize(self, status) -> None:
        self.told.append(status)


def test_a_logger_that_raises_is_told_once_and_ends_nothing(tmp_path, caplog) -> None:
    good = GoodLogger()
    summary = small_fit(tmp_path, FedAvg(), trainer_options={"logger": [BadLogger(), good]})
    assert summary["protocol"]["round"] == 2
    assert caplog.text.count("BadLogger: OSError: no more") == 1
    assert "GoodLogger" not in caplog.text
    assert good.told == ["options", 0, 1, 2, "success"]


def test_a_run_that_is_interrupted_ends_its_loggers(tmp_path) -> None:
    good, stop = GoodLogger(), StopAfter(1)
    with pytest.raises(StopError):
        small_fit(tmp_path, FedAvg(), trainer_options={"logger": good, "callbacks": [stop]})
    assert good.told == ["options", 0, 1, "failed"]
