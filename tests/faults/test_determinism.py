"""One seed, the same bits: what of torch decides over them holds in every process, and order decides nothing."""

import json
import random

import pytest
import torch
from pfedst_baselines.fedavg import FedAvg

from pfedst.methods.pfedst import PFedST
from pfedst.testing.small import fit
from pfedst.transport.in_process import InProcess
from pfedst.transport.workers import TorchSettings
from tests.server.runs import left, same, without_times


@pytest.fixture
def settings_as_they_were():
    before = TorchSettings.here()
    yield
    before.adopt()


class NotesSettings(FedAvg):
    """Keeps on the client what holds in the process that fits it."""

    def loss(self, client, batch):
        holds = torch.are_deterministic_algorithms_enabled(), torch.get_float32_matmul_precision() == "high"
        client.memo["holds"] = torch.tensor(holds)
        return super().loss(client, batch)


@pytest.mark.usefixtures("settings_as_they_were")
def test_deterministic_holds_in_workers_too(tmp_path) -> None:
    torch.set_float32_matmul_precision("high")
    options = {"trainer_options": {"deterministic": True}, "transport": "processes", "workers": 1, "threads": 1}
    fit(tmp_path, NotesSettings(), rounds=1, **options)
    assert left(tmp_path)[2]["site_b/after-000001/client.safetensors"]["memo|holds"].tolist() == [True, True]


@pytest.mark.usefixtures("settings_as_they_were")
@pytest.mark.parametrize("deterministic", [True, False])
def test_settings_are_adopted_whole(deterministic) -> None:
    torch.use_deterministic_algorithms(deterministic, warn_only=deterministic)
    taken = TorchSettings.here()
    torch.use_deterministic_algorithms(not deterministic)
    taken.adopt()
    assert TorchSettings.here() == taken
    assert torch.are_deterministic_algorithms_enabled() is deterministic


def test_the_order_of_fits_changes_nothing(tmp_path, monkeypatch) -> None:
    whole = fit(tmp_path / "whole", PFedST(), rounds=3)
    ask, draw = InProcess.ask, random.Random(0)

    def in_any_order(self, requests, started):
        names = draw.sample(list(requests), len(requests))
        yield from ask(self, {name: requests[name] for name in names}, started)

    monkeypatch.setattr(InProcess, "ask", in_any_order)
    shuffled = fit(tmp_path / "shuffled", PFedST(), rounds=3)
    assert without_times(shuffled) == without_times(whole)
    same(left(tmp_path / "shuffled"), left(tmp_path / "whole"))


def test_the_global_generators_decide_nothing_and_are_left_alone(tmp_path) -> None:
    torch.manual_seed(1)
    random.seed(1)
    whole = fit(tmp_path / "whole", PFedST())
    torch.manual_seed(2)
    random.seed(2)
    states = torch.get_rng_state(), random.getstate()
    again = fit(tmp_path / "again", PFedST())
    assert without_times(again) == without_times(whole)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]


def test_another_seed_gives_other_bits(tmp_path) -> None:
    one, other = (fit(tmp_path / str(seed), PFedST(), seed=seed) for seed in (0, 1))
    assert json.dumps(without_times(one)["trained"]) != json.dumps(without_times(other)["trained"])
