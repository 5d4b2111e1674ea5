"""Merge rules where a client is hostile, and what may leave a client whatever its plugin does."""

import json
from functools import cache, partial

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pfedst_baselines.feddyn import FedDyn
from pfedst_baselines.scaffold import SCAFFOLD

from pfedst.client.exchange import make_upload, receive_message
from pfedst.errors import ConfigurationError, StateError
from pfedst.messages.payload import NET
from pfedst.methods.interface import FederatedMethod
from pfedst.methods.merging import clipped_mean, trimmed_mean, weighted_mean
from pfedst.methods.pfedst import PFedST
from pfedst.server.screening import change_norm, outliers
from pfedst.testing.small import data, federation, fit, template, train


def few_images():
    """Three sites of a batch or two, where nothing depends on how many images there are."""
    return data(samples_per_site=[10, 9, 8], test_samples_per_site=[6, 6, 6])


@cache
def one_site():
    """The data of one site, for what one client sends."""
    return data(sites=1, samples_per_site=[10], test_samples_per_site=[6])


# -- merge rules, against what was computed by hand --------------------------------------------------------------------


def states(*values):
    return [{"w": torch.tensor(value)} for value in values]


@pytest.mark.parametrize(
    ("trim", "values", "mean"),
    [
        (0.0, [1.0, 2.0, 9.0], 4.0),
        (0.2, [1.0, 2.0, 3.0, 4.0, 100.0], 3.0),  # one at each end
        (0.2, [-100.0, 2.0, 3.0, 5.0, 100.0, 7.0], 4.0),  # 1.2 of 6: two at each end, (3 + 5) / 2
        (0.1, [1.0, 2.0, 6.0], 2.0),
        (0.5, [1.0, 2.0, 3.0, 90.0], 2.5),  # the median of an even number
        (0.5, [90.0, 1.0, 3.0], 3.0),
        (0.5, [5.0], 5.0),
        (0.3, [5.0, 7.0], 6.0),
    ],
)
def test_trimmed_mean_by_hand(trim, values, mean) -> None:
    assert trimmed_mean(states(*values), trim)["w"].item() == pytest.approx(mean)


def test_a_trimmed_mean_looks_at_each_number_by_itself_and_keeps_dtypes() -> None:
    given = [
        {"w": torch.tensor([1.0, 9.0]), "n": torch.tensor(3)},
        {"w": torch.tensor([2.0, 1.0]), "n": torch.tensor(4)},
        {"w": torch.tensor([9.0, 2.0]), "n": torch.tensor(100)},
    ]
    merged = trimmed_mean(given, 0.5)
    assert merged["w"].tolist() == [2.0, 2.0]
    assert merged["n"].item() == 4
    assert (merged["w"].dtype, merged["n"].dtype) == (torch.float32, torch.int64)


def test_clipped_mean_by_hand() -> None:
    around = {"w": torch.tensor([1.0, 1.0])}
    given = states([1.0, 2.0], [1.0, 3.0], [101.0, 1.0])  # changes of length 1, 2 and 100: no longer than 2
    merged = clipped_mean(given, [1, 1, 2], around)["w"]
    torch.testing.assert_close(merged, torch.tensor([1 + 2 * 2 / 4, 1 + (1 + 2) / 4]))
    changes = states([0.0, 1.0], [0.0, 2.0], [100.0, 0.0])
    torch.testing.assert_close(clipped_mean(changes, [1, 1, 2])["w"], torch.tensor([1.0, 0.75]))


def test_integers_of_a_clipped_mean_are_as_of_a_mean() -> None:
    given = [{"w": torch.ones(2), "n": torch.tensor(n)} for n in (1, 2, 6)]
    assert clipped_mean(given, [1, 1, 1], {"w": torch.zeros(2), "n": torch.tensor(0)})["n"].item() == 3


@pytest.mark.parametrize("merge", [lambda s: trimmed_mean(s, 0.2), lambda s: clipped_mean(s, [1] * len(s))])
@pytest.mark.parametrize("given", [[], [{"a": torch.ones(1)}, {"b": torch.ones(1)}]], ids=["none", "other keys"])
def test_what_cannot_be_merged_is_told(merge, given) -> None:
    with pytest.raises(StateError):
        merge(given)


floats = st.floats(-1e3, 1e3, width=32)


@given(st.lists(floats, min_size=3, max_size=9), st.lists(st.floats(-(2.0**100), 2.0**100, width=32), max_size=4))
def test_a_trimmed_mean_lies_among_the_honest(honest, hostile) -> None:
    """As long as the hostile are no more than the share that is trimmed (Yin et al. 2018)."""
    share = len(hostile) / (len(honest) + len(hostile))
    if 2 * len(hostile) >= len(honest) + len(hostile):
        return
    merged = trimmed_mean(states(*honest, *hostile), share)["w"].item()
    assert min(honest) - 1e-3 <= merged <= max(honest) + 1e-3
    median = trimmed_mean(states(*honest, *hostile), 0.5)["w"].item()
    assert min(honest) - 1e-3 <= median <= max(honest) + 1e-3


@given(st.lists(st.lists(floats, min_size=2, max_size=2), min_size=3, max_size=7), st.floats(1, 1e6))
def test_one_client_moves_a_clipped_mean_no_further_than_another(changes, factor) -> None:
    around = {"w": torch.zeros(2)}
    weights = [1] * len(changes)
    norms = sorted(torch.tensor(change).norm().item() for change in changes)
    merged = clipped_mean(states(*changes), weights, around)["w"]
    loud = clipped_mean(states([factor * x for x in changes[0]], *changes[1:]), weights, around)["w"]
    assert (merged - loud).norm() <= 2 * max(norms) + 1e-2


@given(st.lists(floats, min_size=1, max_size=6))
def test_equal_states_are_what_every_rule_gives(values) -> None:
    state = {"w": torch.tensor(values)}
    for merged in (trimmed_mean([state] * 4, 0.2), trimmed_mean([state] * 3, 0.5)):
        assert torch.equal(merged["w"], state["w"])
    torch.testing.assert_close(
        clipped_mean([state] * 4, [1, 2, 3, 4], {"w": torch.zeros(len(values))})["w"], state["w"]
    )


@pytest.mark.parametrize("method", [PFedST, SCAFFOLD, FedDyn])
@pytest.mark.parametrize("rule", ["median", "trimmed_mean", "clipped_mean"])
def test_every_rule_goes_with_every_merge(tmp_path, method, rule) -> None:
    summary = fit(tmp_path, method(merge_rule=rule), sites=few_images(), rounds=2, evaluate_every=2)
    assert summary["protocol"]["method_options"]["merge_rule"] == rule
    assert summary["left_out"] == {}


def test_the_rule_is_what_merges() -> None:
    for rule, merge in (
        ("mean", lambda sent, weights, net: weighted_mean(sent, weights)),
        ("median", lambda sent, weights, net: trimmed_mean(sent, 0.5)),
        ("trimmed_mean", lambda sent, weights, net: trimmed_mean(sent, 0.2)),
        ("clipped_mean", clipped_mean),
    ):
        made = federation(PFedST(merge_rule=rule), sites=few_images())
        for name in made.clients:
            made.deliver(name)
            train(made, name)
        sent = [made.collect(name)[NET] for name in made.clients]
        expected = merge(sent, list(made.server.weights.values()), made.state[NET])
        made.merge({name: made.collect(name) for name in made.clients})
        assert all(torch.equal(tensor, expected[key]) for key, tensor in made.state[NET].items()), rule


class Ring(FederatedMethod):
    sequential = True


@pytest.mark.parametrize("options", [{"trim": -0.1}, {"trim": 0.51}, {"trim": float("nan")}])
def test_options_of_rules(options) -> None:
    with pytest.raises(ConfigurationError, match="--method.trim.*must be in"):
        PFedST(merge_rule="trimmed_mean", **options)
    assert PFedST(merge_rule="trimmed_mean", trim=0.1).trim == 0.1
    with pytest.raises(ConfigurationError, match="--method.trim 0.1 of PFedST: has no effect with merge_rule median"):
        PFedST(merge_rule="median", trim=0.1)
    with pytest.raises(ConfigurationError, match="--method.merge_rule median of Ring"):
        Ring(merge_rule="median")


# -- comparing messages ------------------------------------------------------------------------------------------------


def messages(**values):
    return {name: {NET: {"w": torch.tensor(value)}} for name, value in values.items()}


ZERO = {name: {NET: {"w": torch.zeros(2)}} for name in "abcd"}


@pytest.mark.parametrize(
    ("given", "odd"),
    [
        (messages(a=[1.0, 0.0], b=[2.0, 0.0], c=[0.0, 9.0]), []),
        (messages(a=[1.0, 0.0], b=[2.0, 0.0], c=[0.0, 21.0]), ["c"]),  # more than ten times the median of 2
        (messages(a=[1.0, 0.0], c=[0.0, 1e9]), []),  # nobody can say which one is odd
        (messages(a=[1.0, 0.0], b=[2.0], c=[0.0, 1.0]), ["b"]),
        (messages(a=[0.0, 0.0], b=[0.0, 0.0], c=[0.0, 1.0]), []),
    ],
    ids=["alike", "long", "two", "shape", "median of zero"],
)
def test_outliers(given, odd) -> None:
    assert sorted(outliers(given, ZERO, 10.0)) == odd
    assert sorted(outliers(given, ZERO, None)) == [name for name in odd if given[name][NET]["w"].numel() == 1]


def test_of_few_messages_one_that_changes_all_beyond_measure_is_odd() -> None:
    """Where most clients are gone, no other says what is usual; merged once, it would spoil the run for good."""
    received = {name: {NET: {"w": torch.tensor([3.0, 4.0])}} for name in "abc"}
    alone = messages(a=[3e9, 4e9])
    assert sorted(outliers(alone, received, 1000.0)) == ["a"]
    assert "times that of what it received" in str(outliers(alone, received, 1000.0)["a"])
    assert not outliers(alone, received, None)
    assert not outliers(messages(a=[4e3, 0.0]), received, 1000.0)
    most_are_odd = messages(a=[3e9, 4e9], b=[3e9, 4e9], c=[3.0, 5.0])
    assert sorted(outliers(most_are_odd, received, 1000.0)) == ["a", "b"]


def test_the_norm_is_of_what_changed() -> None:
    message = {NET: {"w": torch.tensor([4.0, 1.0]), "n": torch.tensor(99)}, "control": {"c": torch.tensor([12.0])}}
    received = {NET: {"w": torch.tensor([1.0, 1.0]), "n": torch.tensor(0)}}
    assert change_norm(message, received) == pytest.approx((9 + 144) ** 0.5)


# -- what may leave a client -------------------------------------------------------------------------------------------


class Hostile(PFedST):
    """Shares what `rules` say and sends whatever `smuggle` makes of its client."""

    rules: tuple = (("*", "shared"),)
    extra_messages = ("declared",)

    @staticmethod
    def smuggle(client, message):
        return message

    def partition(self, client):
        return self.rules

    def upload(self, client):
        return self.smuggle(client, super().upload(client))


def personal_key(client):
    return client.partition.keys("personal")[0]


class Carrier(torch.Tensor):
    """A tensor with something in its pocket."""


def carrying(tensor):
    carrier = tensor.detach().clone().as_subclass(Carrier)
    carrier.patients = ["4711"]
    return carrier


def first_of(message, value):
    key = next(iter(message[NET]))
    return {NET: message[NET] | {key: value(message[NET][key])}}


SMUGGLE = {
    "a personal tensor": lambda c, m: {NET: m[NET] | {personal_key(c): c.adapter.state_dict()[personal_key(c)]}},
    "all it has": lambda c, m: {NET: c.adapter.state_dict()},
    "under another name": lambda c, m: m | {"mine": {personal_key(c): c.adapter.state_dict()[personal_key(c)]}},
    "memo": lambda c, m: m | {"memo": c.memo},
    "text": lambda c, m: m | {"declared": {"patients": ["4711"]}},
    "text as a part": lambda c, m: m | {"declared": "4711"},
    "a tensor with attributes": lambda c, m: first_of(m, carrying),
    "declared with attributes": lambda c, m: m | {"declared": {"x": carrying(torch.ones(2))}},
    "a key that is no text": lambda c, m: m | {"declared": {4711: torch.ones(1)}},
    "a part that is no text": lambda c, m: m | {4711: {"x": torch.ones(1)}},
    "sparse": lambda c, m: m | {"declared": {"x": torch.eye(3).to_sparse()}},
    "meta": lambda c, m: m | {"declared": {"x": torch.empty(2, device="meta")}},
    "images": lambda c, m: m | {"images": {"x": torch.ones(3, 8, 8)}},
    "an encoder's weight": lambda c, m: {NET: m[NET] | {"encoder.w": next(c.encoder.tower.parameters()).detach()}},
    "nothing": lambda c, m: None,
    "no model": lambda c, m: {"declared": {"x": torch.ones(1)}},
    "no model at all": lambda c, m: {},
    "a model within a model": lambda c, m: {NET: {NET: m[NET]}},
    "a longer row": lambda c, m: first_of(m, lambda tensor: torch.cat([tensor, tensor])),
    "another dtype": lambda c, m: first_of(m, lambda tensor: tensor.half()),
    "complex numbers": lambda c, m: first_of(m, lambda tensor: tensor.to(torch.complex64)),
    "infinite": lambda c, m: first_of(m, lambda tensor: tensor + float("inf")),
}


@pytest.mark.parametrize("name", SMUGGLE)
def test_nothing_undeclared_can_be_sent_or_is_taken(name) -> None:
    class Smuggler(Hostile):
        rules = (("*.lora_[AB]", "personal"), ("*", "shared"))
        smuggle = staticmethod(SMUGGLE[name])

    made = federation(Smuggler(), sites=one_site())
    made.deliver("site_a")
    model = made.clients["site_a"]
    with pytest.raises(StateError, match="the message from client site_a"):
        make_upload(model, made.method)
    with pytest.raises(StateError, match="the message from client site_a"):  # of a client that checks nothing
        made.server.check_upload("site_a", made.method.upload(model))


def test_a_message_of_the_server_is_checked_at_both_ends_too() -> None:
    class Sends(Hostile):
        def broadcast(self, server, name):
            return super().broadcast(server, name) | {"x": {"y": torch.ones(1)}}

    made = federation(Sends(), sites=one_site())
    with pytest.raises(StateError, match=r"the message to client site_a: .*\['x'\]"):
        made.server.message_to("site_a")
    with pytest.raises(StateError, match=r"the message to client site_a: .*\['x'\]"):
        receive_message(made.clients["site_a"], made.method, made.method.broadcast(made.state, "site_a"))
    for message in ({}, {"declared": {}}):
        with pytest.raises(StateError, match='has no part "net"'):
            receive_message(made.clients["site_a"], made.method, message)


def test_what_is_sent_has_no_memory_but_its_own() -> None:
    """A view of a large tensor would take the whole of it along to whoever saves it."""

    class Views(Hostile):
        @staticmethod
        def smuggle(client, message):
            all_of_it = torch.cat([tensor.flatten() for tensor in client.own_tensors().values()])
            return {NET: message[NET], "declared": {"x": all_of_it[:3], "y": all_of_it[4:5].expand(7)}}

    made = federation(Views(), sites=one_site())
    made.deliver("site_a")
    for state in made.collect("site_a").values():
        for key, tensor in state.items():
            assert tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size(), key


@cache
def adapter_keys():
    return list(federation(PFedST()).generic.adapter.state_dict())


KINDS = st.sampled_from(["shared", "personal", "frozen"])


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_what_leaves_is_what_was_declared_shared_whatever_the_partition(draw) -> None:
    """Any partition of the adapter's keys: what is sent are the shared keys and their values, and no others."""
    keys = adapter_keys()
    kinds = draw.draw(st.lists(KINDS, min_size=len(keys), max_size=len(keys)))

    class Random(Hostile):
        rules = tuple(zip(keys, kinds, strict=True))

    made = federation(Random(), sites=one_site())
    client = made.clients["site_a"]
    made.deliver("site_a")
    sent = made.collect("site_a")
    assert list(sent) == [NET]
    shared = {key for key, kind in zip(keys, kinds, strict=True) if kind == "shared"}
    assert set(sent[NET]) == shared
    assert all(torch.equal(tensor, client.adapter.state_dict()[key]) for key, tensor in sent[NET].items())
    wanted = draw.draw(st.sampled_from(keys))
    if wanted not in shared:
        Random.smuggle = staticmethod(lambda c, m: {NET: m[NET] | {wanted: c.adapter.state_dict()[wanted]}})
        with pytest.raises(StateError, match="unexpected"):
            made.collect("site_a")


# -- attackers over rounds ---------------------------------------------------------------------------------------------


class Attacked(PFedST):
    """One site of six sends ten times the opposite of what it learned."""

    def upload(self, client):
        message = super().upload(client)
        if client.name != "site_a" or not self.attack:
            return message
        sent = client.received[NET]
        return {NET: {key: sent[key] - 10 * (tensor - sent[key]) for key, tensor in message[NET].items()}}

    attack = True


class Honest(Attacked):
    attack = False


def accuracy(folder, method):
    sites = data(sites=6, samples_per_site=[24] * 6, test_samples_per_site=[40] * 6)
    model = template(method, optimizer=partial(torch.optim.AdamW, lr=1e-3))
    summary = fit(folder, method, sites=sites, model=model, rounds=6, evaluate_every=6, optimizer_state="reset")
    assert summary["left_out"] == {}
    clients = summary["generic"]["clients"]
    return sum(clients[f"site_{x}"]["balanced_accuracy"] for x in "bcdef") / 5


def test_one_attacker_of_six_does_not_move_a_trimmed_mean(tmp_path) -> None:
    """Mean accuracy of the honest sites; the long form, with more rounds and attacks, is benchmarks/faults.py."""
    undisturbed = accuracy(tmp_path / "honest", Honest())
    found = {
        rule: accuracy(tmp_path / rule, Attacked(merge_rule=rule))
        for rule in ("mean", "median", "trimmed_mean", "clipped_mean")
    }
    assert found["mean"] < undisturbed - 0.1
    assert min(found["median"], found["trimmed_mean"], found["clipped_mean"]) > undisturbed - 0.1


def test_the_records_of_a_run_hold_no_name_of_a_file(tmp_path) -> None:
    fit(tmp_path, PFedST(), sites=few_images())
    records = [json.loads(line) for line in (tmp_path / "run/rounds.jsonl").read_text().splitlines()]
    allowed = {"round", "client", "participated", "setup_upload_bytes", "train_loss", "skipped_steps", "fit_seconds"}
    allowed |= {"peak_memory_bytes", "trained", "received", "counts", "images", "upload_bytes", "download_bytes"}
    allowed |= {"at_priors"}
    assert {key for record in records for key in record} <= allowed
