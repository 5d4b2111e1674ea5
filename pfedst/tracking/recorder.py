"""The base class of recorders: what one logger gets of a run. Flat options and numbers for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger

WriteReport = Callable[[Path], object]
"""Takes the folder of a run."""


class Recorder:
    """Passes a run to one logger: the configuration, every round, the end.

    Args:
        logger: a logger of Lightning, or one with the same interface.
    """

    def __init__(self, logger: Logger) -> None:
        self.logger = logger

    def start(self, folder: Path, configuration: dict[str, Any]) -> None:
        """Log the configuration, before the first round."""
        self.logger.log_hyperparams(flat_options(configuration))

    def log(self, round_number: int, metrics: Mapping[str, float]) -> None:
        """Log the metrics of a round."""
        self.logger.log_metrics(dict(metrics), step=round_number)
        self.logger.save()

    def end(self, folder: Path, summary: Mapping[str, Any] | None, write_report: WriteReport) -> None:
        """Close the logger after the last round.

        Args:
            folder: the folder of the run.
            summary: the content of `summary.json`; None if the run did not end well.
            write_report: writes the report of the run, for a logger that keeps files.
        """
        self.logger.finalize("failed" if summary is None else "success")


def is_working_directory(folder: Any) -> bool:
    """Return True if a logger's folder is the one that Lightning takes by default."""
    return folder is None or Path(folder).resolve() == Path.cwd()


def flat_options(configuration: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return a configuration as command-line options: `method` is PFedST, `method.rank` is 8."""
    found: dict[str, Any] = {}
    for key, value in configuration.items():
        name = {"class_path": prefix[:-1], "init_args": prefix[:-1]}.get(key, f"{prefix}{key}")
        if key == "class_path":
            found[name] = str(value).rsplit(".", 1)[-1]
        elif isinstance(value, Mapping):
            found |= flat_options(value, f"{name}.")
        else:
            found[name] = value
    return found


def main_numbers(summary: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers of `summary.json` that belong to no single client, such as `personal/mean/accuracy`."""
    parts = {key: summary.get(key) for key in ("personal", "generic", "best_on_validation", "cost")}
    return dict(_numbers(parts, ""))


def _numbers(tree: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, float]]:
    for key, value in tree.items():
        if isinstance(value, Mapping) and key != "clients":
            yield from _numbers(value, f"{prefix}{key}/")
        elif isinstance(value, int | float):
            yield f"{prefix}{key}", value
