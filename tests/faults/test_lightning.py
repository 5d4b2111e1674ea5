"""Every option of Lightning's Trainer and every built-in callback is honoured, or refused by name before round 1."""

import inspect

import lightning.pytorch.callbacks
import pytest
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import LambdaCallback
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.plugins.io import AsyncCheckpointIO

from pfedst.client.lightning_options import (
    CALLBACKS,
    IN_THE_PROTOCOL,
    OPTIONS,
    check_callback,
    check_trainer,
    protocol_options,
)
from pfedst.client.training import LEAN_TRAINER, LocalTrainer
from pfedst.errors import ConfigurationError
from pfedst.options import Effect, effect_of
from pfedst.testing.small import trainer

HONOURED_AND_REFUSED = {
    "accelerator": (["cpu", "auto"], []),
    "strategy": (["auto"], ["ddp", "ddp_spawn"]),
    "devices": ([1, "1"], [2]),
    "num_nodes": ([1], [2]),
    "precision": ([None, "32-true", 32, "bf16-mixed"], ["64", "bf16-true"]),
    "logger": ([False, True, None], []),
    "callbacks": ([None, []], []),
    "fast_dev_run": ([False], [True, 3]),
    "max_epochs": ([1, 3], [0, -1, None]),
    "min_epochs": ([None], [1]),
    "max_steps": ([-1], [5]),
    "min_steps": ([None], [5]),
    "max_time": ([None], ["00:00:00:05"]),
    "limit_train_batches": ([None, 1, 0.25, 1.0], [0, 0.0]),
    "limit_val_batches": ([None, 1.0], [1, 0, 0.5]),
    "limit_test_batches": ([None, 1.0], [1, 0.5]),
    "limit_predict_batches": ([None, 1.0], [1]),
    "overfit_batches": ([0.0, 0], [1, 0.5]),
    "val_check_interval": ([None, 1.0], [0.5, 1]),
    "check_val_every_n_epoch": ([1], [2]),
    "num_sanity_val_steps": ([None, 0], [3, -1]),
    "log_every_n_steps": ([None, 50], [1]),
    "enable_checkpointing": ([False], [True, None]),
    "enable_progress_bar": ([False, True, None], []),
    "enable_model_summary": ([False, True, None], []),
    "accumulate_grad_batches": ([1, 4], [0, -2]),
    "gradient_clip_val": ([None, 0.5, 0], [-1]),
    "gradient_clip_algorithm": ([None], ["norm", "value"]),
    "deterministic": ([None, False], []),
    "benchmark": ([None, False], []),
    "inference_mode": ([True], [False]),
    "use_distributed_sampler": ([True], [False]),
    "profiler": ([None], ["simple", "advanced"]),
    "detect_anomaly": ([False, True], []),
    "barebones": ([False], [True]),
    "plugins": ([None, MixedPrecision("bf16-mixed", "cpu")], [AsyncCheckpointIO()]),
    "sync_batchnorm": ([False], [True]),
    "reload_dataloaders_every_n_epochs": ([0], [1]),
    "default_root_dir": ([None, "."], ["/tmp/elsewhere"]),
    "enable_autolog_hparams": ([True], [False]),
    "model_registry": ([None], ["a"]),
}
"""Values of every option of the Trainer that a run honours, and others that it refuses."""
CASES = [
    (name, value, bool(refused))
    for name, both in HONOURED_AND_REFUSED.items()
    for refused, values in enumerate(both)
    for value in values
]


def test_no_option_of_the_trainer_is_forgotten() -> None:
    """An option that a new version of Lightning brings needs a line in the table, and values here."""
    known = list(inspect.signature(Trainer.__init__).parameters)[1:]
    assert sorted(OPTIONS) == sorted(HONOURED_AND_REFUSED) == sorted(known)
    for name, option in OPTIONS.items():
        assert option.does or option.instead, name
        assert bool(option.instead) == bool(HONOURED_AND_REFUSED[name][1]), name


@pytest.mark.parametrize(("name", "value", "refused"), CASES, ids=lambda value: str(value)[:20])
def test_an_option_of_the_trainer_is_honoured_or_refused_by_name(name, value, refused) -> None:
    # this one option forbids others
    lean = (
        dict.fromkeys(LEAN_TRAINER.keys() - {"devices", "accelerator", "max_epochs"})
        if value and name == "barebones"
        else {}
    )
    made = trainer(**lean, **{name: value})
    if not refused:
        check_trainer(made)
        return
    with pytest.raises(ConfigurationError, match=rf"--trainer\.{name}\b") as raised:
        LocalTrainer(made)
    assert OPTIONS[name].instead in str(raised.value)


def test_a_lean_trainer_is_what_the_command_line_takes_by_default() -> None:
    check_trainer(Trainer(**LEAN_TRAINER))
    check_trainer(Trainer(**LEAN_TRAINER | {"gradient_clip_val": 1.0, "gradient_clip_algorithm": "value"}))


def test_all_that_is_refused_is_named_at_once() -> None:
    callback = lightning.pytorch.callbacks.StochasticWeightAveraging(swa_lrs=0.1)
    with pytest.raises(ConfigurationError) as raised:
        check_trainer(trainer(max_steps=5, num_sanity_val_steps=3, callbacks=[callback]))
    lines = str(raised.value).splitlines()
    assert [line.split(":")[0].strip() for line in lines] == [
        "--trainer.max_steps 5", "--trainer.num_sanity_val_steps 3",
        "--trainer.callbacks StochasticWeightAveraging",
    ]  # fmt: skip


ARGUMENTS = {
    "BackboneFinetuning": {},
    "EarlyStopping": {"monitor": "federation/validation/accuracy", "mode": "max"},
    "GradientAccumulationScheduler": {"scheduling": {0: 2}},
    "ModelPruning": {"pruning_fn": "l1_unstructured"},
    "OnExceptionCheckpoint": {"dirpath": "."},
    "StochasticWeightAveraging": {"swa_lrs": 0.1},
    "ThroughputMonitor": {"batch_size_fn": len},
    "Timer": {"duration": {"seconds": 5}},
}
BUILT_IN = [getattr(lightning.pytorch.callbacks, name) for name in lightning.pytorch.callbacks.__all__]
ALLOWED = {"Callback", "EarlyStopping", "LambdaCallback", "ModelSummary", "ProgressBar", "RichModelSummary"}
ALLOWED |= {"RichProgressBar", "TQDMProgressBar"}


@pytest.mark.parametrize("kind", BUILT_IN, ids=lambda kind: kind.__name__)
def test_a_built_in_callback_is_honoured_or_refused_by_name(kind) -> None:
    made = kind(**ARGUMENTS.get(kind.__name__, {}))
    assert kind is Callback or any(issubclass(kind, known) for known in CALLBACKS), "a new callback of Lightning"
    if kind.__name__ in ALLOWED:
        check_callback(made)
        return
    with pytest.raises(ConfigurationError, match=rf"--trainer\.callbacks {kind.__name__}: \w"):
        check_callback(made)


@pytest.mark.parametrize("hook", ["on_train_batch_end", "on_save_checkpoint", "on_test_end", "on_before_zero_grad"])
def test_a_hook_that_would_never_be_called_is_refused(hook) -> None:
    own = type("Own", (Callback,), {hook: lambda self, *_, **__: None})
    for callback in (own(), LambdaCallback(**{hook: lambda *_, **__: None}) if hook[:7] != "on_save" else own()):
        with pytest.raises(ConfigurationError, match=f"{hook} would never be called.*on_train_epoch_end"):
            check_callback(callback)


WITHOUT_A_PLACE = {
    "max_epochs": "local_epochs of the protocol",
    "limit_train_batches": "local_batches of the protocol",
    "strategy": "one value",
    "callbacks": "rounds of a run that ended early are in `evaluated`",
    "enable_progress_bar": "",
    "enable_model_summary": "",
}


def test_no_option_of_the_trainer_that_changes_results_is_missing_in_the_protocol() -> None:
    """On the command line every option is part of the study that is not listed; in Python the protocol has them."""
    study = {name for name, option in OPTIONS.items() if option.does and effect_of(f"trainer.{name}") is Effect.STUDY}
    assert study <= {*IN_THE_PROTOCOL, *WITHOUT_A_PLACE, "deterministic", "benchmark", "detect_anomaly", "plugins"}
    changed = {"precision": "bf16-mixed", "accumulate_grad_batches": 4}
    changed |= {"gradient_clip_val": 0.5, "gradient_clip_algorithm": "value"}
    assert changed.keys() == IN_THE_PROTOCOL.keys()
    for name in changed:
        needed = {"gradient_clip_val": 0.5} if name == "gradient_clip_algorithm" else {}
        assert protocol_options(trainer(**needed, **{name: changed[name]}))[name] == changed[name]
    assert protocol_options(trainer()) == {}
