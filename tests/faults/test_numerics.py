"""NaN and overflow in a step: skipped or told, and counted; batches of a scaler; fits that do not know each other."""

import json
from functools import partial

import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision
from pfedst_baselines.fedavg import FedAvg
from pfedst_baselines.scaffold import SCAFFOLD

from pfedst.client.training import LocalTrainer
from pfedst.errors import ConfigurationError, NotFiniteError, TooFewClientsError
from pfedst.testing.small import federation, fit, prepared, template, train, trainer
from tests.faults.runs_that_stop import Steps
from tests.rounding import alike

BATCH = 1


def bad_at(make_bad, base=FedAvg):
    class Bad(Steps, base):
        """One bad step of site_b in each fit."""

        def loss(self, client, batch):
            loss = super().loss(client, batch)
            return make_bad(loss) if self.step(client) == BATCH and client.name == "site_b" else loss

    return Bad


def root_of_zero(loss):
    """Finite, with a gradient that is not."""
    return loss + (loss * 0).sqrt()


BAD_STEPS = {
    "NaN loss": lambda loss: loss * float("nan"),
    "infinite loss": lambda loss: loss + float("inf"),
    "NaN gradient": root_of_zero,
}


@pytest.mark.parametrize("name", BAD_STEPS)
def test_a_bad_step_is_skipped_and_counted_or_stops_the_client(tmp_path, caplog, name) -> None:
    method = bad_at(BAD_STEPS[name])
    skipping = fit(tmp_path / "skip", method(), model=template(non_finite="skip"))
    assert skipping["left_out"] == {}
    assert skipping["cost"]["skipped_steps"] == 2  # one a round
    records = [json.loads(line) for line in (tmp_path / "skip/run/rounds.jsonl").read_text().splitlines()]
    assert {r["client"]: r["skipped_steps"] for r in records if r["round"] == 1} == {
        "site_a": 0,
        "site_b": 1,
        "site_c": 0,
    }
    stopping = fit(tmp_path / "stop", method())
    assert stopping["left_out"] == {"site_b": {"NotFiniteError": 2}}
    assert stopping["cost"]["skipped_steps"] == 0
    assert "--model.non_finite skip" in caplog.text


def losses_of(non_finite, method):
    made = federation(method, non_finite=non_finite)
    made.deliver("site_b")
    train(made, "site_b")
    return made.modules["site_b"]


def test_a_skipped_step_leaves_weights_and_moments_alone(monkeypatch) -> None:
    """What a fit with a bad batch in the middle gives is what one without that batch gives."""

    class Without(Steps, FedAvg):
        """The same batches, of which one has no gradient at all."""

        def loss(self, client, batch):
            loss = super().loss(client, batch)
            return loss * 0 if self.step(client) == BATCH else loss

        def edit_gradients(self, client) -> None:
            if self._steps == BATCH + 1:
                client.zero_grad(set_to_none=True)

    skipped = losses_of("skip", bad_at(BAD_STEPS["NaN loss"])())
    assert skipped.skipped_steps == 1
    # two ways to skip a step: alike but for rounding, and a step that counts moves weights by 1e-3
    assert alike(losses_of("stop", Without()).model.own_state(), skipped.model.own_state())


def test_a_method_never_sees_gradients_that_are_not_finite() -> None:
    module = losses_of("skip", bad_at(BAD_STEPS["NaN loss"], SCAFFOLD)())
    assert all(torch.isfinite(tensor).all() for tensor in module.model.memo["gradients"].values())
    assert module.model.memo["steps"] == len(module._losses) - 1


def test_a_fit_without_one_finite_loss_is_told() -> None:
    class Never(FedAvg):
        def loss(self, client, batch):
            return super().loss(client, batch) * float("nan")

    module = losses_of("skip", Never())
    with pytest.raises(NotFiniteError, match="site_b.*no step had a finite loss"):
        module.trained_loss()


def test_a_learning_rate_that_explodes_ends_the_run_with_words(tmp_path, caplog) -> None:
    explosive = template(optimizer=partial(torch.optim.SGD, lr=1e30))
    with pytest.raises(TooFewClientsError, match="NotFiniteError"):
        fit(tmp_path, FedAvg(), model=explosive)
    assert "lower the learning rate" in caplog.text


def float16(scale=2.0**16):
    """Mixed precision with a scaled loss, which Lightning would only make on a GPU."""
    return MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=scale))


def test_a_loss_scale_is_of_one_fit() -> None:
    """With float16 gradients are scaled; the scale may not depend on which client was fitted before."""
    made, sites, local = federation(FedAvg()), prepared(), LocalTrainer(trainer(plugins=[float16(2.0**20)]))

    def fitted(name, batches_of):
        made.deliver(name)
        local.fit(made.modules[name], sites.train_loader([batches_of], 1))
        return made.clients[name].own_state(), local.trainer.precision_plugin.scaler.get_scale()

    state, scale = fitted("site_a", "site_a")
    assert scale < 2.0**20
    again, scale_again = fitted("site_b", "site_a")
    assert scale_again == scale
    assert all(torch.equal(tensor, again[key]) for key, tensor in state.items())


class Overflows(Steps, FedAvg):
    """Gradients beyond float16 in the first two steps, as of a scale that is too high."""

    def loss(self, client, batch):
        loss = super().loss(client, batch)
        return loss * (1e38 if self.step(client) < 2 else 1.0)


def test_an_overflow_is_the_scalers_and_counted(tmp_path) -> None:
    summary = fit(tmp_path, Overflows(), trainer_options={"plugins": [float16()]}, rounds=1)
    assert summary["left_out"] == {}
    assert summary["cost"]["skipped_steps"] >= 3


@pytest.mark.parametrize(
    ("optimizer", "options", "words"),
    [
        (torch.optim.LBFGS, {}, "LBFGS"),
        (partial(torch.optim.AdamW, fused=True), {"plugins": [float16()]}, "fused optimisers"),
        (partial(torch.optim.SGD, lr=-1.0), {}, "--model.optimizer: Invalid learning rate"),
    ],
    ids=["LBFGS", "fused", "negative"],
)
def test_optimisers_that_cannot_work_are_refused(tmp_path, optimizer, options, words) -> None:
    with pytest.raises(ConfigurationError, match=words):
        fit(tmp_path, FedAvg(), model=template(optimizer=optimizer), trainer_options=options)
