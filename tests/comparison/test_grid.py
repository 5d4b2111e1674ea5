"""Runs as processes: so many at a time, failures reported, nothing left behind. A function stands in for a run."""

import os
import re
import sys
import time
from io import StringIO
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from pfedst.comparison import Grid, GridRun
from pfedst.comparison.grid import last_words
from pfedst.errors import StateError

CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f]")
"""Characters that move a cursor or colour a text, all but the end of a line."""


def stand_in(parent, arguments, log) -> None:
    """What a run does, as its first argument says; its output goes to the log."""
    what, folder, name = arguments
    out = Path(folder)
    with Path(log).open("a") as sys.stdout:
        (out / f"{name}.started").write_text(f"{os.getpid()} {os.environ.get('OMP_NUM_THREADS')}")
        if what == "fail":
            print("a line before\npfedst: error: --data.root x: no folder\n  a remedy")
            sys.exit(3)
        if what == "crash":
            print("RuntimeError: a defect")
            sys.exit(1)
        if what == "silent":
            sys.exit(0)
        if what == "forever":
            time.sleep(3600)
        tries = 0
        while what.startswith("run") and not (out / f"{what}.started").exists():  # until that one runs too
            time.sleep(0.01)
            tries += 1
            assert tries < 30_000, "it hangs"
        at_once = {path.stem for path in out.glob("*.started")} - {path.stem for path in out.glob("*.ended")}
        (out / f"{name}.seen").write_text(" ".join(sorted(at_once)))
        (out / name).mkdir()
        (out / name / "summary.json").write_text("{}")
        (out / f"{name}.ended").touch()


@pytest.fixture
def grid(tmp_path, monkeypatch):
    monkeypatch.setattr("pfedst.comparison.grid.POLL_SECONDS", 0.01)

    def make(jobs):
        return Grid(tmp_path, jobs, stand_in, Console(file=StringIO(), width=300))

    return make


def runs(folder, *what):
    return [GridRun(f"run{number}", "row", (str(w), str(folder), f"run{number}")) for number, w in enumerate(what)]


def test_so_many_at_a_time_in_order(grid, tmp_path) -> None:
    made = grid(2)
    # two of them wait for each other: one at a time would fail
    assert made.run(runs(tmp_path, "run1", "run0", "run3", "run2"), "testing") == {}
    seen = [(tmp_path / f"run{number}.seen").read_text().split() for number in range(4)]
    assert {"run0", "run1"} <= {*seen[0], *seen[1]} <= {f"run{number}" for number in range(3)}
    assert all(len(at_once) <= 2 for at_once in seen)
    told = made.console.file.getvalue()
    assert "testing: 4 of 4, run" in told
    assert "left" in told
    assert not CONTROL.search(told)  # a log file


def test_the_longest_run_of_a_group_comes_first(tmp_path) -> None:
    made = Grid(tmp_path, 2, stand_in, Console(file=StringIO()))
    made._seconds = {"short": [1.0], "long": [9.0, 11.0], "middle": [5.0]}
    rows = ("short", "middle", "long", "long", "new")
    waiting = [GridRun(f"{row}{group}", row, (), group) for group in "ab" for row in rows]
    order = []
    while waiting:
        order.append(waiting.pop(made._next(waiting)).name)
    assert order == ["newa", "longa", "longa", "middlea", "shorta", "newb", "longb", "longb", "middleb", "shortb"]
    # one at a time nothing ends earlier, and the order is that of the plan
    alone = Grid(tmp_path, 1, stand_in, Console(file=StringIO()))
    alone._seconds = made._seconds
    assert alone._next([GridRun("a", "short", ()), GridRun("b", "long", ())]) == 0


def test_finished_runs_are_kept(grid, tmp_path) -> None:
    grid(1).run(runs(tmp_path, 0, 0), "first")
    before = (tmp_path / "run0.started").read_text()
    made = grid(1)
    assert made.run(runs(tmp_path, "fail", "fail", 0), "again") == {}
    assert (tmp_path / "run0.started").read_text() == before
    assert "again: 2 of 3 runs are there already" in made.console.file.getvalue()


def test_failures_are_told_and_the_rest_goes_on(grid, tmp_path) -> None:
    made = grid(1)
    failed = made.run(runs(tmp_path, "fail", "crash", "silent", 0), "testing")
    assert set(failed) == {"run0", "run1", "run2"}
    assert failed["run0"] == "exit code 3: --data.root x: no folder a remedy"
    assert failed["run1"].endswith("RuntimeError: a defect")
    assert failed["run2"].startswith("exit code 0")
    assert (tmp_path / "run3" / "summary.json").is_file()
    assert f"full log: {tmp_path / 'run0.log'}" in made.console.file.getvalue()


def test_threads_are_divided_unless_they_are_given(grid, tmp_path, monkeypatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)  # so that no run is forked: another variable is gone
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    grid(4).run(runs(tmp_path, 0), "testing")
    assert (tmp_path / "run0.started").read_text().split()[1] == "2"
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    grid(4).run(runs(tmp_path, 0, 0), "testing")
    assert (tmp_path / "run1.started").read_text().split()[1] == "3"


def test_an_interruption_ends_the_runs(grid, tmp_path, monkeypatch) -> None:
    def interrupt(seconds):
        if (tmp_path / "run0.started").exists() and (tmp_path / "run0.started").read_text():
            raise KeyboardInterrupt

    clock = SimpleNamespace(sleep=interrupt, monotonic=time.monotonic)  # of the grid alone: subprocess sleeps too
    monkeypatch.setattr("pfedst.comparison.grid.time", clock)
    with pytest.raises(KeyboardInterrupt):
        grid(1).run(runs(tmp_path, "forever"), "testing")
    pid = int((tmp_path / "run0.started").read_text().split()[0])
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_folder_that_cannot_be_made_is_told(grid, tmp_path) -> None:
    (tmp_path / "file").touch()
    made = grid(1)
    made.folder = tmp_path / "file" / "runs"
    with pytest.raises(StateError, match="cannot be written"):
        made.run(runs(tmp_path, 0), "testing")


def test_last_words_without_an_error_are_the_last_lines(tmp_path) -> None:
    log = tmp_path / "a.log"
    log.write_text("\n".join(str(number) for number in range(9)) + "\n\n")
    assert last_words(log) == "4 5 6 7 8"
    log.write_text("")  # a full disk takes the log too
    assert last_words(log) == "no output"
