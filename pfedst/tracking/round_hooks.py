"""Rounds as the steps that Lightning's callbacks and loggers see."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from pfedst.errors import ConfigurationError, listed
from pfedst.tracking.loggers import RunLoggers

CALLED_HOOKS = (
    "setup",
    "on_fit_start",
    "on_train_start",
    "on_train_epoch_start",
    "on_validation_epoch_end",
    "on_validation_end",
    "on_train_epoch_end",
    "on_train_end",
    "on_fit_end",
    "teardown",
    "on_exception",
)
"""The hooks of a callback that a run calls."""


class RoundHooks:
    """Lets Lightning callbacks and loggers see the federated run: one epoch, and one step, is one round.

    Callbacks get the hooks around training once, the start of an epoch once a round, and its end and that of
    validation after each evaluated round, with `trainer.global_step` at the round and `trainer.callback_metrics`
    holding the metrics of that round. An EarlyStopping on `federation/validation/balanced_accuracy` therefore ends the
    run after a round. The module that callbacks get holds the generic model.

    Args:
        trainer: the configured Trainer; it runs no fit itself.
        module: the module to show.
        callbacks: the callbacks that see rounds.
        loggers: the loggers of the run.
    """

    def __init__(
        self, trainer: Trainer, module: LightningModule, callbacks: Sequence[Callback], loggers: RunLoggers
    ) -> None:
        self.trainer = trainer
        self.module = module
        self.callbacks = list(callbacks)
        self.loggers = loggers

    def check_monitored(self, known: Sequence[str]) -> None:
        """Check that evaluated rounds log the metrics that callbacks monitor.

        Args:
            known: the names of all metrics that a round may log.

        Raises:
            ConfigurationError: naming the callback, and metrics to monitor; or it would end a run that gets better.
        """
        for callback in self.callbacks:
            if (monitored := _monitored(callback)) is not None and monitored not in known:
                means = [name for name in known if not name.startswith("client/")]
                raise ConfigurationError(
                    f"--trainer.callbacks {type(callback).__name__}: no round logs {monitored!r}; monitor one of "
                    f"{listed(means, most=len(means))}, or one of a client, such as {known[-1]}"
                )
            if isinstance(callback, EarlyStopping) and callback.mode == "min" and not _is_better_low(callback.monitor):
                raise ConfigurationError(
                    f"--trainer.callbacks EarlyStopping: with mode min a rise of {callback.monitor} would end the run; "
                    f"set --trainer.callbacks.mode max"
                )

    @contextmanager
    def hearing_errors(self) -> Iterator[None]:
        """Call the hook for whatever ends the block."""
        try:
            yield
        except BaseException as error:
            self._call("on_exception", exception=error)
            raise

    def start(self) -> None:
        """Call the hooks before the first round."""
        self._call("setup", stage="fit")
        self._call("on_fit_start")
        self._call("on_train_start")

    def before_round(self, round_number: int) -> None:
        """Call the hooks at the start of a round."""
        self._show_round(round_number - 1)
        self._call("on_train_epoch_start")

    def log(self, round_number: int, metrics: Mapping[str, float]) -> None:
        """Log the metrics at the end of a round, evaluated or not."""
        self.loggers.log(round_number, metrics)

    def after_evaluation(
        self, round_number: int, metrics: Mapping[str, float], shared: Mapping[str, Tensor], is_whole: bool = True
    ) -> bool:
        """Call the hooks after the evaluation of a round; return True if a callback asks to stop.

        Args:
            round_number: the round.
            metrics: the metrics of the round.
            shared: the merged shared tensors, by their key in the adapter.
            is_whole: all sites were evaluated. If not, callbacks that monitor a metric skip the round, since means over
                other sites cannot be compared.

        Raises:
            ConfigurationError: a callback monitors a metric that this round does not have.
        """
        callbacks = [callback for callback in self.callbacks if is_whole or _monitored(callback) is None]
        for callback in callbacks:
            monitored = _monitored(callback)
            if monitored is not None and monitored not in metrics and getattr(callback, "strict", True):
                raise ConfigurationError(
                    f"--trainer.callbacks {type(callback).__name__}: round {round_number} logs no {monitored!r}, as a "
                    f"client was not drawn or the metric is not defined; monitor another, or set its strict to false"
                )
        self._show_round(round_number)
        self.module.load_state_dict({f"model.adapter.{key}": value for key, value in shared.items()}, strict=False)
        shown = self.trainer._logger_connector._callback_metrics
        shown.clear()
        shown.update({name: torch.tensor(value) for name, value in metrics.items()})
        self.trainer.should_stop = False
        for hook in ("on_validation_epoch_end", "on_validation_end", "on_train_epoch_end"):
            self._call(hook, callbacks)
        return bool(self.trainer.should_stop)

    def end(self) -> None:
        """Call the hooks after the last round."""
        self._call("on_train_end")
        self._call("on_fit_end")
        self._call("teardown", stage="fit")

    def _show_round(self, round_number: int) -> None:
        loop = self.trainer.fit_loop
        self.trainer.state.fn = TrainerFn.FITTING
        loop.epoch_progress.current.processed = round_number  # type: ignore[attr-defined]
        loop.epoch_progress.current.completed = round_number
        loop.epoch_loop.automatic_optimization.optim_progress.optimizer.step.total.completed = round_number

    def _call(self, hook: str, callbacks: Sequence[Callback] | None = None, **arguments: Any) -> None:
        for callback in self.callbacks if callbacks is None else callbacks:
            getattr(callback, hook)(self.trainer, self.module, **arguments)


def _monitored(callback: Callback) -> str | None:
    """Return the metric that a callback monitors, as those of Lightning name it."""
    return getattr(callback, "monitor", None)


def _is_better_low(metric: str) -> bool:
    """Return True for a loss or a calibration error; the other metrics are better high."""
    return metric.endswith(("loss", "ece"))
