"""The learning rate over rounds: factors by hand and against torch's schedulers, and runs with them."""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pfedst_baselines.ditto import Ditto
from pfedst_baselines.fedavg import FedAvg
from pfedst_baselines.prototypes import Prototypes
from pfedst_baselines.zero_shot import ZeroShot
from torch import nn
from torch.optim import SGD
from torch.optim.lr_scheduler import CosineAnnealingLR, MultiStepLR

from pfedst.client.module import FederatedClient
from pfedst.errors import ConfigurationError
from pfedst.methods.pfedst import PFedST
from pfedst.server.coordinator import FederatedCoordinator
from pfedst.server.schedule import Schedule
from pfedst.testing.small import fit, template
from pfedst.transport.in_process import InProcess
from tests.server.runs import go_on, left, same, without_times
from tests.server.test_resume import interrupted

COSINE = {"lr_schedule": "cosine", "warmup_rounds": 1}


def factors(kind, warmup_rounds, rounds):
    schedule = Schedule(kind, warmup_rounds, rounds)
    return [schedule.factor(number) for number in range(1, rounds + 1)]


@pytest.mark.parametrize(
    ("kind", "warmup_rounds", "expected"),
    [
        ("constant", 0, [1, 1, 1, 1, 1, 1]),
        ("constant", 2, [1 / 3, 2 / 3, 1, 1, 1, 1]),
        ("step", 2, [1 / 3, 2 / 3, 1, 1, 0.1, 0.01]),
        ("cosine", 1, [0.5, 1, 0.01 + 0.99 * (1 + 2**-0.5) / 2, 0.505, 0.01 + 0.99 * (1 - 2**-0.5) / 2, 0.01]),
        ("step", 3, [0.25, 0.5, 0.75, 1, 1, 0.1]),
        ("cosine", 4, [0.2, 0.4, 0.6, 0.8, 1, 0.01]),
    ],
)
def test_factors_by_hand(kind, warmup_rounds, expected) -> None:
    assert factors(kind, warmup_rounds, 6) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("rounds", [2, 5, 40])
def test_cosine_is_torchs(rounds) -> None:
    optimizer = SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    torchs, found = CosineAnnealingLR(optimizer, rounds - 1, eta_min=0.01), []
    for _ in range(rounds):
        found.append(torchs.get_last_lr()[0])
        optimizer.step()
        torchs.step()
    assert factors("cosine", 0, rounds) == pytest.approx(found, rel=1e-9)


@pytest.mark.parametrize("rounds", [4, 8, 40])
def test_step_is_torchs(rounds) -> None:
    optimizer = SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    torchs, found = MultiStepLR(optimizer, [rounds // 2, rounds * 3 // 4], 0.1), []
    for _ in range(rounds):
        found.append(torchs.get_last_lr()[0])
        optimizer.step()
        torchs.step()
    assert factors("step", 0, rounds) == pytest.approx(found, rel=1e-12)


@given(st.sampled_from(["constant", "cosine", "step"]), st.integers(0, 20), st.integers(2, 60))
def test_it_rises_to_one_and_then_falls(kind, warmup_rounds, after) -> None:
    found = factors(kind, warmup_rounds, warmup_rounds + after)
    assert all(0 < factor <= 1 for factor in found)
    assert found[: warmup_rounds + 1] == sorted(found[: warmup_rounds + 1])
    assert found[warmup_rounds] == 1
    assert found[warmup_rounds:] == sorted(found[warmup_rounds:], reverse=True)
    assert Schedule(kind, warmup_rounds, warmup_rounds + after).is_constant == (set(found) == {1.0})


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"warmup_rounds": -1}, "warmup_rounds -1: must be 0 or more and below --coordinator.rounds"),
        ({"warmup_rounds": 3, "rounds": 3}, r"warmup_rounds 3: .*below --coordinator.rounds \(3\)"),
        ({"lr_schedule": "cosine", "rounds": 1}, "lr_schedule cosine has no effect in 1 round after 0"),
        ({"lr_schedule": "step", "rounds": 4, "warmup_rounds": 3}, "has no effect in 1 round after 3 of warm-up"),
    ],
)
def test_options_out_of_range(options, words) -> None:
    with pytest.raises(ConfigurationError, match=words):
        FederatedCoordinator(**options)


@pytest.mark.parametrize("method", [ZeroShot, Prototypes])
@pytest.mark.parametrize(
    ("options", "key"), [({"lr_schedule": "cosine"}, "lr_schedule"), ({"warmup_rounds": 1}, "warmup_rounds")]
)
def test_a_method_that_trains_nothing_has_nothing_to_schedule(tmp_path, method, options, key) -> None:
    with pytest.raises(ConfigurationError, match=rf"coordinator\.{key} has no effect: method {method.__name__} trains"):
        fit(tmp_path, method(), **options)


@pytest.fixture
def rates(monkeypatch):
    """The learning rates of all fits of a run: (client, round, fine-tuning) -> of each group."""
    found, configure = {}, FederatedClient.configure_optimizers

    def remembered(self):
        optimizer = configure(self)
        if self.model.round:  # else it is the check before a run
            place = self.model.name, self.model.round, self.model.finetuning
            found.setdefault(place, [group["lr"] for group in optimizer.param_groups])
        return optimizer

    monkeypatch.setattr(FederatedClient, "configure_optimizers", remembered)
    return found


@pytest.mark.parametrize("method", [PFedST, Ditto])
def test_every_fit_has_the_factor_of_its_round_and_fine_tuning_has_none(tmp_path, rates, method) -> None:
    summary = fit(tmp_path, method(finetune_epochs=1), rounds=4, **COSINE)
    expected = dict(enumerate([0.5, 1.0, 0.505, 0.01], start=1))
    assert {number for _, number, _ in rates} == set(expected)
    for (name, number, finetuning), of_groups in rates.items():
        factor = 1.0 if finetuning else expected[number]
        assert of_groups == pytest.approx([3e-4 * factor] * len(of_groups), rel=1e-12), (name, number)
    assert ("site_a", 4, True) in rates
    records = [json.loads(line) for line in (tmp_path / "run/rounds.jsonl").read_text().splitlines()]
    for record in records:
        shown = expected.get(record["round"]) if "finetuned" not in record else None
        assert record.get("lr_factor") == (None if shown is None else pytest.approx(shown))
    assert summary["protocol"]["lr_schedule"] == "cosine after 1 round of warm-up"


def test_kept_optimisers_have_the_factor_of_the_round(tmp_path, rates) -> None:
    fit(tmp_path, FedAvg(), rounds=4, optimizer_state="keep", lr_schedule="step")
    found = [rates["site_a", number, False][0] for number in range(1, 5)]
    assert found == pytest.approx([3e-4, 3e-4, 3e-5, 3e-6])


def test_a_round_is_that_of_the_scaled_learning_rate(tmp_path) -> None:
    """With warm-up, the first round is that of half the learning rate, bit for bit; the second one that of all."""
    fit(tmp_path / "a", PFedST(), warmup_rounds=1)
    half = template(PFedST(), optimizer=lambda params: torch.optim.AdamW(params, lr=1.5e-4, weight_decay=0.01))
    fit(tmp_path / "b", PFedST(), model=half)
    fit(tmp_path / "c", PFedST())
    losses = [
        [
            [record["train_loss"] for record in map(json.loads, lines) if record["round"] == number]
            for number in (1, 2)
            if (lines := (tmp_path / name / "run/rounds.jsonl").read_text().splitlines())
        ]
        for name in "abc"
    ]
    assert losses[0][0] == losses[1][0] != losses[2][0]
    assert losses[0][1] not in (losses[1][1], losses[2][1])


def test_without_a_schedule_nothing_tells_of_one(tmp_path) -> None:
    summary = fit(tmp_path, FedAvg(), lr_schedule="constant", warmup_rounds=0)
    assert "lr_schedule" not in summary["protocol"]
    assert "lr_factor" not in (tmp_path / "run/rounds.jsonl").read_text()


@pytest.fixture
def asked(monkeypatch):
    """The factors in the requests for fits."""
    found, ask = [], InProcess.ask

    def remembered(self, requests, started):
        found.extend(request.lr_factor for request in requests.values() if request.kind == "fit")
        return ask(self, requests, started)

    monkeypatch.setattr(InProcess, "ask", remembered)
    return found


def test_it_goes_on_and_runs_in_workers_as_if_nothing_had_happened(tmp_path, asked) -> None:
    whole = fit(tmp_path / "whole", PFedST(), rounds=4, threads=1, **COSINE)
    assert asked == [*[0.5] * 3, *[1.0] * 3, *[0.505] * 3, *[0.01] * 3]
    asked.clear()
    interrupted(tmp_path / "cut", PFedST(), 2, rounds=4, threads=1, **COSINE)
    asked.clear()
    assert without_times(go_on(tmp_path / "cut", PFedST(), threads=1, **COSINE)) == without_times(whole)
    assert asked[-6:] == [*[0.505] * 3, *[0.01] * 3]
    same(left(tmp_path / "cut"), left(tmp_path / "whole"))
    workers = fit(tmp_path / "w", PFedST(), rounds=4, threads=1, transport="processes", workers=2, **COSINE)
    assert workers["personal"] == whole["personal"]
    same(left(tmp_path / "w"), left(tmp_path / "whole"))
