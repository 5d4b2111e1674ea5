"""Loggers of a run: their steps are its rounds, what they miss is told once, and none of them can end it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger

WriteReport = Callable[[Path], object]
"""Takes the folder of a run."""


class Recorder:
    """What one logger is told of a run: the configuration, every round, the end.

    Args:
        logger: of Lightning, or like one.
    """

    def __init__(self, logger: Logger) -> None:
        self.logger = logger

    def start(self, folder: Path, configuration: dict[str, Any]) -> None:
        """Before the first round that is logged."""
        self.logger.log_hyperparams(flat_options(configuration))

    def log(self, round_number: int, metrics: Mapping[str, float]) -> None:
        """At the end of a round."""
        self.logger.log_metrics(dict(metrics), step=round_number)
        self.logger.save()

    def end(self, folder: Path, summary: Mapping[str, Any] | None, write_report: WriteReport) -> None:
        """After the last round.

        Args:
            folder: of the run.
            summary: what `summary.json` holds, or None where the run did not get there.
            write_report: for a logger that keeps the files of a run.
        """
        self.logger.finalize("failed" if summary is None else "success")


class CSVRecorder(Recorder):
    """CSV files in the run's folder unless another was given."""

    logger: CSVLogger

    def start(self, folder: Path, configuration: dict[str, Any]) -> None:
        """The configuration as `hparams.yaml`."""
        if is_working_directory(self.logger.save_dir):
            self.logger._save_dir = self.logger._root_dir = str(folder)
        super().start(folder, configuration)


class TensorBoardRecorder(Recorder):
    """TensorBoard's files in the run's folder unless another was given."""

    logger: TensorBoardLogger

    def start(self, folder: Path, configuration: dict[str, Any]) -> None:
        """The configuration as `hparams.yaml`; TensorBoard's own table is written at the end, with the results."""
        if is_working_directory(self.logger.save_dir):
            self.logger._root_dir = str(folder)
        self._options = flat_options(configuration)
        self.logger.log_hyperparams(self._options, metrics={})

    def end(self, folder: Path, summary: Mapping[str, Any] | None, write_report: WriteReport) -> None:
        """The row of this run in the table of hyperparameters."""
        try:
            if summary is not None:
                self.logger.log_hyperparams(self._options, main_numbers(summary), summary["protocol"]["round"])
        finally:
            super().end(folder, summary, write_report)


class RunLoggers:
    """All loggers of a run.

    Args:
        loggers: of the Trainer.
    """

    def __init__(self, loggers: Sequence[Logger]) -> None:
        self._recorders = [_recorder(logger) for logger in loggers]
        self._told: list[Recorder] = []
        self._summary: Mapping[str, Any] | None = None

    @contextmanager
    def recording(self, folder: Path, write_report: WriteReport) -> Iterator[None]:
        """Start them, and end them whatever happens within the block.

        Args:
            folder: of the run; `config.yaml` in it is the configuration that is logged.
            write_report: of the run, into that folder; for loggers that keep files.
        """
        file = folder / "config.yaml"
        configuration = yaml.safe_load(file.read_text()) if self._recorders and file.is_file() else {}
        try:
            self._each(lambda recorder: recorder.start(folder, configuration))
            yield
        finally:
            self._each(lambda recorder: recorder.end(folder, self._summary, write_report))

    def log(self, round_number: int, metrics: Mapping[str, float]) -> None:
        """What a round came to, evaluated or not."""
        if metrics:
            self._each(lambda recorder: recorder.log(round_number, metrics))

    def conclude(self, summary: Mapping[str, Any]) -> None:
        """The run is done, and its folder holds all there is: this goes with the end of the block."""
        self._summary = summary

    def _each(self, tell: Callable[[Recorder], None]) -> None:
        for recorder in self._recorders:
            try:
                tell(recorder)
            except Exception as error:
                if recorder not in self._told:
                    self._told.append(recorder)
                    logging.getLogger("pfedst").warning(
                        "%s: %s: %s; the run goes on, its folder holds what this logger misses, and more of this is "
                        "not told",
                        type(recorder.logger).__name__,
                        type(error).__name__,
                        error,
                    )


def _recorder(logger: Logger) -> Recorder:
    if isinstance(logger, WandbLogger):
        from pfedst.tracking.wandb_run import WandbRecorder

        return WandbRecorder(logger)
    if isinstance(logger, CSVLogger):
        return CSVRecorder(logger)
    return TensorBoardRecorder(logger) if isinstance(logger, TensorBoardLogger) else Recorder(logger)


def is_working_directory(folder: Any) -> bool:
    """Whether a logger's folder is the one that Lightning takes where none was given."""
    return folder is None or Path(folder).resolve() == Path.cwd()


def save_dir_may_be_left_out() -> None:
    """Let a configuration name a logger without `save_dir`, which two of Lightning's demand."""
    for kind in (CSVLogger, TensorBoardLogger):
        defaults = kind.__init__.__defaults__ or ()
        if len(defaults) < kind.__init__.__code__.co_argcount - 1:
            kind.__init__.__defaults__ = (".", *defaults)


def flat_options(configuration: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A configuration as its options are written on the command line: `method` is PFedST, `method.rank` is 8."""
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
    """The numbers of `summary.json` that are not of one client: `personal/mean/accuracy`, `cost/fit_seconds`."""
    parts = {key: summary.get(key) for key in ("personal", "generic", "best_on_validation", "cost")}
    return dict(_numbers(parts, ""))


def _numbers(tree: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, float]]:
    for key, value in tree.items():
        if isinstance(value, Mapping) and key != "clients":
            yield from _numbers(value, f"{prefix}{key}/")
        elif isinstance(value, int | float):
            yield f"{prefix}{key}", value
