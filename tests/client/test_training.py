"""One Trainer for many fits equals a fresh Trainer a fit; callbacks and loggers see rounds as steps."""

import copy
import os
import signal
from functools import partial

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EarlyStopping, LambdaCallback, ProgressBar
from lightning.pytorch.loggers import CSVLogger, Logger
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from lightning.pytorch.utilities.exceptions import SIGTERMException
from pfedst_baselines.apfl import APFL
from pfedst_baselines.ditto import Ditto
from pfedst_baselines.fedavg import FedAvg
from pfedst_baselines.fedprox import FedProx
from pfedst_baselines.fedrep import FedRep
from pfedst_baselines.scaffold import SCAFFOLD
from torch.optim import SGD

from pfedst.client.module import FederatedClient
from pfedst.client.training import LocalTrainer
from pfedst.errors import ConfigurationError, StateError
from pfedst.methods.pfedst import PFedST
from pfedst.seeds import seeded
from pfedst.testing.small import data, federation, fit, prepared, trainer
from tests.rounding import alike


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"max_epochs": 2},
        {"accumulate_grad_batches": 2},
        {"gradient_clip_val": 0.1},
        {"limit_train_batches": 2, "max_epochs": 2},
        {"precision": "bf16-mixed"},
    ],
    ids=str,
)
def test_a_reused_trainer_equals_a_fresh_one(options) -> None:
    made, sites = federation(FedAvg()), data()
    sites.prepare(made.generic.encoder.preprocessing)
    states = []
    for reuse in (False, True):
        modules = copy.deepcopy(made.modules)
        local = LocalTrainer(trainer(**options))
        for round_number in range(3):
            for name, module in modules.items():
                if not reuse:
                    local = LocalTrainer(trainer(**options))
                with seeded(round_number):
                    local.fit(module, sites.train_loader(name, round_number))
        states.append([module.model.own_state() for module in modules.values()])
    for one, other in zip(*states, strict=True):
        assert all(torch.equal(one[key], other[key]) for key in one)


def test_the_fit_equals_a_bare_loop() -> None:
    made, sites = federation(FedAvg()), data()
    sites.prepare(made.generic.encoder.preprocessing)
    name, module = next(iter(made.modules.items()))
    bare = copy.deepcopy(module)
    LocalTrainer(trainer(max_epochs=2)).fit(module, sites.train_loader(name, 7))
    optimizer, loader = bare.configure_optimizers(), sites.train_loader(name, 7)
    bare.train()
    for epoch in range(2):
        loader.sampler.set_epoch(epoch)
        for batch in loader:
            optimizer.zero_grad()
            bare.training_step(batch, 0).backward()
            optimizer.step()
    assert alike(module.model.own_state(), bare.model.own_state())  # Lightning's way and a bare loop's


def test_a_failed_fit_leaves_trainer_and_module_usable() -> None:
    """One module serves all clients: what a failed fit leaves in it may not reach the next client."""
    made, sites = federation(PFedST(schedule="alternate")), data()
    sites.prepare(made.generic.encoder.preprocessing)
    (first, bad), (second, good) = list(made.modules.items())[:2]
    fresh, local = copy.deepcopy(good), LocalTrainer(trainer(max_epochs=2))
    steps = []

    def fails(batch, batch_idx):
        steps.append(FederatedClient.training_step(bad, batch, batch_idx))
        if len(steps) == 2:
            raise ValueError("bad client")
        return steps[-1]

    bad.training_step = fails
    with pytest.raises(ValueError, match="bad client"):
        local.fit(bad, sites.train_loader(first, 0))
    del bad.training_step
    assert all(p.requires_grad for key, p in bad.model.named_parameters() if key in bad.model.learnable)
    assert all(p.grad is None for p in bad.parameters())
    assert bad.model.optimizer is None
    bad.model.load_own_state(fresh.model.own_state())
    for module in (bad, fresh):
        with seeded(0):
            local.fit(module, sites.train_loader(second, 0))
    trained = fresh.model.own_state()
    assert all(torch.equal(value, trained[key]) for key, value in bad.model.own_state().items())


class Watcher(Callback):
    def __init__(self) -> None:
        self.seen = []

    def on_train_start(self, trainer, pl_module) -> None:
        self.seen.append("start")

    def on_train_epoch_start(self, trainer, pl_module) -> None:
        self.seen.append(f"round after {trainer.global_step}")

    def on_validation_end(self, trainer, pl_module) -> None:
        found = trainer.callback_metrics["federation/validation/balanced_accuracy"]
        self.seen.append((trainer.global_step, trainer.current_epoch, 0 <= float(found) <= 1))

    def on_train_end(self, trainer, pl_module) -> None:
        self.seen.append("end")


def fits(module, sites, name, own_way, **options):
    """Three fits of a copy: the trained module, and the Trainer."""
    module, local = copy.deepcopy(module), LocalTrainer(trainer(**options))
    if not own_way:
        local.trainer.fit_loop.epoch_loop = _TrainingEpochLoop(local.trainer)
    for round_number in range(3):
        with seeded(round_number):
            local.fit(module, sites.train_loader(name, round_number))
    return module, local.trainer


def counters(trainer):
    loop = trainer.fit_loop.epoch_loop
    steps = loop.automatic_optimization.optim_progress.optimizer.step
    return trainer.global_step, trainer.current_epoch, loop.batch_progress, steps, loop._batches_that_stepped


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"max_epochs": 2, "accumulate_grad_batches": 2},
        {"gradient_clip_val": 0.1},
        {"gradient_clip_val": 0.001, "gradient_clip_algorithm": "value", "accumulate_grad_batches": 2},
        {"limit_train_batches": 2, "max_epochs": 2},
        {"precision": "bf16-mixed", "gradient_clip_val": 0.1},
    ],
    ids=str,
)
@pytest.mark.parametrize("method", [FedProx(mu=0.5), PFedST(schedule="alternate")], ids=lambda m: type(m).__name__)
def test_lean_steps_equal_those_of_lightning(options, method) -> None:
    made, sites = federation(method), prepared()
    name, module = next(iter(made.modules.items()))
    made.deliver(name)
    (lean, ours), (plain, lightnings) = (fits(module, sites, name, own_way, **options) for own_way in (True, False))
    assert ours.fit_loop.epoch_loop.lean
    # two loops: alike but for rounding, and a step moves a weight by 1e-3
    assert alike(lean.model.own_state(), plain.model.own_state())
    assert not alike(module.model.own_state(), plain.model.own_state())
    assert lean.trained_loss() == pytest.approx(plain.trained_loss(), rel=1e-5)
    assert counters(ours) == counters(lightnings)


class Hooked(FederatedClient):
    """A module with a hook that the lean loop does not call."""

    def on_after_backward(self) -> None:
        self.model.memo["called"] = torch.tensor(1)


class Bar(ProgressBar):
    """A callback that shows a local fit."""

    def __init__(self) -> None:
        super().__init__()
        self.batches = 0

    def on_train_batch_end(self, *_) -> None:
        self.batches += 1


@pytest.mark.parametrize("listener", ["callback", "hook", "training_step"])
def test_with_a_listener_the_steps_are_lightnings(listener) -> None:
    made, sites = federation(FedAvg()), prepared()
    name, module = next(iter(made.modules.items()))
    watcher = Watcher()
    options = {
        "callback": {"callbacks": [Bar(), watcher], "enable_progress_bar": True},
    }.get(listener, {})
    if listener == "hook":
        module.__class__ = Hooked
    if listener == "training_step":
        module.training_step = lambda batch, batch_idx: {
            "loss": FederatedClient.training_step(module, batch, batch_idx)
        }
    loader, local = sites.train_loader(name, 0), LocalTrainer(trainer(**options))
    local.fit(module, loader)
    assert not local.trainer.fit_loop.epoch_loop.lean
    assert len(module._losses) == len(loader)
    bars = [callback.batches for callback in local.trainer.callbacks if isinstance(callback, Bar)]
    assert bars == ([len(loader)] if listener == "callback" else [])
    assert watcher.seen == []  # it sees rounds, and no local fit
    assert ("called" in module.model.memo) == (listener == "hook")


class Loud(FederatedClient):
    """Logs before each step of the optimiser."""

    def on_before_optimizer_step(self, optimizer) -> None:
        super().on_before_optimizer_step(optimizer)
        self.log("loss", self._losses[-1], on_step=False, on_epoch=True)


class Counted(FedAvg):
    """Counts optimiser steps."""

    def edit_gradients(self, client) -> None:
        client.memo["steps"] = client.memo.get("steps", torch.tensor(0)) + 1


def test_a_module_may_log_and_a_method_edits_gradients_once_a_step() -> None:
    made, sites = federation(Counted()), prepared()
    name, module = next(iter(made.modules.items()))
    module.__class__ = Loud
    loader, local = sites.train_loader(name, 0), LocalTrainer(trainer(accumulate_grad_batches=2))
    local.fit(module, loader)
    assert local.trainer.fit_loop.epoch_loop.lean
    assert module.model.memo["steps"] == local.trainer.global_step == -(-len(loader) // 2)
    assert local.trainer.callback_metrics["loss"] > 0


def step_lengths(batches, accumulate, lean=True):
    """Lengths of the steps of plain SGD in an epoch of some batches."""
    sites = prepared(sites=1, samples_per_site=[8 * batches], test_samples_per_site=[8], validation_fraction=0)
    made = federation(FedAvg(), sites=sites, optimizer=partial(SGD, lr=0.1))
    name, module = next(iter(made.modules.items()))
    lengths, before = [], {key: p.detach().clone() for key, p in module.model.named_parameters()}

    def measure(optimizer, *given) -> None:
        moved = [(p.detach() - before[key]).square().sum() for key, p in module.model.named_parameters()]
        lengths.append(torch.stack(moved).sum().sqrt().item())
        before.update({key: p.detach().clone() for key, p in module.model.named_parameters()})

    local = LocalTrainer(trainer(accumulate_grad_batches=accumulate))
    if not lean:
        local.trainer.fit_loop.epoch_loop.__class__ = _TrainingEpochLoop
    with pytest.MonkeyPatch.context() as patch:
        step = SGD.step

        def stepped(self, closure=None):
            result = step(self, closure)
            measure(self)
            return result

        patch.setattr(SGD, "step", stepped)
        local.fit(module, sites.train_loader(name, 0))
    return lengths


@pytest.mark.parametrize("lean", [True, False], ids=["lean", "Lightning's loop"])
def test_a_step_is_the_mean_over_the_batches_that_there_are(lean) -> None:
    """A window of accumulated batches that is not full, as at small hospitals, gives no shorter step."""
    (two,) = step_lengths(2, 2, lean)
    assert step_lengths(2, 8, lean) == pytest.approx([two], rel=1e-4)
    assert step_lengths(5, 4, lean)[0] == pytest.approx(step_lengths(5, 4, not lean)[0], rel=1e-4)
    assert len(step_lengths(5, 4, lean)) == 2


@pytest.mark.parametrize(("share", "batches"), [(0.25, 1), (0.5, 1), (1.0, 3), (2, 2)])
def test_a_share_of_the_batches_is_one_or_more(share, batches) -> None:
    made, sites = federation(Counted()), prepared()
    name, module = next(iter(made.modules.items()))
    loader, local = sites.train_loader(name, 0), LocalTrainer(trainer(limit_train_batches=share))
    assert len(loader) == 3
    local.fit(module, loader)
    assert module.model.memo["steps"] == batches
    assert local.batches == share


class Stopped(FedAvg):
    """Is told to end in its first step."""

    def loss(self, client, batch):
        os.kill(os.getpid(), signal.SIGTERM)
        return super().loss(client, batch)


def test_sigterm_ends_a_fit_after_the_step() -> None:
    made, sites = federation(Stopped()), prepared()
    name, module = next(iter(made.modules.items()))
    with pytest.raises(SIGTERMException):
        LocalTrainer(trainer()).fit(module, sites.train_loader(name, 0))
    assert len(module._losses) == 1


def test_a_module_that_is_there_is_not_moved_and_still_casts() -> None:
    client = next(iter(federation(FedAvg()).modules.values()))
    assert client.to(torch.device("cpu")) is client.cpu() is client
    client.to(torch.float64)
    assert {parameter.dtype for parameter in client.parameters()} == {torch.float64}
    assert {parameter.device.type for parameter in client.to("meta").parameters()} == {"meta"}
    assert client.device.type == "meta"


class MemoryLogger(Logger):
    def __init__(self) -> None:
        super().__init__()
        self.rows = []

    name = "memory"
    version = 0

    def log_hyperparams(self, *_, **__) -> None: ...

    def log_metrics(self, metrics, step=None) -> None:
        self.rows.append((step, metrics))


def test_callbacks_and_loggers_see_rounds_as_steps(tmp_path) -> None:
    watcher, logger = Watcher(), MemoryLogger()
    fit(
        tmp_path,
        FedAvg(),
        trainer_options={"callbacks": [watcher], "logger": logger},
        rounds=3,
        evaluate_every=2,
    )
    assert watcher.seen == [
        "start",
        "round after 0",
        "round after 1",
        (2, 2, True),
        "round after 2",
        (3, 3, True),
        "end",
    ]
    assert [step for step, _ in logger.rows] == [0, 1, 2, 3]
    assert set(logger.rows[1][1]) == {f"client/site_{s}/train_loss" for s in "abc"}
    for name in ("client/site_a/test/auroc", "federation/validation/accuracy", "generic/test/macro_f1"):
        assert name in logger.rows[2][1]


def test_a_csv_logger_writes_a_row_a_round(tmp_path) -> None:
    logger = CSVLogger(tmp_path / "csv")
    fit(tmp_path, FedAvg(), trainer_options={"logger": logger}, rounds=2)
    rows = next((tmp_path / "csv").rglob("metrics.csv")).read_text().splitlines()
    assert len(rows) == 1 + 3
    assert "federation/test/balanced_accuracy" in rows[0]


def test_early_stopping_ends_the_run_after_a_round(tmp_path) -> None:
    stopping = EarlyStopping("federation/validation/balanced_accuracy", mode="max", patience=1, min_delta=1.0)
    summary = fit(tmp_path, FedAvg(), trainer_options={"callbacks": [stopping]}, rounds=9)
    assert summary["protocol"]["round"] == 2
    assert summary["protocol"]["rounds"] == 9


def test_early_stopping_that_would_end_a_run_that_gets_better_is_refused(tmp_path) -> None:
    stopping = EarlyStopping("federation/validation/balanced_accuracy")
    with pytest.raises(ConfigurationError, match="with mode min a rise of .*balanced_accuracy would end the run"):
        fit(tmp_path, FedAvg(), trainer_options={"callbacks": [stopping]})
    for falls in ("federation/validation/ece", "client/site_a/train_loss"):
        fit(tmp_path / falls[-3:], FedAvg(), trainer_options={"callbacks": [EarlyStopping(falls)]}, rounds=1)


@pytest.mark.parametrize("monitored", ["foo", "federation/validation/quadratic_kappa", "client/site_d/test/accuracy"])
def test_a_metric_that_no_round_logs_is_refused_before_the_first_round(tmp_path, monitored) -> None:
    with pytest.raises(
        ConfigurationError, match=f"EarlyStopping: no round logs '{monitored}'; .*federation/test/auroc"
    ):
        fit(tmp_path, FedAvg(), trainer_options={"callbacks": [EarlyStopping(monitored)]})
    assert not (tmp_path / "run" / "rounds.jsonl").exists()


def test_a_metric_of_a_split_without_images_is_refused(tmp_path) -> None:
    stopping = EarlyStopping("federation/validation/accuracy")
    with pytest.raises(ConfigurationError, match="no round logs 'federation/validation/accuracy'"):
        fit(tmp_path, FedAvg(), sites=data(validation_fraction=0.0), trainer_options={"callbacks": [stopping]})


def test_a_metric_that_is_not_defined_in_a_round_is_one_error(tmp_path) -> None:
    """A site that is not drawn has no loss of its training."""
    stopping = EarlyStopping("client/site_a/train_loss", patience=9)
    with pytest.raises(ConfigurationError, match="EarlyStopping: round . logs no 'client/site_a/train_loss'"):
        fit(tmp_path, FedAvg(), trainer_options={"callbacks": [stopping]}, rounds=9, participation=0.1)
    relaxed = EarlyStopping("client/site_a/train_loss", patience=9, strict=False)
    fit(tmp_path / "relaxed", FedAvg(), trainer_options={"callbacks": [relaxed]}, rounds=3, participation=0.1)


class Fails(FedAvg):
    """Ends the run in its first merge."""

    def merge(self, *_, **__):
        raise StateError("the end")


def test_callbacks_hear_of_an_error(tmp_path) -> None:
    heard = []
    callback = LambdaCallback(on_exception=lambda trainer, module, exception: heard.append(str(exception)))
    with pytest.raises(StateError, match="the end"):
        fit(tmp_path, Fails(), trainer_options={"callbacks": [callback]})
    assert heard == ["the end"]


WAITS = ("item", "__bool__", "__float__", "__int__", "__index__", "cpu", "tolist", "numpy", "nonzero")
"""Methods of a tensor that wait for its device."""


@pytest.mark.parametrize("method", [FedAvg, FedProx, Ditto, SCAFFOLD, FedRep, APFL, PFedST])
def test_a_fit_waits_for_the_device_once(monkeypatch, method) -> None:
    """At its end, for the losses; SGD, since AdamW reads its step counters, which lie on the CPU."""
    made = federation(method(), optimizer=partial(torch.optim.SGD, lr=0.01))
    module, sites = made.modules["site_a"], made.client.data
    made.deliver("site_a")
    trained, waits = [], []
    step = torch.optim.SGD.step
    monkeypatch.setattr(
        torch.optim.SGD, "step", lambda *of, **named: (trained.append(len(waits)), step(*of, **named))[1]
    )
    with monkeypatch.context() as patched:
        for name in WAITS:
            own = getattr(torch.Tensor, name)
            patched.setattr(torch.Tensor, name, lambda *of, own=own, name=name: (waits.append(name), own(*of))[1])
        local = LocalTrainer(trainer(max_epochs=method().fewest_local_epochs))
        local.fit(module, sites.train_loader(made.sites_of("site_a"), 1))
    assert len(trained) >= 3
    of_loader = ["item", "tolist"]  # seed and order of an epoch, which are made on the CPU
    assert waits[trained[0] : trained[-1]] == of_loader * (method().fewest_local_epochs - 1)
    assert waits[trained[-1] :].count("__bool__") == 1
