"""Every option of Lightning's Trainer, and every built-in callback: what a federated run does with it, or what to use
instead.

A run is refused before its first round if an option is set that it cannot honour. `docs/lightning.md` is written from
these tables, and `tests/faults/test_lightning.py` walks all that the installed Lightning offers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.accelerators import AcceleratorRegistry
from lightning.pytorch.callbacks import (
    BaseFinetuning,
    BasePredictionWriter,
    BatchSizeFinder,
    Checkpoint,
    DeviceStatsMonitor,
    EarlyStopping,
    GradientAccumulationScheduler,
    LambdaCallback,
    LearningRateFinder,
    LearningRateMonitor,
    ModelPruning,
    ModelSummary,
    ProgressBar,
    SpikeDetection,
    StochasticWeightAveraging,
    ThroughputMonitor,
    Timer,
    WeightAveraging,
)
from lightning.pytorch.profilers import PassThroughProfiler
from lightning.pytorch.strategies import SingleDeviceStrategy

from pfedst.errors import ConfigurationError, listed
from pfedst.tracking.round_hooks import CALLED_HOOKS

PRECISIONS = ("32-true", "16-mixed", "bf16-mixed")


def _anything(value: Any) -> bool:
    return True


def _only(*values: Any) -> Callable[[Any], bool]:
    """Accept these values. Their type counts: as a number of batches 1 is one batch, and 1.0 is all."""
    return lambda value: any(type(value) is type(known) and value == known for known in values)


@dataclass(frozen=True)
class Option:
    """An option of the Trainer in a federated run.

    Attributes:
        does: what it does; empty for an option that is refused.
        instead: what to use instead of a value that is refused; empty if there is none.
        read: returns the value that a Trainer was built with.
        accepts: returns True for a value that a run honours.
    """

    does: str = ""
    instead: str = ""
    read: Callable[[Trainer], Any] = lambda trainer: None
    accepts: Callable[[Any], bool] = _anything


def _attribute(path: str) -> Callable[[Trainer], Any]:
    def read(trainer: Trainer) -> Any:
        found: Any = trainer
        for name in path.split("."):
            found = getattr(found, name)
        return found

    return read


def _refused(instead: str, path: str, *neutral: Any) -> Option:
    return Option("", instead, _attribute(path), _only(*neutral))


ALL_IMAGES = "an evaluation sees all images of a split; set --coordinator.evaluate_every for fewer evaluations"
ROUNDS = "evaluations follow rounds; set --coordinator.evaluate_every"
ONE_DEVICE = "a local fit uses one device; set --coordinator.transport processes to use several, one a client"
OPTIONS: dict[str, Option] = {
    # the first line for a Trainer that several lines describe: this option sets many others
    "fast_dev_run": _refused(
        "set --coordinator.rounds 1 and --trainer.limit_train_batches 1, or try pfedst fit --dry_run",
        "fast_dev_run",
        False,
        0,
    ),
    "barebones": _refused("leave it out: the Trainer of a local fit is lean already", "barebones", False),
    "accelerator": Option("the kind of device on which fits and evaluations run"),
    "devices": Option(
        "1, or a list of one index", f"{ONE_DEVICE}, and set --trainer.devices 1", _attribute("num_devices"), _only(1)
    ),
    "num_nodes": Option("", f"{ONE_DEVICE}, on this machine", _attribute("num_nodes"), _only(1)),
    "strategy": Option(
        "`auto`: one device",
        f"{ONE_DEVICE}, and leave --trainer.strategy out",
        _attribute("strategy"),
        lambda strategy: isinstance(strategy, SingleDeviceStrategy),
    ),
    "precision": Option(
        "`32-true`, `bf16-mixed` or `16-mixed`, in fits and evaluations",
        "taps and merges are float32; use 32-true, or bf16-mixed or 16-mixed",
        _attribute("precision"),
        _only(*PRECISIONS),
    ),
    "logger": Option("sees rounds as steps: see [Tracking](tracking.md)"),
    "callbacks": Option("see rounds as epochs: see the next table"),
    "max_epochs": Option(
        "the number of local epochs a round, 1 or more",
        "local epochs must be 1 or more",
        _attribute("max_epochs"),
        lambda epochs: epochs is not None and epochs >= 1,
    ),
    "min_epochs": _refused("a local fit has exactly --trainer.max_epochs epochs", "min_epochs", None),
    "max_steps": _refused("give local epochs (--trainer.max_epochs) instead", "max_steps", -1),
    "min_steps": _refused("a local fit has exactly --trainer.max_epochs epochs", "min_steps", None),
    "max_time": Option(
        "",
        "a run ends after --coordinator.rounds, and an interrupted one can be continued with --resume",
        lambda trainer: next((timer._duration for timer in _callbacks(trainer) if isinstance(timer, Timer)), None),
        _only(None),
    ),
    # before `limit_*`, which it changes
    "overfit_batches": _refused(
        "it would replace the seeded order of the images; set --trainer.limit_train_batches", "overfit_batches", 0.0, 0
    ),
    "limit_train_batches": Option(
        "the largest number of batches of a local epoch, or their share, of which one remains",
        "nothing would be trained; give 1 or more, or a share",
        _attribute("limit_train_batches"),
        lambda batches: batches > 0,
    ),
    "limit_val_batches": _refused(ALL_IMAGES, "limit_val_batches", 1.0),
    "limit_test_batches": _refused(ALL_IMAGES, "limit_test_batches", 1.0),
    "limit_predict_batches": _refused(
        "nothing is predicted apart from evaluations; the logits are in sites/NAME/predictions",
        "limit_predict_batches",
        1.0,
    ),
    "val_check_interval": _refused(ROUNDS, "val_check_interval", 1.0),
    "check_val_every_n_epoch": _refused(ROUNDS, "check_val_every_n_epoch", 1),
    # 2 is what Lightning takes if nothing is said
    "num_sanity_val_steps": _refused(
        "every run is evaluated before its first round; leave it out", "num_sanity_val_steps", 0, 2
    ),
    "log_every_n_steps": _refused("loggers see every round; leave it out", "log_every_n_steps", 50, 0),
    "enable_checkpointing": Option(
        "",
        "the run folder's state/ holds every round; leave Lightning's checkpoints (ModelCheckpoint) off",
        lambda trainer: any(isinstance(callback, Checkpoint) for callback in _callbacks(trainer)),
        _only(False),
    ),
    "enable_progress_bar": Option("shows a bar for each local fit; a progress bar among the callbacks sets it"),
    "enable_model_summary": Option("prints the modules before each local fit"),
    "accumulate_grad_batches": Option(
        "batches of a step, 1 or more; a last step with fewer batches is their mean",
        "give 1 or more",
        _attribute("accumulate_grad_batches"),
        lambda batches: batches >= 1,
    ),
    "gradient_clip_val": Option(
        "clips gradients of local fits, after the method has edited them",
        "give a number of 0 or more",
        _attribute("gradient_clip_val"),
        lambda most: most is None or most >= 0,
    ),
    "gradient_clip_algorithm": Option(
        "`norm` or `value`, with `gradient_clip_val`",
        "it needs --trainer.gradient_clip_val",
        lambda trainer: trainer.gradient_clip_algorithm if trainer.gradient_clip_val is None else None,
        _only(None),
    ),
    "deterministic": Option("holds for the whole run, worker processes included"),
    "benchmark": Option("holds for the whole run, worker processes included"),
    "inference_mode": _refused(
        "evaluations keep no gradients in any case; leave it out", "validate_loop.inference_mode", True
    ),
    "use_distributed_sampler": _refused(
        f"{ONE_DEVICE}; leave it out", "_accelerator_connector.use_distributed_sampler", True
    ),
    "profiler": Option(
        "",
        "it would begin anew with every local fit; profile the command: python -m cProfile -m pfedst fit",
        _attribute("profiler"),
        lambda profiler: type(profiler) is PassThroughProfiler,
    ),
    "detect_anomaly": Option("finds the operation behind a NaN in the gradients of local fits; slow"),
    "sync_batchnorm": Option(
        "",
        f"{ONE_DEVICE}; --method.norm_statistics says whether statistics of norms are shared",
        lambda trainer: trainer._accelerator_connector._layer_sync is not None,
        _only(False),
    ),
    "plugins": Option(
        "a precision plugin for one of the values of `precision`",
        "a local fit has one device and writes no checkpoint; give a precision plugin, or leave it out",
        lambda trainer: [
            type(plugin).__name__
            for plugin in (
                trainer._accelerator_connector.checkpoint_io,
                trainer._accelerator_connector._cluster_environment_flag,
                trainer._accelerator_connector._layer_sync,
            )
            if plugin is not None
        ],
        _only([]),
    ),
    "reload_dataloaders_every_n_epochs": _refused(
        "every local fit has a loader of its own; leave it out", "reload_dataloaders_every_n_epochs", 0
    ),
    "default_root_dir": Option(
        "",
        "a run writes into --runs_dir only",
        lambda trainer: Path(trainer.default_root_dir).resolve() == Path.cwd().resolve(),
        _only(True),
    ),
    "enable_autolog_hparams": _refused(
        "every logger gets the options of its run; set --trainer.logger false for none", "enable_autolog_hparams", True
    ),
    "model_registry": _refused("the shared model of a run is in its folder, in state/", "_model_registry", None),
}
"""The options of the Trainer by name, in the order in which they are checked."""

UNUSED = tuple(name for name, option in OPTIONS.items() if not option.does)
"""Options that can only be at their default."""
IN_THE_PROTOCOL: dict[str, Any] = {
    "precision": "32-true",
    "accumulate_grad_batches": 1,
    "gradient_clip_val": None,
    "gradient_clip_algorithm": None,
}
"""Options of the study that a Trainer knows, with their defaults."""

OF_A_FIT = "it would act on every local fit anew, and callbacks see rounds here; "
MERGED = f"{OF_A_FIT}the server merges the clients' weights"
CALLBACKS: dict[type[Callback], Option] = {
    EarlyStopping: Option("ends the run after a round; `monitor` is a key of [Tracking](tracking.md)"),
    LambdaCallback: Option("is called by the hooks above"),
    ProgressBar: Option("shows each local fit"),
    ModelSummary: Option("shows the modules before each local fit"),
    Timer: Option("", OPTIONS["max_time"].instead),
    Checkpoint: Option("", OPTIONS["enable_checkpointing"].instead),
    LearningRateMonitor: Option("", f"{OF_A_FIT}the learning rate of a fit is constant, and in the protocol"),
    DeviceStatsMonitor: Option("", f"{OF_A_FIT}summary.json holds the peak memory"),
    ThroughputMonitor: Option("", f"{OF_A_FIT}rounds.jsonl holds the seconds and images of each fit"),
    SpikeDetection: Option("", f"{OF_A_FIT}set --model.non_finite skip, or --trainer.gradient_clip_val"),
    StochasticWeightAveraging: Option("", MERGED),
    WeightAveraging: Option("", MERGED),
    ModelPruning: Option("", f"{OF_A_FIT}clients and server hold tensors of the same shapes"),
    LearningRateFinder: Option("", f"{OF_A_FIT}pfedst compare chooses a learning rate on validation"),
    BatchSizeFinder: Option("", f"{OF_A_FIT}set --data.batch_size"),
    GradientAccumulationScheduler: Option("", f"{OF_A_FIT}set --trainer.accumulate_grad_batches"),
    BaseFinetuning: Option("", "the encoder is frozen; a method says what is trained when (`trainable`)"),
    BasePredictionWriter: Option("", "the logits of each evaluation are in sites/NAME/predictions"),
}
"""Lightning's own callbacks. A subclass counts as the class that it derives from."""
SHOWS_A_FIT = (ProgressBar, ModelSummary)
"""Callbacks that show a single local fit; all others see rounds."""
NOT_CALLED = tuple(
    name
    for name in dir(Callback)
    if name.startswith(("on_", "setup", "teardown")) and name not in CALLED_HOOKS  # and no hook of a state
)
"""Hooks of a callback that a federated run does not call."""


def check_trainer(trainer: Trainer) -> None:
    """Check that a run honours every option of a Trainer, and every callback.

    Raises:
        ConfigurationError: naming all of them that it does not honour, and what to use instead.
    """
    read = {name: option.read(trainer) for name, option in OPTIONS.items()}
    refused = [
        f"--trainer.{name}{_shown(value)}: {OPTIONS[name].instead}"
        for name, value in read.items()
        if not OPTIONS[name].accepts(value)
    ]
    for callback in _callbacks(trainer):
        try:
            check_callback(callback)
        except ConfigurationError as error:
            refused.append(str(error))
    if refused:
        raise ConfigurationError("\n  ".join(refused))


def protocol_options(trainer: Trainer) -> dict[str, Any]:
    """Return the options that results depend on and that are not at their default, as a Trainer was built with them.

    Local epochs and batches have places of their own in the protocol.
    """
    found = {name: getattr(trainer, name) for name in IN_THE_PROTOCOL}
    found["deterministic"] = torch.are_deterministic_algorithms_enabled()
    return {name: value for name, value in found.items() if value != IN_THE_PROTOCOL.get(name, False)}


def check_callback(callback: Callback) -> None:
    """Check that a run honours a callback.

    Raises:
        ConfigurationError: naming the callback, and what to use instead.
    """
    name = f"--trainer.callbacks {type(callback).__name__}"
    known = next((option for kind, option in CALLBACKS.items() if isinstance(callback, kind)), None)
    if known is not None and not known.does:
        raise ConfigurationError(f"{name}: {known.instead}")
    silent = [hook for hook in NOT_CALLED if _overrides(callback, hook)]
    if silent and not isinstance(callback, SHOWS_A_FIT):
        raise ConfigurationError(
            f"{name}: {listed(silent)} would never be called, since callbacks see rounds; use "
            f"{listed(list(CALLED_HOOKS))}"
        )


def explain_trainer(error: Exception, given: Mapping[str, Any]) -> ConfigurationError:
    """Return the error of a Trainer that cannot be built.

    Args:
        error: Lightning's.
        given: the options of the Trainer that are not at their default.
    """
    options = "; ".join(f"--trainer.{name} {value}" for name, value in given.items()) or "--trainer"
    here = [name for name, kind in AcceleratorRegistry.items() if kind["accelerator"].is_available()]
    return ConfigurationError(f"{options}: {' '.join(str(error).split())} (accelerators here: {listed(here)})")


def _callbacks(trainer: Trainer) -> list[Callback]:
    return list(trainer.callbacks)  # type: ignore[attr-defined]


def _overrides(callback: Callback, hook: str) -> bool:
    """Return True if a callback has its own function for a hook, in its class or as an attribute."""
    return getattr(getattr(callback, hook), "__func__", None) is not getattr(Callback, hook)


def _shown(value: Any) -> str:
    """Return a value after the name of its option; an object by the name of its class."""
    if isinstance(value, bool):
        return ""
    return f" {value}" if isinstance(value, str | int | float | list) else f" {type(value).__name__}"
