"""Run a grid of runs on one machine, each in its own process, a given number at a time, with the time left."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from pfedst.child_processes import ChildProcess, ParentProcess, start_child
from pfedst.state import writing
from pfedst.time_left import time_left

Target = Callable[[ParentProcess, list[str], str], None]
"""Runs `pfedst fit` with arguments and writes its output to a file; it ends by `SystemExit`."""
POLL_SECONDS = 0.1
END_SECONDS = 30
LAST_LINES = 5


@dataclass(frozen=True)
class GridRun:
    """A run.

    Attributes:
        name: name of its folder.
        label: label of its row.
        arguments: its arguments of `pfedst fit`.
        group: text that is equal for runs of several rows that are compared with each other: their seed and fold.
    """

    name: str
    label: str
    arguments: tuple[str, ...]
    group: str = ""


@dataclass(eq=False)
class _Running:
    run: GridRun
    child: ChildProcess
    log: Path
    started: float


class Grid:
    """Start runs as processes that end with this process, and follow them.

    Args:
        folder: folder of the runs. The log of each run lies beside the run.
        jobs: number of runs at a time, >= 1.
        target: function that a process of a run calls.
        console: console for the progress; standard error by default.
    """

    def __init__(self, folder: Path, jobs: int, target: Target, console: Console | None = None) -> None:
        self.folder = folder
        self.jobs = jobs
        self.target = target
        self.console = console or Console(stderr=True)
        self._seconds: dict[str, list[float]] = {}

    def is_finished(self, run: GridRun) -> bool:
        """Return True if a run has its summary. The name of a run holds the hash of its configuration."""
        return (self.folder / run.name / "summary.json").is_file()

    def run(self, runs: Sequence[GridRun], what: str) -> dict[str, str]:
        """Run all runs that are not finished.

        Args:
            runs: runs in the order in which they are started. With several at a time, the longest of a group comes
                first, so that the end is not one long run.
            what: name of the runs, for the progress.

        Returns:
            Name of a failed run -> its last output.
        """
        waiting = [run for run in runs if not self.is_finished(run)]
        earlier = len(runs) - len(waiting)
        running: list[_Running] = []
        failed: dict[str, str] = {}
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with ExitStack() as stack:
            bar = stack.enter_context(Progress(*columns, console=self.console, disable=not self.console.is_terminal))
            task = bar.add_task(what, total=len(runs), completed=earlier)
            stack.callback(self._end, running)
            if earlier:
                self._say(f"{what}: {earlier} of {len(runs)} runs are there already")
            while waiting or running:
                while waiting and len(running) < self.jobs:
                    running.append(self._start(waiting.pop(self._next(waiting))))
                for done in [one for one in running if one.child.process.exitcode is not None]:
                    running.remove(done)
                    outcome = self._ended(done, failed)
                    left = self._seconds_left(waiting, running)
                    bar.update(task, advance=1, description=f"{what}, {_left(left)}")
                    number = len(runs) - len(waiting) - len(running)
                    self._say(f"{what}: {number} of {len(runs)}, {outcome}, {_left(left)}")
                time.sleep(POLL_SECONDS)
        return failed

    def _next(self, waiting: Sequence[GridRun]) -> int:
        """Return the index of the run to start: the longest of the first group, a row of unknown duration before it."""
        if self.jobs == 1:
            return 0
        group = [index for index, run in enumerate(waiting) if run.group == waiting[0].group]
        return max(group, key=lambda index: fmean(self._seconds.get(waiting[index].label, [math.inf])))

    def _start(self, run: GridRun) -> _Running:
        log = self.folder / f"{run.name}.log"
        environment = {"WANDB_RUN_GROUP": self.folder.parent.name, "WANDB_NAME": run.name} | os.environ
        if self.jobs > 1:  # all runs together use as many threads as the machine has cores
            environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // self.jobs)))
        with writing(log):
            self.folder.mkdir(parents=True, exist_ok=True)
            log.write_bytes(b"")
        child = start_child(self.target, list(run.arguments), str(log), environment=environment)
        return _Running(run, child, log, time.monotonic())

    def _ended(self, done: _Running, failed: dict[str, str]) -> str:
        seconds, name = time.monotonic() - done.started, done.run.name
        done.child.connection.close()
        code = done.child.process.exitcode
        if code == 0 and self.is_finished(done.run):
            self._seconds.setdefault(done.run.label, []).append(seconds)
            return f"{name} took {seconds:.0f} s"
        failed[name] = f"exit code {code}: {last_words(done.log)}"
        return f"{name} FAILED with {failed[name]} (full log: {done.log})"

    def _seconds_left(self, waiting: Sequence[GridRun], running: Sequence[_Running]) -> float | None:
        """Estimate the time left from earlier runs of the same row, or of all rows if the row has no finished run."""
        if not self._seconds:
            return None
        of_all = fmean(seconds for row in self._seconds.values() for seconds in row)
        now = time.monotonic()

        def expected(label: str) -> float:
            return fmean(self._seconds.get(label, [of_all]))

        left = sum(expected(run.label) for run in waiting)
        left += sum(max(0.0, expected(one.run.label) - (now - one.started)) for one in running)
        return left / self.jobs

    def _end(self, running: Sequence[_Running]) -> None:
        """End interrupted runs: let them save their state, and wait for them."""
        for one in running:
            one.child.process.terminate()
        deadline = time.monotonic() + END_SECONDS
        for one in running:
            one.child.process.join(max(0.0, deadline - time.monotonic()))
            one.child.process.kill()
            one.child.process.join()
            one.child.connection.close()

    def _say(self, text: str) -> None:
        if not self.console.is_terminal or "FAILED" in text:
            self.console.print(text, highlight=False, markup=False, soft_wrap=True)


def last_words(log: Path) -> str:
    """Return the error message in the log of a run, or its last lines if there is none."""
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    errors = [index for index, line in enumerate(lines) if line.startswith("pfedst: error:")]
    chosen = lines[errors[-1] :] if errors else lines[-LAST_LINES:]
    return " ".join(line.removeprefix("pfedst: error: ").strip() for line in chosen) or "no output"


def _left(seconds: float | None) -> str:
    return "time left not known yet" if seconds is None else time_left(seconds)
