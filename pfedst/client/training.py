"""One Lightning Trainer for many short fits, and rounds as the steps that its callbacks and loggers see.

A fresh Trainer a fit costs five times more and leaks through reference cycles; raising `max_epochs` instead of
resetting opens every loader twice from the second fit on and changes the bits. This file and `lean_loop.py` alone touch
Lightning's internals; `tests/client/test_training.py` compares them with a fresh Trainer a fit and must pass on every
new one.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import Checkpoint, ModelSummary, ProgressBar
from lightning.pytorch.trainer.states import TrainerFn
from torch.utils.data import DataLoader

from pfedst.client.lean_loop import LeanEpochLoop
from pfedst.client.module import FederatedClient
from pfedst.errors import ConfigurationError
from pfedst.tracking import RunLoggers

if not torch.cuda.is_available():
    # Lightning has torch look for a GPU through NVML, so that a fork stays possible, and AdamW looks in every step:
    # 0.2 ms of searching a library where there is none, and nothing that a fork could harm
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "0"

LEAN_TRAINER: dict[str, Any] = {
    "max_epochs": 1,
    "accelerator": "auto",
    "devices": 1,
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "num_sanity_val_steps": 0,
}
"""Options without which a Trainer costs more than the fits: see the module's first lines."""


def reset_for_fit(trainer: Trainer, epochs: int) -> None:
    """Put a used Trainer back to the state of a new one, for all that decides how a fit runs."""
    loop = trainer.fit_loop
    loop.max_epochs = epochs
    loop.epoch_progress.reset()
    batches = loop.epoch_loop
    batches.batch_progress.reset()
    batches.scheduler_progress.reset()
    batches.automatic_optimization.optim_progress.reset()
    batches.manual_optimization.optim_step_progress.reset()
    batches.val_loop.batch_progress.reset()
    batches._batches_that_stepped = 0
    loop._last_train_dl_reload_epoch = float("-inf")
    trainer.should_stop = False


class LocalTrainer:
    """Runs local fits on the Trainer that the configuration describes.

    Raises:
        ConfigurationError: options of the Trainer that contradict a federated run.
    """

    def __init__(self, trainer: Trainer) -> None:
        if trainer.max_steps != -1:
            raise ConfigurationError("--trainer.max_steps: give local epochs (--trainer.max_epochs) instead")
        if trainer.max_epochs is None or trainer.max_epochs < 1:
            raise ConfigurationError(f"--trainer.max_epochs {trainer.max_epochs}: local epochs must be 1 or more")
        if trainer.world_size != 1:
            raise ConfigurationError(
                f"--trainer.devices: a local fit uses one device, not {trainer.world_size}; set --trainer.devices 1"
            )
        if trainer.precision not in ("32-true", "16-mixed", "bf16-mixed"):
            raise ConfigurationError(
                f"--trainer.precision {trainer.precision}: the encoder's answers and the merge are float32; use "
                f"32-true, or bf16-mixed or 16-mixed"
            )
        if any(isinstance(callback, Checkpoint) for callback in _callbacks(trainer)):
            raise ConfigurationError(
                "--trainer.enable_checkpointing or a ModelCheckpoint: the run folder's state/ holds every round; "
                "leave Lightning's checkpoints off"
            )
        self.trainer = trainer
        self.epochs: int = trainer.max_epochs
        self._scaler = copy.deepcopy(getattr(trainer.precision_plugin, "scaler", None))
        trainer.fit_loop.epoch_loop = LeanEpochLoop(trainer, trainer.min_steps, trainer.max_steps)

    @property
    def device(self) -> torch.device:
        """Where local fits and evaluations run."""
        return torch.device(self.trainer.strategy.root_device)

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """No gradients, and the Trainer's precision."""
        with torch.no_grad(), self.trainer.strategy.precision_plugin.val_step_context():
            yield

    @contextmanager
    def detached(self) -> Iterator[RoundHooks]:
        """Take the run's callbacks and loggers off the Trainer for a block of local fits."""
        callbacks, loggers = _callbacks(self.trainer), list(self.trainer.loggers)
        of_a_fit = [callback for callback in callbacks if isinstance(callback, ProgressBar | ModelSummary)]
        self.trainer.callbacks = of_a_fit  # type: ignore[attr-defined]
        self.trainer.loggers = []
        try:
            yield RoundHooks(self.trainer, [c for c in callbacks if c not in of_a_fit], RunLoggers(loggers))
        finally:
            self.trainer.callbacks = callbacks  # type: ignore[attr-defined]
            self.trainer.loggers = loggers

    @property
    def batches(self) -> int | float:
        """Most batches of an epoch: a number, or as a float a share of all."""
        most: int | float = self.trainer.limit_train_batches
        return most

    @contextmanager
    def one_batch(self) -> Iterator[None]:
        """Epochs of a single batch."""
        most, self.trainer.limit_train_batches = self.batches, 1
        try:
            yield
        finally:
            self.trainer.limit_train_batches = most

    def fit(self, client: FederatedClient, loader: DataLoader[Any], epochs: int | None = None) -> None:
        """Train one client for the local epochs of a round, or for `epochs`."""
        reset_for_fit(self.trainer, self.epochs if epochs is None else epochs)
        if self._scaler is not None:  # a loss scale is of one fit: it may not depend on which client came before
            self.trainer.precision_plugin.scaler = copy.deepcopy(self._scaler)  # type: ignore[attr-defined]
        client.train()
        self.trainer.fit(client, train_dataloaders=loader)
        client.eval()


class RoundHooks:
    """Lets Lightning callbacks and loggers see the federated run: one epoch, and one step, is one round.

    Callbacks get the hooks around training once, the start of an epoch once a round, and its end and that of
    validation after each evaluated round, with `trainer.global_step` at the round and `trainer.callback_metrics`
    holding that round's metrics; an EarlyStopping on `federation/validation/balanced_accuracy` therefore ends the
    run after a round.
    """

    def __init__(self, trainer: Trainer, callbacks: list[Callback], loggers: RunLoggers) -> None:
        self.trainer = trainer
        self.callbacks = callbacks
        self.loggers = loggers

    def start(self, model: FederatedClient) -> None:
        """Before the first round."""
        self._call("setup", model, stage="fit")
        self._call("on_fit_start", model)
        self._call("on_train_start", model)

    def before_round(self, model: FederatedClient, round_number: int) -> None:
        """At the start of a round."""
        self._show_round(round_number - 1)
        self._call("on_train_epoch_start", model)

    def log(self, round_number: int, metrics: Mapping[str, float]) -> None:
        """At the end of every round, evaluated or not."""
        self.loggers.log(round_number, metrics)

    def after_evaluation(self, model: FederatedClient, round_number: int, metrics: Mapping[str, float]) -> bool:
        """After the evaluation of a round; True if a callback asks to stop."""
        self._show_round(round_number)
        shown = self.trainer._logger_connector._callback_metrics
        shown.clear()
        shown.update({name: torch.tensor(value) for name, value in metrics.items()})
        self.trainer.should_stop = False
        self._call("on_validation_end", model)
        self._call("on_train_epoch_end", model)
        return bool(self.trainer.should_stop)

    def end(self, model: FederatedClient) -> None:
        """After the last round."""
        self._call("on_train_end", model)
        self._call("on_fit_end", model)
        self._call("teardown", model, stage="fit")

    def _show_round(self, round_number: int) -> None:
        loop = self.trainer.fit_loop
        self.trainer.state.fn = TrainerFn.FITTING
        loop.epoch_progress.current.processed = round_number  # type: ignore[attr-defined]
        loop.epoch_progress.current.completed = round_number
        loop.epoch_loop.automatic_optimization.optim_progress.optimizer.step.total.completed = round_number

    def _call(self, hook: str, model: FederatedClient, **arguments: Any) -> None:
        for callback in self.callbacks:
            getattr(callback, hook)(self.trainer, model, **arguments)


def _callbacks(trainer: Trainer) -> list[Callback]:
    return list(trainer.callbacks)  # type: ignore[attr-defined]
