"""A progress display for rounds, clients and time left."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from pfedst.time_left import time_left


class RunProgress:
    """Count local fits over all rounds.

    On a terminal it shows a bar; otherwise it prints one line per round, for log files.

    Args:
        fits: number of local fits of the whole run.
        console: console to write to; standard error by default, so that standard output holds only results.
    """

    def __init__(self, fits: int, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True)
        self.fits = fits
        self.done = 0
        self.earlier = 0
        self.started = time.perf_counter()
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("fits,"),
            TimeElapsedColumn(),
            TextColumn("gone,"),
            TimeRemainingColumn(),
            TextColumn("left"),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self.task = self.bar.add_task("starting", total=fits)

    def __enter__(self) -> RunProgress:
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.stop()

    def say(self, doing: str) -> None:
        """Show the current activity."""
        self.bar.update(self.task, description=doing)

    def fitted(self, earlier: bool = False) -> None:
        """Count one more local fit. A fit of an earlier process does not count for the estimated time left."""
        self.done += 1
        self.earlier += earlier
        self.bar.update(self.task, completed=self.done)

    def seconds_left(self) -> float | None:
        """Estimate the time left from the mean time of the fits so far, with evaluations; None before the first."""
        here = self.done - self.earlier
        return (time.perf_counter() - self.started) / here * (self.fits - self.done) if here else None

    def round_done(self, text: str) -> None:
        """Print the end of a round if there is no terminal."""
        if self.bar.disable:
            left = self.seconds_left()
            ends = "" if left is None else f", {time_left(left)}"
            self.console.print(text + ends, highlight=False, soft_wrap=True)
