"""The loop over rounds: what clients are asked, and which of their fits are never lost."""

import json
from collections import defaultdict

import pytest
import torch
from lightning.pytorch import Callback
from pfedst_baselines.fedavg import FedAvg
from pfedst_baselines.pooled import Pooled

from pfedst.client.calibration_file import load_calibration
from pfedst.client.predictions import Predictions
from pfedst.client.state import SiteState
from pfedst.errors import DataError, NoAnswerError, NoEvaluationError
from pfedst.evaluation.averages import CLASS_METRICS
from pfedst.messages.faults import Fault
from pfedst.messages.payload import NET
from pfedst.methods.pfedst import PFedST
from pfedst.reporting.loading import load_compared
from pfedst.reporting.make_report import make_report
from pfedst.reporting.tables import metrics_table, protocol_text
from pfedst.state.snapshot import read_snapshot
from pfedst.testing.small import data, fit
from pfedst.transport.in_process import InProcess
from tests.server.runs import go_on


@pytest.fixture
def requests(monkeypatch):
    """All requests of a run in order: (name, request)."""
    asked, ask = [], InProcess.ask

    def remembered(self, requests, started):
        asked.extend(requests.items())
        return ask(self, requests, started)

    monkeypatch.setattr(InProcess, "ask", remembered)
    return asked


def of_kind(requests, kind, name=None):
    return [request for asked, request in requests if request.kind == kind and name in (None, asked)]


class Refused(PFedST):
    """The server refuses the message of site b in round 2."""

    def upload(self, client):
        message = super().upload(client)
        if (client.name, client.round) == ("site_b", 2):
            message[NET] = {key: tensor * 1e9 for key, tensor in message[NET].items()}
        return message


def about(folder, name):
    return read_snapshot(folder / "run/state" / name).about


def test_each_request_names_the_last_fit_that_was_merged(tmp_path, requests) -> None:
    summary = fit(tmp_path, Refused(), rounds=4)
    assert summary["left_out"] == {"site_b": {"StateError": 1}}
    fits = {name: [(r.round, r.after) for r in of_kind(requests, "fit", name)] for name in ("site_a", "site_b")}
    assert fits["site_a"] == [(1, 0), (2, 1), (3, 2), (4, 3)]
    assert fits["site_b"] == [(1, 0), (2, 1), (3, 1), (4, 3)]
    evaluations = [(r.round, r.after) for r in of_kind(requests, "evaluate", "site_b")]
    assert evaluations == [(0, 0), (1, 1), (2, 1), (3, 3), (4, 4)]
    assert about(tmp_path, "round-000004")["after"] == {"site_a": 4, "site_b": 4, "site_c": 4}


def test_a_client_that_is_not_drawn_goes_on_from_its_last_fit(tmp_path, requests) -> None:
    fit(tmp_path, PFedST(), rounds=6, participation=0.34, held_out_sites=["site_c"])
    last = defaultdict(int)
    for name, request in requests:
        if request.kind in ("fit", "evaluate"):
            assert request.after == last[name], (name, request.kind, request.round)
        if request.kind == "fit":
            last[name] = request.round
    assert last.keys() == {"site_a", "site_b", "site_c"}
    assert last["site_c"] == 0
    assert of_kind(requests, "fit", "site_c") == []
    assert sorted(last.values())[1] > 0


def test_fits_behind_all_rounds_that_can_be_resumed_are_pinned(tmp_path, requests) -> None:
    fit(tmp_path, Refused(), rounds=5, keep_states=2)
    pins = {r.round: set(r.pinned) for r in of_kind(requests, "fit", "site_b")}
    best = about(tmp_path, "best")
    for number in range(2, 6):
        merged = {0: 0, 1: 1, 2: 1, 3: 3, 4: 4}
        kept = {merged[number - 1], merged[number - 2]}
        assert kept - {0} <= pins[number], number
    sites = tmp_path / "run/sites"
    for name in ("round-000004", "round-000005", "best"):
        for site, number in about(tmp_path, name)["after"].items():
            if number:
                assert SiteState(sites, site).read(number).about["site"] == site
    assert best["best"] == {"round": best["round"], "after": best["after"]}


@pytest.fixture
def best_is_round_2(monkeypatch) -> None:
    """Whatever the models predict."""

    def score(self):
        return (0.9 if self.round == 2 else 0.3) if self.evaluation else None

    monkeypatch.setattr("pfedst.reporting.summary._Evaluated.score", property(score))


@pytest.mark.usefixtures("best_is_round_2")
def test_the_fit_behind_the_best_round_is_never_dropped(tmp_path) -> None:
    summary = fit(tmp_path, PFedST(), rounds=7, keep_states=1)
    assert summary["best_on_validation"]["round"] == 2
    best = about(tmp_path, "best")
    assert (best["round"], best["after"]) == (2, {"site_a": 2, "site_b": 2, "site_c": 2})
    for name in ("site_a", "site_b", "site_c"):
        state = SiteState(tmp_path / "run/sites", name)
        assert state.numbers() == [2, 5, 6, 7]
        assert state.read(2).about["record"]["images"] > 0
    assert about(tmp_path, "round-000007")["best"] == {"round": 2, "after": best["after"]}


@pytest.mark.usefixtures("best_is_round_2")
def test_a_resumed_run_keeps_the_pins(tmp_path) -> None:
    fit(tmp_path, PFedST(), rounds=4)
    go_on(tmp_path, PFedST(), rounds=8)
    assert SiteState(tmp_path / "run/sites", "site_a").numbers() == [2, 6, 7, 8]
    assert about(tmp_path, "best")["round"] == 2


def test_splits_are_evaluated_after_a_fit_only_in_evaluated_rounds(tmp_path, requests) -> None:
    fit(tmp_path, PFedST(), rounds=5, evaluate_every=3)
    found = {r.round: r.evaluate for r in of_kind(requests, "fit", "site_a")}
    assert [number for number, splits in found.items() if splits] == [3, 5]
    assert found[3] == ("validation", "test")
    assert [r.round for r in of_kind(requests, "evaluate", "site_a")] == [0, 3, 5]


def test_all_requests_of_a_run(tmp_path, requests) -> None:
    fit(tmp_path, PFedST(finetune_epochs=2), rounds=1, optimizer_state="keep")
    assert {request.run for _, request in requests} == {"run"}
    kinds = [request.kind for name, request in requests if name == "site_a"]
    at_the_end = ["cost", "class_metrics", "calibrate"]
    assert kinds == ["prototypes", "evaluate", "fit", "evaluate", "fit", "evaluate", *at_the_end]
    assert [(r.round, r.finetune_epochs) for r in of_kind(requests, "calibrate", "site_b")] == [(1, 2)]
    fits = of_kind(requests, "fit", "site_b")
    assert [(r.round, r.after, r.finetune_epochs, r.keep_optimizer) for r in fits] == [(1, 0, 0, True), (1, 1, 2, True)]
    tuned = of_kind(requests, "evaluate", "site_b")[-1]
    assert (tuned.round, tuned.after) == (1, 2)
    assert of_kind(requests, "cost")[0].after == 1, "the client is as after the last merge"
    for _, request in requests:
        if request.kind not in ("prototypes", "class_metrics", "calibrate"):
            assert set(request.message) == {NET}
            assert request.anchors is not None
    assert about(tmp_path, "round-000001-finetuned")["after"]["site_a"] == 2
    assert about(tmp_path, "round-000001")["after"]["site_a"] == 1


def test_more_rounds_after_fine_tuning_go_on_from_the_merged_fit(tmp_path, requests) -> None:
    fit(tmp_path / "a", FedAvg(finetune_epochs=1), rounds=2)
    requests.clear()
    longer = go_on(tmp_path / "a", FedAvg(finetune_epochs=1), rounds=3)
    fits = of_kind(requests, "fit", "site_a")
    assert [(r.round, r.after, r.finetune_epochs) for r in fits] == [(3, 2, 0), (3, 3, 1)]
    straight = fit(tmp_path / "b", FedAvg(finetune_epochs=1), rounds=3)
    assert longer["personal"] == straight["personal"]


def test_a_pooled_method_asks_its_one_client_and_evaluates_all_sites(tmp_path, requests) -> None:
    fit(tmp_path, Pooled(), rounds=1)
    assert [name for name, r in requests if r.kind == "fit"] == ["pooled"]
    assert [name for name, r in requests if r.kind == "evaluate" and r.round == 1] == ["site_a", "site_b", "site_c"]
    assert about(tmp_path, "round-000001")["after"] == {"site_a": 0, "site_b": 0, "site_c": 0, "pooled": 1}
    assert [path.name for path in (tmp_path / "run/sites").iterdir() if list(path.glob("after-*"))] == ["pooled"]


def test_a_resumed_run_asks_every_client_first_if_it_can_go_on(tmp_path, requests) -> None:
    fit(tmp_path, PFedST(), rounds=1)
    requests.clear()
    go_on(tmp_path, PFedST(), rounds=2)
    first = requests[:3]
    assert [(name, r.kind, r.after, r.evaluate) for name, r in first] == [
        (f"site_{letter}", "evaluate", 1, ()) for letter in "abc"
    ]
    assert requests[3][1].kind == "fit"


def test_flops_that_cannot_be_counted_lose_no_run(tmp_path, monkeypatch, caplog) -> None:
    def refuse(*_):
        raise ZeroDivisionError("no counter")

    monkeypatch.setattr("pfedst.client.client.counted_flops", refuse)
    summary = fit(tmp_path, FedAvg(), rounds=1)
    assert summary["cost"]["flops_per_image"] is None
    assert "FLOPs are not counted" in caplog.text


def test_prototypes_of_a_site_that_fails_end_the_run(tmp_path, monkeypatch) -> None:
    def refuse(*_):
        raise DataError("images are gone")

    monkeypatch.setattr("pfedst.client.client.class_sums", refuse)
    with pytest.raises(DataError, match="images are gone"):
        fit(tmp_path, FedAvg(), rounds=1)


def test_records_and_state_of_a_round_belong_together(tmp_path) -> None:
    fit(tmp_path, PFedST(), rounds=2)
    content = (tmp_path / "run/rounds.jsonl").read_bytes()
    for name, lines in (("round-000001", 6), ("round-000002", 9)):
        mark = about(tmp_path, name)["records"]
        part = content[: mark["bytes"]].splitlines()
        assert len(part) == lines
        assert json.loads(part[-1])["round"] == int(name[-1])


def test_the_servers_tensors_are_saved_once_and_no_others(tmp_path) -> None:
    fit(tmp_path, PFedST(), rounds=1)
    parts = read_snapshot(tmp_path / "run/state/round-000001").parts
    assert list(parts) == ["server"]
    assert set(parts["server"]) <= {"method", "frozen", "anchors"}
    assert not [key for key in parts["server"]["method"][NET] if "lora" in key]
    assert all(isinstance(tensor, torch.Tensor) for tensor in parts["server"]["method"][NET].values())


def test_a_summary_holds_metrics_of_classes_and_a_site_that_cannot_compute_them_is_told(
    tmp_path, monkeypatch, caplog
) -> None:
    load = Predictions.load
    monkeypatch.setattr(
        Predictions, "load", lambda folder, *what: load(folder / "x" if folder.name == "site_b" else folder, *what)
    )
    summary = fit(tmp_path, PFedST(), rounds=1)
    assert list(summary["class_metrics"]) == ["site_a", "site_c"]
    assert "metrics of classes are missing: site site_b: " in caplog.text
    found = summary["class_metrics"]["site_a"]
    assert found["images"] == summary["protocol"]["samples"]["site_a"]["test"]
    assert set(found["personal"][0]) == {"images", "units", "other_units", *CLASS_METRICS}


def test_every_site_with_validation_images_is_calibrated_and_one_that_cannot_is_told(
    tmp_path, monkeypatch, caplog
) -> None:
    load = Predictions.load
    monkeypatch.setattr(
        Predictions, "load", lambda folder, *what: load(folder / "x" if folder.name == "site_b" else folder, *what)
    )
    summary = fit(tmp_path, PFedST(), rounds=1)
    assert list(summary["calibration"]) == ["site_a", "site_c"]
    assert "the model is not calibrated: site site_b: " in caplog.text
    samples = summary["protocol"]["samples"]["site_a"]
    found = summary["calibration"]["site_a"]
    assert (found["images"], found["test"]["images"]) == (samples["validation"], samples["test"])
    assert load_calibration(tmp_path / "run/sites/site_a", 1, finetuned=False).images == samples["validation"]


def test_sites_without_validation_images_are_not_asked(tmp_path, requests) -> None:
    summary = fit(tmp_path, FedAvg(), rounds=1, sites=data(validation_fraction=0))
    assert (summary["calibration"], of_kind(requests, "calibrate")) == ({}, [])
    assert list(tmp_path.rglob("calibration.json")) == []


def test_a_run_that_goes_on_is_calibrated_as_one_that_was_never_interrupted(tmp_path) -> None:
    """With the file of an earlier round in its place; the same bytes by another transport."""
    sites = {"sites": data(samples_per_site=[90, 60, 15], validation_fraction=0.25)}
    fit(tmp_path / "a", PFedST(), rounds=1, **sites)
    files = [f"run/sites/{name}/calibration.json" for name in ("site_a", "site_b")]
    first = [(tmp_path / "a" / file).read_bytes() for file in files]
    longer = go_on(tmp_path / "a", PFedST(), rounds=2, **sites)
    whole = fit(tmp_path / "b", PFedST(), rounds=2, **sites, transport="processes", workers=1, threads=1)
    assert longer["calibration"] == whole["calibration"]
    assert longer["calibration"]["site_a"]["reason"] is None
    for file, before in zip(files, first, strict=True):
        now = (tmp_path / "a" / file).read_bytes()
        assert now == (tmp_path / "b" / file).read_bytes() != before


def records(folder):
    return [json.loads(line) for line in (folder / "run/rounds.jsonl").read_text().splitlines()]


class Away(InProcess):
    """Some sites cannot be evaluated after some rounds."""

    at = (2,)
    names = ("site_b",)
    error: Exception = NoAnswerError("site site_b: not connected")

    def ask(self, requests, started):
        for name, reply in super().ask(requests, started):
            gone = name in self.names and requests[name].kind == "evaluate" and requests[name].round in self.at
            yield name, Fault.of(self.error) if gone else reply


@pytest.fixture
def away(monkeypatch):
    """A function that runs a study in which site b cannot be evaluated after some rounds."""

    def run(folder, *at, names=Away.names, error=Away.error, **options):
        with monkeypatch.context() as patch:
            patch.setattr("pfedst.simulation.InProcess", Away)
            for name, value in {"at": at, "names": names, "error": error}.items():
                patch.setattr(Away, name, value)
            return fit(folder, PFedST(), **options)

    return run


@pytest.mark.parametrize("error", [DataError("images are gone"), ZeroDivisionError("a defect")])
def test_a_site_that_cannot_be_evaluated_is_named_and_excluded(tmp_path, away, caplog, error) -> None:
    summary = away(tmp_path, 1, 2, error=error, rounds=2)
    assert summary["not_evaluated"] == {"site_b": [1, 2]}
    kind = type(error).__name__
    found = [text for text in caplog.messages if "not evaluated" in text]
    assert str(error) in found[0]
    assert found[1] == f"site site_b is not evaluated after round 2, and excluded from its means: {kind}, as before"
    marked = {(r["round"], r["client"]): r["not_evaluated"] for r in records(tmp_path) if "not_evaluated" in r}
    assert marked == {(1, "site_b"): kind, (2, "site_b"): kind}


def test_a_round_in_which_no_site_can_be_evaluated_ends_the_run(tmp_path, away) -> None:
    sites = ("site_a", "site_b", "site_c")
    with pytest.raises(
        NoEvaluationError, match=r"round 2: no site could be evaluated: site_a \(NoAnswerError\), site_b"
    ):
        away(tmp_path, 2, names=sites, rounds=3)
    assert sorted(path.name for path in (tmp_path / "run/state").glob("round-*"))[-1] == "round-000001"
    resumed = go_on(tmp_path, PFedST(), rounds=3)
    assert resumed["personal"] == fit(tmp_path / "whole", PFedST(), rounds=3)["personal"]
    # a site that is held out is in no mean
    with pytest.raises(NoEvaluationError, match="round 0"):
        away(tmp_path / "held_out", 0, names=sites[:2], rounds=1, held_out_sites=["site_c"])


def test_a_site_that_is_away_is_left_out_of_the_means_of_that_round(tmp_path, away, caplog) -> None:
    summary = away(tmp_path, 2, rounds=3)
    assert [(r["round"], r["client"]) for r in records(tmp_path) if "received" not in r] == [(2, "site_b")]
    assert summary["not_evaluated"] == {"site_b": [2]}
    assert "site site_b is not evaluated after round 2" in caplog.text
    assert "site site_b: the model" not in "".join(line for line in caplog.messages if line.startswith("round 2"))
    whole = fit(tmp_path / "whole", PFedST(), rounds=3)
    assert summary["personal"] == whole["personal"]
    assert summary["best_on_validation"]["round"] != 2
    assert "missing  site_b: not evaluated after round 2" in protocol_text(summary).plain
    # resumed after it, too: the records say as much
    longer = go_on(tmp_path, PFedST(), rounds=4)
    assert longer["not_evaluated"] == {"site_b": [2]}
    assert longer["best_on_validation"]["round"] != 2


def test_a_site_may_be_away_at_the_start_and_at_the_end(tmp_path, away) -> None:
    """The numbers of the site are unknown, and the means are those of the others."""
    summary = away(tmp_path, 0, 3, rounds=3)
    whole = fit(tmp_path / "whole", PFedST(), rounds=3)
    assert summary["not_evaluated"] == {"site_b": [0, 3]}
    assert summary["best_on_validation"]["round"] in (1, 2)
    for model in ("personal", "generic"):
        found, expected = summary[model], whole[model]
        assert found["not_evaluated"] == ["site_b"]
        assert set(found["clients"]["site_b"].values()) == {None}
        assert found["clients"]["site_a"] == expected["clients"]["site_a"]
        values = [expected["clients"][site]["balanced_accuracy"] for site in ("site_a", "site_c")]
        assert found["mean"]["balanced_accuracy"] == pytest.approx(sum(values) / 2, abs=1e-12)
    assert list(summary["class_metrics"]) == ["site_a", "site_c"]
    compared = load_compared([tmp_path / "run"])
    assert "PFedST, seed 0: site_b could not be evaluated, and is in no mean of this run" in compared.notes
    assert [cell.text for cell in make_report(compared, "balanced_accuracy").tables[0].rows[0]][2] == "-"
    rows = [row.strip() for row in metrics_table(summary).columns[0].cells]
    assert "site_b (not evaluated)" in rows
    # round 0 without this site is in the records, and a run continues from them
    longer = go_on(tmp_path, PFedST(), rounds=4)
    assert longer["not_evaluated"] == {"site_b": [0, 3]}
    assert longer["personal"] == fit(tmp_path / "longer", PFedST(), rounds=4)["personal"]


def test_a_site_that_is_away_when_a_run_is_resumed_ends_nothing(tmp_path, away, monkeypatch) -> None:
    """`Request.round` is 0 in the request that only asks whether a site can read its state."""
    fit(tmp_path, PFedST(), rounds=1)
    monkeypatch.setattr("pfedst.simulation.InProcess", Away)
    monkeypatch.setattr(Away, "at", (0,))
    assert go_on(tmp_path, PFedST(), rounds=2).get("not_evaluated") is None


def test_callbacks_that_monitor_a_metric_skip_a_round_without_a_site(tmp_path, away) -> None:
    """Means over other sites cannot be compared; callbacks that monitor nothing see all rounds."""
    seen = {"monitors": [], "watches": []}

    class Sees(Callback):
        def __init__(self, name, monitor=None) -> None:
            self.name = name
            if monitor:
                self.monitor = monitor

        def on_validation_end(self, trainer, model) -> None:
            seen[self.name].append(trainer.global_step)

    callbacks = [Sees("monitors", "client/site_b/validation/accuracy"), Sees("watches")]
    away(tmp_path, 2, rounds=3, trainer_options={"callbacks": callbacks})
    assert seen == {"monitors": [1, 3], "watches": [1, 2, 3]}
