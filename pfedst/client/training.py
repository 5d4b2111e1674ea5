"""One Lightning Trainer for many short fits.

A fresh Trainer a fit costs five times more and leaks through reference cycles; raising `max_epochs` instead of
resetting opens every loader twice from the second fit on and changes the bits. This file and `lean_loop.py` alone touch
Lightning's internals; `tests/client/test_training.py` compares them with a fresh Trainer a fit and must pass on every
new one.
"""

from __future__ import annotations

import copy
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from torch.utils.data import DataLoader

from pfedst.client.lean_loop import LeanEpochLoop
from pfedst.client.lightning_options import SHOWS_A_FIT, check_trainer
from pfedst.client.module import FederatedClient

if not torch.cuda.is_available():
    # Lightning has torch look for a GPU through NVML, so that a fork stays possible, and AdamW looks in every step:
    # 0.2 ms of searching a library where there is none, and nothing that a fork could harm
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "0"

# of Lightning's own code, once for every fit and place
warnings.filterwarnings("ignore", message=r"`isinstance\(treespec, LeafSpec\)` is deprecated")

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
    """Runs local fits on a copy of the Trainer that the configuration describes.

    The copy has no loggers, and of the callbacks only those that show a single fit (progress bars, model summaries).
    The callbacks and loggers of the run see rounds instead (`RoundHooks`).

    Args:
        trainer: the configured Trainer; it stays as it is.

    Raises:
        ConfigurationError: an option of the Trainer contradicts a federated run.
    """

    def __init__(self, trainer: Trainer) -> None:
        check_trainer(trainer)
        assert trainer.max_epochs is not None
        self.trainer = _without_run_callbacks(trainer)
        self.epochs: int = trainer.max_epochs
        self._scaler = copy.deepcopy(getattr(self.trainer.precision_plugin, "scaler", None))
        self.trainer.fit_loop.epoch_loop = LeanEpochLoop(self.trainer, trainer.min_steps, trainer.max_steps)

    @property
    def device(self) -> torch.device:
        """Where local fits and evaluations run."""
        return torch.device(self.trainer.strategy.root_device)

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """No gradients, and the Trainer's precision."""
        with torch.no_grad(), self.trainer.strategy.precision_plugin.val_step_context():
            yield

    @property
    def batches(self) -> int | float:
        """The largest number of batches of an epoch, or as a float a share of all."""
        most: int | float = self.trainer.limit_train_batches
        return most

    @contextmanager
    def at_most(self, batches: int | float) -> Iterator[None]:
        """Epochs of at most so many batches, or as a float of a share of all."""
        most, self.trainer.limit_train_batches = self.batches, batches
        try:
            yield
        finally:
            self.trainer.limit_train_batches = most

    def _batches_of(self, batches: int) -> int | float:
        """Return the most batches of an epoch: a share of them is one or more, so that small sites take part."""
        share = self.batches
        return max(1, int(batches * share)) if isinstance(share, float) and share < 1 else share

    def fit(self, module: FederatedClient, loader: DataLoader[Any], epochs: int | None = None) -> None:
        """Train the client in a module for the local epochs of a round, or for `epochs`."""
        reset_for_fit(self.trainer, self.epochs if epochs is None else epochs)
        if self._scaler is not None:  # a loss scale belongs to one fit: it may not depend on the client before
            self.trainer.precision_plugin.scaler = copy.deepcopy(self._scaler)  # type: ignore[attr-defined]
        module.train()
        try:
            with self.at_most(self._batches_of(len(loader))):
                self.trainer.fit(module, train_dataloaders=loader)
        except BaseException:
            module.reset()  # the next client trains in the same module
            raise
        finally:
            module.eval()


def callbacks_of(trainer: Trainer) -> list[Callback]:
    """Return the callbacks of a Trainer."""
    return list(trainer.callbacks)  # type: ignore[attr-defined]


def shows_a_fit(callback: Callback) -> bool:
    """Return True for a callback that shows a single local fit; all others see rounds."""
    return isinstance(callback, SHOWS_A_FIT)


def _without_run_callbacks(trainer: Trainer) -> Trainer:
    """Copy a Trainer without its loggers and without the callbacks that see rounds."""
    callbacks, loggers = callbacks_of(trainer), list(trainer.loggers)
    trainer.callbacks = []  # type: ignore[attr-defined]
    trainer.loggers = []
    try:
        copied = copy.deepcopy(trainer)
    finally:
        trainer.callbacks = callbacks  # type: ignore[attr-defined]
        trainer.loggers = loggers
    # copies: a progress bar keeps the Trainer and the module of its last fit, and the server has the original
    shown = [copy.copy(callback) for callback in callbacks if shows_a_fit(callback)]
    copied.callbacks = shown  # type: ignore[attr-defined]
    return copied
