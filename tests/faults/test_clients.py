"""A client that fails in whatever way is left out of its round, told and recorded, and comes back as it was."""

import json
import time

import pytest
import torch
from pfedst_baselines.ditto import Ditto
from pfedst_baselines.fedavg import FedAvg
from pfedst_baselines.scaffold import SCAFFOLD

from pfedst.errors import ConfigurationError, TooFewClientsError
from pfedst.messages.payload import NET
from pfedst.methods.pfedst import PFedST
from pfedst.reporting import RunFolder
from pfedst.reporting.tables import protocol_text
from pfedst.state.run_state import RunState
from pfedst.testing.small import fit
from tests.faults.runs_that_stop import BAD, Steps, copies_of_one_round, is_bad, without_the_bad
from tests.server.runs import go_on, left, merged_fits, same, without_times


class RaisesInLoss(Steps, PFedST):
    """Not in its first step."""

    def loss(self, client, batch):
        loss = super().loss(client, batch)
        if self.step(client) > 0 and is_bad(client):
            raise ZeroDivisionError("a secret of patient 4711")
        return loss


class LosesWithNaN(PFedST):
    def loss(self, client, batch):
        return super().loss(client, batch) * (float("nan") if is_bad(client) else 1.0)


class KeepsNaN(PFedST):
    """In what never leaves the client."""

    def edit_gradients(self, client) -> None:
        if is_bad(client):
            client.adapter.side.up.lora_A.data.fill_(float("inf"))


def sends(change):
    class Sends(PFedST):
        def upload(self, client):
            message = super().upload(client)
            return change(dict(message[NET])) if is_bad(client) else message

    return Sends


def without_first(net):
    net.pop(next(iter(net)))
    return {NET: net}


def with_first(value):
    def change(net):
        key = next(iter(net))
        return {NET: net | {key: value(net[key])}}

    return change


def more_of_everything(factor):
    return lambda net: {NET: {key: value * factor for key, value in net.items()}}


FAULTS = {
    "raises": (RaisesInLoss, "ZeroDivisionError"),
    "NaN loss": (LosesWithNaN, "NotFiniteError"),
    "infinite personal tensor": (KeepsNaN, "NotFiniteError"),
    "NaN in the message": (sends(more_of_everything(float("nan"))), "NotFiniteError"),
    "key missing": (sends(without_first), "StateError"),
    "key added": (sends(lambda net: {NET: net | {"x": torch.ones(1)}}), "StateError"),
    "undeclared name": (sends(lambda net: {NET: net, "x": {"y": torch.ones(1)}}), "StateError"),
    "shape": (sends(with_first(lambda tensor: tensor[..., :-1])), "StateError"),
    "dtype": (sends(with_first(lambda tensor: tensor.double())), "StateError"),
    "no tensor": (sends(with_first(lambda tensor: tensor.tolist())), "StateError"),
    "no dict": (sends(lambda net: [net]), "StateError"),
    "absurd norm": (sends(more_of_everything(1e9)), "StateError"),
}


def records_of(folder):
    return [json.loads(line) for line in (folder / "run/rounds.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def absent_once(tmp_path_factory):
    """A run in which the client simply is not drawn in that round."""
    folder = tmp_path_factory.mktemp("absent")
    with without_the_bad():
        summary = fit(folder, PFedST(), rounds=3)
    return summary, left(folder)


@pytest.fixture(scope="module")
def after_one_round(tmp_path_factory):
    """Gives a run of a method to go on with after its first round, run once and copied."""
    return copies_of_one_round(tmp_path_factory.mktemp, fit)


@pytest.fixture(scope="module")
def whole_fedavg(tmp_path_factory):
    """The summary of a run of FedAvg in which nobody fails."""
    return fit(tmp_path_factory.mktemp("fedavg"), FedAvg(), rounds=3)


@pytest.mark.parametrize("name", FAULTS)
def test_a_faulty_client_is_as_one_that_was_not_asked(tmp_path, caplog, absent_once, after_one_round, name) -> None:
    method, kind = FAULTS[name]
    after_one_round(tmp_path, PFedST)
    summary = go_on(tmp_path, method(), rounds=3)
    expected, (expected_records, *expected_state) = absent_once
    records, *state = left(tmp_path)
    same(([], *state), ([], *expected_state))
    for model in ("personal", "generic"):
        assert summary[model] == expected[model]
    assert summary["left_out"] == {"site_b": {kind: 1}}
    faulty = [record for record in records if "left_out" in record]
    assert [(r["round"], r["client"], r["participated"], r["left_out"]) for r in faulty] == [(2, "site_b", False, kind)]
    others = [record for record in records if record not in faulty]
    assert others == [r for r in expected_records if (r["client"], r["round"]) != BAD]
    assert f"client site_b is excluded from round {BAD[1]}" in caplog.text
    assert "left out site_b: 1 of 3 rounds" in protocol_text(summary).plain


def test_what_an_error_says_is_told_and_not_recorded(tmp_path, caplog, after_one_round) -> None:
    after_one_round(tmp_path, PFedST)
    go_on(tmp_path, RaisesInLoss(), rounds=2)
    assert "patient 4711" in caplog.text
    assert "Traceback" in caplog.text
    assert not [file for file in (tmp_path / "run").rglob("*.json*") if "patient 4711" in file.read_text()]


class AlwaysRaises(FedAvg):
    def loss(self, client, batch):
        if client.name != "site_a":
            raise ZeroDivisionError
        return super().loss(client, batch)


def test_a_fault_is_told_at_length_once(tmp_path, caplog) -> None:
    fit(tmp_path, AlwaysRaises(), rounds=3, evaluate_every=3)
    assert caplog.text.count("Traceback") == 1  # a defect of a method is one text, whichever client meets it
    assert caplog.text.count("ZeroDivisionError, as at client site_b") == 1
    assert caplog.text.count("ZeroDivisionError, as before") == 4


@pytest.mark.parametrize("min_clients", [2, 3])
def test_too_few_clients_end_the_run_and_it_goes_on(tmp_path, whole_fedavg, min_clients) -> None:
    with pytest.raises(TooFewClientsError, match=r"site_b \(ZeroDivisionError\).*--resume") as caught:
        fit(tmp_path, AlwaysRaises(), rounds=3, min_clients=min_clients)
    assert f"1 of 3 clients reported, --coordinator.min_clients is {min_clients}" in str(caught.value)
    assert [path.name for path in RunState(tmp_path / "run/state").rounds()] == ["round-000000"]
    resumed = go_on(tmp_path, FedAvg(), rounds=3, min_clients=min_clients)
    assert resumed["personal"] == whole_fedavg["personal"]


class NobodyReports(FedAvg):
    def loss(self, client, batch):
        if client.round == 2:
            raise ZeroDivisionError
        return super().loss(client, batch)


def test_with_no_client_demanded_a_round_without_any_changes_nothing(tmp_path, after_one_round) -> None:
    after_one_round(tmp_path, FedAvg)
    summary = go_on(tmp_path, NobodyReports(), rounds=3, min_clients=0)
    assert summary["left_out"] == {f"site_{x}": {"ZeroDivisionError": 1} for x in "abc"}
    received = {(r["round"], r["client"]): r["received"] for r in records_of(tmp_path)}
    assert received[1, "site_a"] == received[2, "site_a"] != received[3, "site_a"]
    after_one_round(tmp_path / "one", FedAvg)
    with pytest.raises(TooFewClientsError):
        go_on(tmp_path / "one", NobodyReports(), rounds=3)
    # the round before was not evaluated, so that what is saved of a client is what it trained, not what was merged
    stale = fit(tmp_path / "stale", NobodyReports(), rounds=2, evaluate_every=2, min_clients=0)
    after_one_round(tmp_path / "merged", FedAvg)
    assert stale["personal"] == RunFolder(tmp_path / "merged/run").summary()["personal"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"min_clients": -1}, "min_clients -1: must be 0 or more"),
        ({"most_samples": 0}, "most_samples 0: must be 1 or more"),
        ({"min_clients": 4}, "a round asks 3 clients only"),
        ({"min_clients": 2, "participation": 0.3}, "a round asks 1 clients only"),
        ({"most_norm_ratio": 1.0}, "most_norm_ratio 1.0: must be above 1"),
        ({"timeout_seconds": 5.0}, "add --coordinator.transport processes"),
        ({"timeout_seconds": 0.0, "transport": "processes"}, "must be above 0"),
        ({"timeout_seconds": float("nan"), "transport": "processes"}, "must be above 0"),
    ],
)
def test_options_out_of_range(tmp_path, options, words) -> None:
    with pytest.raises(ConfigurationError, match=words):
        fit(tmp_path, FedAvg(), **options)


class RaisesConfiguration(FedAvg):
    def loss(self, client, batch):
        raise ConfigurationError("--method.x cannot work")


def test_an_option_that_cannot_work_is_nobodys_fault(tmp_path) -> None:
    with pytest.raises(ConfigurationError, match="cannot work"):
        fit(tmp_path, RaisesConfiguration())


class OddControl(SCAFFOLD):
    """Another shape under a name whose shapes nobody declares."""

    def upload(self, client):
        message = super().upload(client)
        if is_bad(client):
            key = next(iter(message["control"]))
            message["control"][key] = message["control"][key][:1]
        return message


class NaNControl(SCAFFOLD):
    def upload(self, client):
        message = super().upload(client)
        if is_bad(client):
            message["control"][next(iter(message["control"]))].fill_(float("nan"))
        return message


@pytest.mark.parametrize("method", [OddControl, NaNControl])
def test_what_travels_beside_the_model_is_looked_at_too(tmp_path, after_one_round, method) -> None:
    after_one_round(tmp_path, SCAFFOLD)
    assert list(go_on(tmp_path, method(), rounds=3)["left_out"]) == ["site_b"]


class OneReportsNonsense(FedAvg):
    """In a round in which the others fail."""

    def loss(self, client, batch):
        if client.round == 2 and client.name != "site_b":
            raise ZeroDivisionError
        return super().loss(client, batch)

    def upload(self, client):
        message = super().upload(client)
        return {NET: {key: value * (1e9 if is_bad(client) else 1) for key, value in message[NET].items()}}


def test_nonsense_from_the_only_client_that_reports_is_not_merged(tmp_path, after_one_round) -> None:
    after_one_round(tmp_path, FedAvg)
    summary = go_on(tmp_path, OneReportsNonsense(), rounds=3, min_clients=0)
    assert summary["left_out"] == {
        "site_a": {"ZeroDivisionError": 1},
        "site_b": {"StateError": 1},
        "site_c": {"ZeroDivisionError": 1},
    }
    received = {(r["round"], r["client"]): r["received"] for r in records_of(tmp_path)}
    assert received[1, "site_a"] == received[2, "site_a"] != received[3, "site_a"]


def test_without_a_limit_an_absurd_norm_is_merged(tmp_path, after_one_round) -> None:
    method = sends(more_of_everything(1e6))
    after_one_round(tmp_path, PFedST)
    assert go_on(tmp_path, method(), rounds=2, most_norm_ratio=None)["left_out"] == {}


class RaisesInFineTuning(Ditto):
    def loss(self, client, batch):
        if client.finetuning and client.name == "site_b":
            raise ZeroDivisionError
        return super().loss(client, batch)


def test_a_client_that_fails_in_fine_tuning_is_as_after_the_last_merge(tmp_path) -> None:
    tuned = fit(tmp_path / "tuned", RaisesInFineTuning(finetune_epochs=2))
    plain = fit(tmp_path / "plain", Ditto())
    assert tuned["left_out"] == {"site_b": {"ZeroDivisionError": 1}}
    clients = tuned["personal"]["clients"], plain["personal"]["clients"]
    assert clients[0]["site_b"] == clients[1]["site_b"]
    assert merged_fits(tmp_path / "tuned")[1] == {"site_a": 3, "site_b": 2, "site_c": 3}
    finetuned, plain = (left(tmp_path / name)[2] for name in ("tuned", "plain"))
    for file in ("client", "message"):
        place = f"site_b/after-000002/{file}.safetensors"
        assert all(torch.equal(tensor, plain[place][key]) for key, tensor in finetuned[place].items())


class Hangs(PFedST):
    def loss(self, client, batch):
        if is_bad(client):
            time.sleep(600)
        return super().loss(client, batch)


def test_a_worker_that_does_not_answer_is_replaced(tmp_path, absent_once, after_one_round) -> None:
    after_one_round(tmp_path, PFedST)
    options = {"transport": "processes", "workers": 1, "threads": 1, "timeout_seconds": 8.0}
    summary = go_on(tmp_path, Hangs(), rounds=3, **options)
    assert summary["left_out"] == {"site_b": {"NoAnswerError": 1}}
    same(([], *left(tmp_path)[1:]), ([], *absent_once[1][1:]))


def test_without_times_keeps_what_counts() -> None:
    assert without_times({"fit_seconds": 1, "a": [{"total_seconds": 2, "b": 3}]}) == {"a": [{"b": 3}]}
