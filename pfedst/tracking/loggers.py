"""Loggers of a run: their steps are its rounds, what they miss is told once, and none of them can end it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger

from pfedst.tracking.recorder import Recorder, WriteReport, flat_options, is_working_directory, main_numbers


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


def save_dir_may_be_left_out() -> None:
    """Let a configuration name a logger without `save_dir`, which two of Lightning's demand."""
    for kind in (CSVLogger, TensorBoardLogger):
        defaults = kind.__init__.__defaults__ or ()
        if len(defaults) < kind.__init__.__code__.co_argcount - 1:
            kind.__init__.__defaults__ = (".", *defaults)
