"""The priors of a federation: a mixture by hand, what is saved and sent, and when a correction is refused."""

import copy
import json

import pytest
import torch
from pfedst_baselines.fedavg import FedAvg
from pfedst_baselines.local import Local
from pfedst_baselines.pooled import Pooled

from pfedst.client.exchange import start_maker
from pfedst.errors import ConfigurationError, StateError
from pfedst.messages.requests import PRIORS, Reply
from pfedst.methods.criteria import BalancedSoftmax, CrossEntropy, Focal
from pfedst.reporting.records import check_records
from pfedst.server.agreement import check_prior
from pfedst.server.priors import FederationPriors
from pfedst.server.replies import CheckedTransport
from pfedst.server.server import Server
from pfedst.state.snapshot import read_snapshot
from pfedst.testing.small import data, fit, prepared, template
from pfedst.transport.in_process import InProcess
from tests.client.clients import client_of, server_of
from tests.server.runs import go_on, left, same

COUNTS = {
    "a": {"natural": [7, 1], "sampled": [3, 3]},
    "b": {"natural": [1, 3], "sampled": [1, 3]},
}


def test_the_mixture_by_hand() -> None:
    """With the pseudo-count 1: natural (8, 2) / 10 and (2, 4) / 6, sampled (4, 4) / 8 and (2, 4) / 6; weights 3 : 1."""
    found = FederationPriors.of(CrossEntropy(), True, 2, {"a": 6.0, "b": 2.0}, COUNTS)
    assert found.federation.tolist() == pytest.approx([0.75 * 0.8 + 0.25 / 3, 0.75 * 0.2 + 0.25 * 2 / 3])
    assert found.merged.tolist() == pytest.approx([0.75 * 0.5 + 0.25 / 3, 0.75 * 0.5 + 0.25 * 2 / 3])


def test_the_mixture_is_of_the_effective_priors_of_the_loss() -> None:
    """Of tau 0.5: frequencies proportional to the square root."""
    loss = BalancedSoftmax(0.5, pseudo_count=2.0)
    found = FederationPriors.of(loss, True, 2, {"a": 1.0}, {"a": {"natural": [7, 2], "sampled": [7, 2]}})
    assert found.merged.tolist() == pytest.approx([3 / 5, 2 / 5])  # of 9 and 4
    assert found.federation.tolist() == pytest.approx([9 / 13, 4 / 13])


def test_where_nothing_is_known_there_is_none() -> None:
    assert FederationPriors.of(CrossEntropy(), True, 2, {"a": 1.0}, {}) == FederationPriors()
    assert FederationPriors.of(CrossEntropy(), True, 2, {"a": 1.0}, {"b": COUNTS["b"]}) == FederationPriors()
    for loss, uses in ((Focal(), True), (CrossEntropy(), False)):
        found = FederationPriors.of(loss, uses, 2, {"a": 1.0}, COUNTS)
        assert found.merged is None
        assert found.federation is not None


def test_a_uniform_prior_needs_no_counts() -> None:
    """By the loss, or by a sampler at all sites that train; the loss must have a prior at all."""
    weights = {"a": 1.0, "b": 3.0}
    by_loss = FederationPriors.of(BalancedSoftmax(), True, 2, weights, {})
    by_sampler = FederationPriors.of(CrossEntropy(), True, 2, weights, {}, balanced=["a", "b", "c"])
    assert by_loss.merged.tolist() == by_sampler.merged.tolist() == [0.5, 0.5]
    assert by_loss.federation is by_sampler.federation is None
    assert FederationPriors.of(CrossEntropy(), True, 2, weights, {}, balanced=["a"]) == FederationPriors()
    assert FederationPriors.of(Focal(), True, 2, weights, {}, balanced=["a", "b"]) == FederationPriors()
    assert FederationPriors.of(BalancedSoftmax(), False, 2, weights, {}) == FederationPriors()


def test_what_a_request_carries() -> None:
    known = FederationPriors.of(CrossEntropy(), True, 2, {"a": 1.0, "b": 1.0}, COUNTS)
    sent = known.parts(2, is_trained=True)
    assert torch.equal(sent["merged"], known.merged)
    assert torch.equal(sent["federation"], known.federation)
    assert known.parts(2, is_trained=False)["merged"].tolist() == [0.5, 0.5]
    assert FederationPriors().parts(2, is_trained=True) == {}


def test_what_is_saved_is_read_again() -> None:
    known = FederationPriors.of(CrossEntropy(), True, 2, {"a": 1.0, "b": 1.0}, COUNTS)
    found = FederationPriors.from_about(json.loads(json.dumps(known.about())), 2)
    assert torch.equal(found.merged, known.merged)
    assert torch.equal(found.federation, known.federation)
    assert FederationPriors().about() == {}
    assert FederationPriors.from_about({"after": {}}, 2) == FederationPriors()  # of a run before this was saved


@pytest.mark.parametrize("value", [[0.5], [0.5, 0.5, 0.0], [1, 0], [0.5, 0.6], ["0.5", 0.5], 3, [0.5, float("nan")]])
def test_forged_priors_are_refused(value) -> None:
    with pytest.raises(StateError, match='no class prior under "merged"'):
        FederationPriors.from_about({"priors": {"merged": value}}, 2)
    with pytest.raises(StateError, match="no class priors where they belong"):
        FederationPriors.from_about({"priors": [value]}, 2)


def server(method, loss=None, counts=None, held_out=()):
    model = template(method, loss=loss).build(["x", "y"], method, 0).model
    return Server(method, {"a": 6, "b": 2}, start_maker(model), 0, held_out, counts)


@pytest.mark.parametrize(
    ("options", "weights"),
    [({"weighting": "samples"}, [0.75, 0.25]), ({}, [0.5, 0.5]), ({"merge_rule": "median"}, [0.5, 0.5])],
)
def test_sites_weigh_as_in_the_merge(options, weights) -> None:
    found = server(FedAvg(**options), counts=COUNTS).priors.federation
    assert float(found[0]) == pytest.approx(weights[0] * 0.8 + weights[1] / 3)


def test_a_site_that_is_held_out_is_in_no_mixture() -> None:
    assert server(FedAvg(), counts=COUNTS, held_out=["b"]).priors.federation.tolist() == pytest.approx([0.8, 0.2])


def hello(prior):
    return {"a": Reply({"protocol": {"prior": prior} if prior else {}})}


@pytest.mark.parametrize(
    ("method", "loss", "counts"),
    [
        (FedAvg(), None, COUNTS),
        (FedAvg(), BalancedSoftmax(), None),
        (Local(), None, None),
        (Pooled(), None, None),
    ],
)
def test_a_correction_is_accepted_where_all_priors_are_known(method, loss, counts) -> None:
    check_prior(server(method, loss, counts), hello("site: x"))


@pytest.mark.parametrize("loss", [None, BalancedSoftmax(0.5)])
def test_a_correction_is_refused_where_the_prior_of_the_merged_model_is_not_known(loss) -> None:
    check_prior(server(FedAvg(), loss), hello(""))
    with pytest.raises(ConfigurationError, match="add --coordinator.share_class_counts true.*BalancedSoftmax"):
        check_prior(server(FedAvg(), loss), hello("site: x"))


def test_a_site_sends_its_class_counts_only_if_it_shares_them(tmp_path) -> None:
    client = client_of(FedAvg(), tmp_path)
    assert all(
        "class_counts" not in reply.values for reply in CheckedTransport(InProcess(client)).hello("run").values()
    )
    client.shares_class_counts = True
    for name, reply in CheckedTransport(InProcess(client)).hello("run").items():
        counts = client.data.class_counts(name, "train")
        assert reply.values["class_counts"] == {"natural": counts, "sampled": counts}
    assert PRIORS not in server_of(client).parts_for("site_a")


def test_a_site_says_that_its_sampler_shows_all_classes_equally_often(tmp_path, monkeypatch) -> None:
    """It says so without its counts, and not where it has no image of a class."""
    for number, (sampler, natural, told) in enumerate(
        (("class_balanced", [3, 6, 9], True), ("class_balanced", [0, 9, 9], None), ("shuffle", [6, 6, 6], None))
    ):
        client = client_of(FedAvg(), tmp_path / str(number), data=prepared(sampler=sampler))
        monkeypatch.setattr(client.data, "class_counts", lambda site, split, found=natural: found)
        values = client.answer("site_a", _hello()).values
        assert values.get("balanced_sampling") is told
        assert "class_counts" not in values


def test_with_a_balanced_sampler_a_merged_model_has_learned_equal_frequencies(tmp_path) -> None:
    sites = {"label_skew": 100.0, "sampler": "class_balanced"}
    method = FedAvg()
    summary = fit(tmp_path, method, sites=data(**sites), model=template(method, prior="balanced"), rounds=1)
    assert all(min(data_counts) > 0 for data_counts in _counts(sites))
    balanced = summary["at_priors"]["last"]["test"]["personal"]["balanced"]["mean"]["balanced_accuracy"]
    assert balanced == pytest.approx(summary["personal"]["mean"]["balanced_accuracy"])


def _counts(options):
    sites = prepared(**options)
    return [sites.class_counts(site, "train") for site in sites.sites]


@pytest.mark.parametrize(
    "forged",
    [
        {"natural": [1, 2]},
        {"natural": [1, 2, 3], "sampled": [1, 2, 3]},
        {"natural": [9, 9, -1], "sampled": [1, 2, 3]},
        {"natural": "abc", "sampled": [1, 2, 3]},
        [1, 2, 3],
    ],
)
def test_forged_class_counts_are_refused(tmp_path, forged) -> None:
    client = client_of(FedAvg(), tmp_path)
    values = client._hello("site_a", None).values | {"class_counts": forged}

    class Forged:
        def hello(self, run):
            return {"site_a": Reply(values)}

    with pytest.raises(StateError, match='client site_a: "class_counts" are not those of'):
        CheckedTransport(Forged()).hello("run")


def test_sites_must_agree_in_the_content_of_a_file(tmp_path) -> None:
    from pfedst.server.agreement import check_hellos

    client = client_of(FedAvg(), tmp_path)
    hellos = {name: copy.deepcopy(client.answer(name, _hello())) for name in client.data.sites}
    hellos["site_b"].values["protocol"]["prior"] = "clinic.json: x 0.5"
    with pytest.raises(ConfigurationError, match="site site_b has another --model.prior than others"):
        check_hellos(hellos, None)


def _hello():
    from pfedst.messages.requests import Request

    return Request("hello", "run")


def test_a_run_that_is_continued_has_the_same_records_and_the_saved_mixture(tmp_path) -> None:
    """With the same numbers at stated priors, of round 0 too."""
    options = {"share_class_counts": True}
    whole = fit(tmp_path / "whole", FedAvg(), sites=data(label_skew=0.6), rounds=2, **options)
    fit(tmp_path / "parts", FedAvg(), sites=data(label_skew=0.6), rounds=1, **options)
    continued = go_on(tmp_path / "parts", FedAvg(), sites=data(label_skew=0.6), rounds=2, **options)
    same(left(tmp_path / "whole"), left(tmp_path / "parts"))
    assert continued["at_priors"] == whole["at_priors"]
    assert whole["at_priors"]["first"]["round"] == 0
    about = read_snapshot(tmp_path / "whole/run/state/round-000002").about
    assert sum(about["priors"]["merged"]) == pytest.approx(1)


def test_records_hold_the_numbers_of_every_evaluated_round_and_forged_ones_are_found(tmp_path) -> None:
    summary = fit(tmp_path, FedAvg(), sites=data(label_skew=0.6), rounds=1, share_class_counts=True)
    file = tmp_path / "run/rounds.jsonl"
    records = [json.loads(line) for line in file.read_text().splitlines()]
    samples = summary["protocol"]["samples"]
    members = list(samples)
    check_records(file, records, members, samples, 1)
    for record in records:
        for split in ("validation", "test"):
            for model in ("personal", "generic"):
                assert set(record["at_priors"][split][model]) == {"balanced", "site", "federation"}
    old = [{key: value for key, value in record.items() if key != "at_priors"} for record in records]
    check_records(file, old, members, samples, 1)  # of a run before this was computed
    for wrong in ({"site": {"accuracy": 1.0}}, {"balanced": 3, "site": {}}, "x", {"balanced": {"reason": "x"}}):
        forged = copy.deepcopy(records)
        forged[4]["at_priors"]["test"]["personal"] = wrong
        with pytest.raises(StateError, match='line 5: "at_priors" holds no metrics of test, personal'):
            check_records(file, forged, members, samples, 1)
