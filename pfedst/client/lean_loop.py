"""Lightning's training steps without calls that have no effect.

Lightning calls some 30 hooks a step and opens a profiler around each, which takes 0.5 ms, a tenth of a short step. A
local fit has no callback or logger (they see rounds instead: `RoundHooks`) and no profiler, and `FederatedClient`
implements few hooks, so that most of these calls have no effect. If a call would have an effect, or a setting is
unusual, Lightning's own loop runs; `tests/client/test_training.py` compares the two.
"""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.loops.fetchers import _DataFetcher, _PrefetchDataFetcher
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from lightning.pytorch.strategies import SingleDeviceStrategy
from lightning.pytorch.utilities.exceptions import SIGTERMException
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor

from pfedst.client.module import FederatedClient

SKIPPED_HOOKS = (
    "on_before_batch_transfer",
    "transfer_batch_to_device",
    "on_after_batch_transfer",
    "on_train_batch_start",
    "optimizer_step",
    "on_before_zero_grad",
    "on_before_backward",
    "backward",
    "on_after_backward",
    "on_train_batch_end",
)
"""Hooks of a LightningModule that `LeanEpochLoop` does not call: they are empty, or do what the loop does itself."""


def is_plain(trainer: Trainer, fetcher: _DataFetcher) -> bool:
    """Return True if a step of this fit is forward, backward and optimiser, and nothing else."""
    module = trainer.lightning_module
    return (
        not (trainer.callbacks or trainer.loggers or trainer.lr_scheduler_configs)  # type: ignore[attr-defined]
        and not (trainer.enable_validation or trainer.fit_loop.restarting)
        and type(trainer.strategy) is SingleDeviceStrategy
        and getattr(trainer.precision_plugin, "scaler", None) is None
        and type(fetcher) is _PrefetchDataFetcher
        and isinstance(module, FederatedClient)
        and module.automatic_optimization
        and not is_overridden("training_step", module, FederatedClient)
        and not any(is_overridden(hook, module) for hook in SKIPPED_HOOKS)
    )


class LeanEpochLoop(_TrainingEpochLoop):
    """Runs the steps of an epoch with Lightning's precision, accumulation, clipping and counters."""

    lean = False

    def on_run_start(self, data_fetcher: _DataFetcher) -> None:
        """Choose the loop for this epoch; callbacks and loggers do not change within an epoch."""
        super().on_run_start(data_fetcher)
        self.lean = is_plain(self.trainer, data_fetcher)

    def advance(self, data_fetcher: _DataFetcher) -> None:
        """Run one batch."""
        if not self.lean:
            return super().advance(data_fetcher)
        trainer, progress = self.trainer, self.batch_progress
        batch, _, _ = next(data_fetcher)
        index = self.batch_idx + 1
        progress.is_last_batch = data_fetcher.done
        batch = trainer.precision_plugin.convert_input(batch)
        device = trainer.strategy.root_device
        if device.type != "cpu":  # loaders return tensors on the CPU
            batch = trainer.lightning_module.transfer_batch_to_device(batch, device, 0)
        progress.increment_ready()
        progress.increment_started()
        self._open_results(batch)
        self._step(batch, index)
        progress.increment_processed()
        self._close_results()
        progress.increment_completed()
        return None

    def _step(self, batch: Any, index: int) -> None:
        trainer, strategy = self.trainer, self.trainer.strategy
        module, optimizer, batches = trainer.lightning_module, trainer.optimizers[0], trainer.accumulate_grad_batches
        attributes = vars(module)  # setting an attribute of a module the usual way searches its parameters first
        steps_after = not self._should_accumulate()

        def closure() -> Tensor:
            with torch.enable_grad():
                attributes["_current_fx_name"] = "training_step"
                loss: Tensor = strategy.training_step(batch, index)
                if batches > 1:
                    loss = loss / batches
                if index % batches == 0:
                    module.optimizer_zero_grad(trainer.current_epoch, index, optimizer)
                loss.backward()  # type: ignore[no-untyped-call]
            if steps_after:
                attributes["_current_fx_name"] = "on_before_optimizer_step"
                module.on_before_optimizer_step(optimizer)
                module.configure_gradient_clipping(
                    optimizer, trainer.gradient_clip_val, trainer.gradient_clip_algorithm
                )
            attributes["_current_fx_name"] = None
            return loss.detach()

        if steps_after:
            steps = self.automatic_optimization.optim_progress.optimizer.step
            steps.increment_ready()
            optimizer.step(closure)
            steps.increment_completed()
        else:
            closure()

    def _open_results(self, batch: Any) -> None:
        """Let a module log in a local fit: the values are dropped, and the call must not fail."""
        connector, results = self.trainer._logger_connector, self._results
        connector._first_loop_iter = connector._first_loop_iter is None
        results.batch, results.batch_size, results.dataloader_idx = batch, None, None

    def _close_results(self) -> None:
        if self._results:
            self.trainer._logger_connector.on_batch_end()
        self._results.batch = None

    def on_advance_end(self, data_fetcher: _DataFetcher) -> None:
        """Finish a batch: there is no validation, schedule or logger."""
        if not self.lean:
            return super().on_advance_end(data_fetcher)
        if not self._should_accumulate():
            self._batches_that_stepped += 1
        if self.trainer.received_sigterm and not self._is_training_done:
            raise SIGTERMException
        return None
