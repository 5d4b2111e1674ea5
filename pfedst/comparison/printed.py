"""The runs of a comparison as commands, for a cluster's scheduler."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from pfedst.comparison.grid import Grid, GridRun
from pfedst.errors import PfedstError


class RunsPrintedError(PfedstError):
    """Commands were printed: the comparison cannot go on before they have run."""

    exit_code = 0


class PrintedGrid(Grid):
    """Prints the command of each run that is not finished, a line each, in place of running it.

    Args:
        folder: folder of the runs.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, jobs=1, target=_never)

    def run(self, runs: Sequence[GridRun], what: str) -> dict[str, str]:
        """Print the runs that are not finished.

        Raises:
            RunsPrintedError: there are some.
        """
        waiting = [run for run in runs if not self.is_finished(run)]
        for run in waiting:
            print(shlex.join(["pfedst", "fit", *run.arguments]))
        if waiting:
            raise RunsPrintedError(f"{what}: {len(waiting)} of {len(runs)} runs are to be run")
        return {}


def _never(*_: object) -> None:
    raise AssertionError("runs are printed")
