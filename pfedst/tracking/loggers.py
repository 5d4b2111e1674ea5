"""Loggers of a run. Their steps are rounds. An error of a logger is reported once and does not end the run."""

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
    """Write CSV files into the folder of the run, unless another folder was given."""

    logger: CSVLogger

    def start(self, folder: Path, configuration: dict[str, Any]) -> None:
        """Write the configuration to `hparams.yaml`."""
        if is_working_directory(self.logger.save_dir):
            self.logger._save_dir = self.logger._root_dir = str(folder)
        super().start(folder, configuration)


class TensorBoardRecorder(Recorder):
    """Write TensorBoard files into the folder of the run, unless another folder was given."""

    logger: TensorBoardLogger

    def start(self, folder: Path, configuration: dict[str, Any]) -> None:
        """Write the configuration to `hparams.yaml`. TensorBoard's own table is written with the results."""
        if is_working_directory(self.logger.save_dir):
            self.logger._root_dir = str(folder)
        self._options = flat_options(configuration)
        self.logger.log_hyperparams(self._options, metrics={})

    def end(self, folder: Path, summary: Mapping[str, Any] | None, write_report: WriteReport) -> None:
        """Write the row of this run in TensorBoard's table of hyperparameters."""
        try:
            if summary is not None:
                self.logger.log_hyperparams(self._options, main_numbers(summary), summary["protocol"]["round"])
        finally:
            super().end(folder, summary, write_report)


class RunLoggers:
    """All loggers of a run.

    Args:
        loggers: loggers of the Trainer.
    """

    def __init__(self, loggers: Sequence[Logger]) -> None:
        self._recorders = [_recorder(logger) for logger in loggers]
        self._reported: list[Recorder] = []
        self._summary: Mapping[str, Any] | None = None

    @contextmanager
    def recording(self, folder: Path, write_report: WriteReport) -> Iterator[None]:
        """Start the loggers, and end them when the block ends, also after an error.

        Args:
            folder: folder of the run. Its `config.yaml` is the logged configuration.
            write_report: writes the report of a run into its folder, for loggers that keep files.
        """
        file = folder / "config.yaml"
        configuration = yaml.safe_load(file.read_text()) if self._recorders and file.is_file() else {}
        try:
            self._each(lambda recorder: recorder.start(folder, configuration))
            yield
        finally:
            self._each(lambda recorder: recorder.end(folder, self._summary, write_report))

    def log(self, round_number: int, metrics: Mapping[str, float]) -> None:
        """Log the metrics of a round."""
        if metrics:
            self._each(lambda recorder: recorder.log(round_number, metrics))

    def conclude(self, summary: Mapping[str, Any]) -> None:
        """Set the summary of a finished run. The loggers receive it at the end of the block."""
        self._summary = summary

    def _each(self, call: Callable[[Recorder], None]) -> None:
        for recorder in self._recorders:
            try:
                call(recorder)
            except Exception as error:
                if recorder not in self._reported:
                    self._reported.append(recorder)
                    logging.getLogger("pfedst").warning(
                        "%s: %s: %s; the run continues, its folder holds all records, and further errors of this "
                        "logger are not reported",
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
    """Make `save_dir` optional for two Lightning loggers that require it in a configuration."""
    for kind in (CSVLogger, TensorBoardLogger):
        defaults = kind.__init__.__defaults__ or ()
        if len(defaults) < kind.__init__.__code__.co_argcount - 1:
            kind.__init__.__defaults__ = (".", *defaults)
