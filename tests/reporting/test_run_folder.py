"""The folder of a run: when it is made, whose name is free, and that one process at a time writes it."""

import fcntl
import os

import pytest

from pfedst.errors import ConfigurationError
from pfedst.reporting import RunFolder, run_folder


def unfinished(folder, records=""):
    """What a run leaves that ended before its first round was finished."""
    run = RunFolder.create(folder, "a", "default")
    run.write_config("x: 1")
    (run.path / "sites" / "s" / "after-000001").mkdir(parents=True)
    (run.path / "state" / "round-000000").mkdir(parents=True)
    run.records_file.write_text(records)
    return run.path


@pytest.mark.parametrize("records", ["", '{"round": 0, "client": "s"}\n', '{"round": 0}\n{"round": 0}\n'])
def test_a_run_without_a_finished_round_is_replaced(tmp_path, records) -> None:
    path = unfinished(tmp_path, records)
    (path / "wandb").mkdir()
    assert RunFolder.create(tmp_path, "a", "default").path == path
    assert [left.name for left in path.iterdir()] == ["wandb"]


@pytest.mark.parametrize(
    "records", ['{"round": 0}\n{"round": 1}\n', '{"round": 0}\n{"rou', '{"round": null}', "[]", "3"]
)
def test_a_run_with_a_finished_round_or_damaged_records_is_not(tmp_path, records) -> None:
    path = unfinished(tmp_path, records)
    before = sorted(tmp_path.rglob("*"))
    for make in (RunFolder.check_new, lambda folder, name: RunFolder.create(folder, name, "default")):
        with pytest.raises(ConfigurationError, match="never overwritten: choose another --name"):
            make(tmp_path, "a")
    assert sorted(tmp_path.rglob("*")) == before
    assert path.is_dir()


def test_a_folder_of_something_else_is_not_replaced(tmp_path) -> None:
    (tmp_path / "a").mkdir()
    RunFolder.check_new(tmp_path, "a")  # an empty one is
    (tmp_path / "a" / "thesis.tex").touch()
    (tmp_path / "b").touch()
    for name in "ab":
        with pytest.raises(ConfigurationError, match="never overwritten"):
            RunFolder.check_new(tmp_path, name)


def test_a_name_by_default_is_numbered_whatever_lies_there(tmp_path) -> None:
    """Two runs that start at the same time get two folders."""
    made = [RunFolder.create(tmp_path / "new", None, "default").path.name for _ in range(3)]
    assert made == ["default", "default-2", "default-3"]


def test_a_folder_that_another_process_writes_is_left_alone(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(run_folder, "HELD_SECONDS", 0.0)
    path = unfinished(tmp_path)
    other = os.open(path, os.O_RDONLY)
    fcntl.flock(other, fcntl.LOCK_EX)
    with pytest.raises(ConfigurationError, match="another process writes this run"):
        RunFolder.create(tmp_path, "a", "default")
    with pytest.raises(ConfigurationError, match="another process"), RunFolder(path).held():
        pass
    assert (path / "config.yaml").exists()
    os.close(other)
    with RunFolder(path).held():
        pass
    RunFolder.create(tmp_path, "a", "default")
