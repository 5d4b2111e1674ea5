"""Clients that send whatever they like: the server leaves them out, or ends the run with one clear error.

The clients here check nothing: replies are changed on their way to the server. Single replies are in
tests/server/test_replies.py; here are whole runs.
"""

import json
import random
from contextlib import contextmanager

import pytest
import torch
from pfedst_baselines.fedavg import FedAvg
from pfedst_baselines.scaffold import SCAFFOLD

from pfedst.client.client import Client
from pfedst.errors import NoAnswerError, PfedstError, StateError
from pfedst.messages.payload import NET
from pfedst.messages.requests import PROTOTYPES, Reply
from pfedst.methods.pfedst import PFedST
from pfedst.testing import small
from pfedst.testing.small import data
from pfedst.transport.in_process import InProcess
from tests.faults.runs_that_stop import BAD, copies_of_one_round, without_the_bad
from tests.server import runs
from tests.server.runs import left, same, without_times

ROUNDS = 2
"""What is left after the round of the forged reply says how a run goes on; tests/faults/test_clients.py goes on."""
NAN = float("nan")


def few_images():
    """Three sites of a batch or two: what is forged does not depend on how many images there are."""
    return data(samples_per_site=[10, 9, 8], test_samples_per_site=[6, 6, 6])


def fit(folder, method, **coordinator):
    return small.fit(folder, method, sites=few_images(), **coordinator)


def go_on(folder, method, **coordinator):
    return runs.go_on(folder, method, sites=few_images(), **coordinator)


@pytest.fixture(autouse=True, scope="module")
def flops_counted_once():
    """The FLOPs of a method are counted in the first run with it: in all others they are the same."""
    count, counted = Client._cost, {}

    def once(self, name, request):
        method = type(self.method)
        if method not in counted:
            counted[method] = count(self, name, request)
        return counted[method]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Client, "_cost", once)
        yield


@contextmanager
def forged(change, is_forged):
    """Within this block replies are changed on their way to the server.

    Args:
        change: reply -> what arrives in its place.
        is_forged: client, request -> whether its reply is changed.
    """
    ask = InProcess.ask

    def changing(self, requests, started):
        for client, reply in ask(self, requests, started):
            yield client, change(reply) if is_forged(client, requests[client]) else reply

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(InProcess, "ask", changing)
        yield


def of_bad(kind):
    """The reply of the bad client in its round; a request for no split only asks if the client can continue."""
    return lambda client, request: (request.kind, client, request.round) == (kind, *BAD) and request.evaluate != ()


@pytest.fixture(scope="module")
def absent_once(tmp_path_factory):
    """A run in which the bad client is not drawn in its round."""
    folder = tmp_path_factory.mktemp("absent")
    with without_the_bad():
        return folder, fit(folder, PFedST(), rounds=ROUNDS)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run in which nothing is forged."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, fit(folder, PFedST(), rounds=ROUNDS)


@pytest.fixture(scope="module")
def after_one_round(tmp_path_factory):
    """Gives a run of a method to go on with after its first round, run once and copied."""
    return copies_of_one_round(tmp_path_factory.mktemp, fit)


def nested(depth):
    value = []
    for _ in range(depth):
        value = [value]
    return value


def changed(values, path, value):
    """A copy of nested dicts with one entry changed, added, or removed for `...`."""
    key, *rest = path
    if rest:
        return values | {key: changed(values[key], rest, value)}
    if value is ...:
        return {name: kept for name, kept in values.items() if name != key}
    return values | {key: value}


def values_with(path, value):
    return lambda reply: Reply(changed(reply.values, path, value), reply.parts)


def record_with(key, value):
    return values_with(("record", key), value)


def trained_with(value, *path):
    return values_with(("record", "trained", *path), value)


def parts_with(change):
    return lambda reply: Reply(reply.values, change(dict(reply.parts)))


def net_with(value):
    def change(parts):
        key = next(iter(parts[NET]))
        return parts | {NET: parts[NET] | {key: value(parts[NET][key])}}

    return parts_with(change)


class Carrier(torch.Tensor):
    """A tensor with something in its pocket."""


# -- fits --------------------------------------------------------------------------------------------------------------

FITS = {
    "nothing": lambda reply: None,
    "text": lambda reply: "4711",
    "a dict": lambda reply: {"values": reply.values, "parts": reply.parts},
    "a pair": lambda reply: (reply.values, reply.parts),
    "values of None": lambda reply: Reply(None, reply.parts),
    "values of a list": lambda reply: Reply([reply.values], reply.parts),
    "values of text": lambda reply: Reply("record", reply.parts),
    "no values": lambda reply: Reply({}, reply.parts),
    "no record": values_with(("record",), ...),
    "a record of text": values_with(("record",), "4711"),
    "a record of a list": values_with(("record",), [1, 2]),
    "a record of nothing": values_with(("record",), {}),
    "a deep record": values_with(("record",), nested(100_000)),
    "no loss": record_with("train_loss", ...),
    "a loss of NaN": record_with("train_loss", NAN),
    "an infinite loss": record_with("train_loss", float("-inf")),
    "a loss of text": record_with("train_loss", "0.1"),
    "a loss of True": record_with("train_loss", True),
    "a loss beyond any float": record_with("train_loss", 10**400),
    "a loss of a tensor": record_with("train_loss", torch.tensor(0.1)),
    "fewer images than none": record_with("images", -1),
    "images of NaN": record_with("images", NAN),
    "deep seconds": record_with("fit_seconds", nested(100_000)),
    "seconds before the start": record_with("fit_seconds", -1.0),
    "memory of text": record_with("peak_memory_bytes", "1 GB"),
    "not evaluated": record_with("trained", ...),
    "evaluated as text": record_with("trained", "well"),
    "no test": trained_with(..., "test"),
    "a test of a list": trained_with([], "test"),
    "no accuracy": trained_with(..., "test", "personal", "accuracy"),
    "one metric more": trained_with(1.0, "test", "personal", "quadratic_kappa"),
    "an accuracy of text": trained_with("1", "test", "personal", "accuracy"),
    "an accuracy of NaN": trained_with(NAN, "test", "personal", "accuracy"),
    "a huge accuracy": trained_with(1e90, "test", "personal", "accuracy"),
    "a deep accuracy": trained_with(nested(100_000), "test", "personal", "accuracy"),
    "no parts": lambda reply: Reply(reply.values, {}),
    "parts of None": lambda reply: Reply(reply.values, None),
    "parts of a list": lambda reply: Reply(reply.values, list(reply.parts.items())),
    "a part of None": parts_with(lambda parts: parts | {NET: None}),
    "a part more": parts_with(lambda parts: parts | {"patients": {"x": torch.ones(1)}}),
    "an empty part more": parts_with(lambda parts: parts | {"patients": {}}),
    "a part for the server": parts_with(lambda parts: parts | {PROTOTYPES: {"sums": torch.ones(3, 32)}}),
    "the model elsewhere": parts_with(lambda parts: {"x": parts[NET]}),
    "a model within": parts_with(lambda parts: {NET: {NET: parts[NET]}}),
    "a personal key": parts_with(lambda p: {NET: p[NET] | {"side.up.lora_A": torch.ones(2, 64)}}),
    "a key less": parts_with(lambda parts: {NET: dict(list(parts[NET].items())[1:])}),
    "a key of a number": parts_with(lambda parts: {NET: parts[NET] | {3: torch.ones(1)}}),
    "text for a tensor": net_with(lambda tensor: "4711"),
    "a list for a tensor": net_with(lambda tensor: tensor.tolist()),
    "a shape": net_with(lambda tensor: tensor[..., :-1]),
    "a scalar": net_with(lambda tensor: torch.tensor(1.0)),
    "a dtype": net_with(lambda tensor: tensor.double()),
    "sparse": net_with(lambda tensor: tensor.to_sparse()),
    "meta": net_with(lambda tensor: tensor.to("meta")),
    "attributes": net_with(lambda tensor: tensor.as_subclass(Carrier)),
    "huge numbers": parts_with(lambda parts: {NET: {key: tensor * 1e9 for key, tensor in parts[NET].items()}}),
    "the largest number": net_with(lambda tensor: torch.full_like(tensor, torch.finfo(torch.float32).max)),
}
NOT_FINITE = {
    "NaN": net_with(lambda tensor: tensor * NAN),
    "infinite": net_with(lambda tensor: tensor - float("inf")),
}


@pytest.mark.parametrize("name", FITS | NOT_FINITE)
def test_a_forged_fit_leaves_its_client_out(tmp_path, caplog, absent_once, after_one_round, name) -> None:
    after_one_round(tmp_path, PFedST)
    with forged((FITS | NOT_FINITE)[name], of_bad("fit")):
        summary = go_on(tmp_path, PFedST(), rounds=ROUNDS)
    assert summary["left_out"] == {BAD[0]: {"NotFiniteError" if name in NOT_FINITE else "StateError": 1}}
    assert f"client {BAD[0]} is excluded from round {BAD[1]}: " in caplog.text
    assert "Traceback" not in caplog.text
    for model in ("personal", "generic"):
        assert summary[model] == absent_once[1][model]
    same(([], *left(tmp_path)[1:]), ([], *left(absent_once[0])[1:]))


KEPT_OUT = {
    "values more": values_with(("patients",), nested(100_000)),
    "keys of a record": lambda reply: Reply(
        {
            "record": reply.values["record"]
            | {"patients": ["4711"], "round": 99, "client": "x", "participated": False, "left_out": "x"}
            | {"received": {"test": 3}, "counts": NAN, "finetuned": True, "deep": nested(100_000)}
            | {"upload_bytes": -1, "download_bytes": "x", "setup_upload_bytes": NAN},
            "repeated": reply.values["repeated"],
        },
        reply.parts,
    ),
    "splits and models": lambda reply: trained_with({"x": NAN}, "x")(trained_with("4711", "test", "x")(reply)),
    "repeated": values_with(("repeated",), nested(100_000)),
}


@pytest.mark.parametrize("name", KEPT_OUT)
def test_what_a_reply_holds_beside_is_not_recorded(tmp_path, whole, after_one_round, name) -> None:
    after_one_round(tmp_path, PFedST)
    with forged(KEPT_OUT[name], of_bad("fit")):
        summary = go_on(tmp_path, PFedST(), rounds=ROUNDS)
    assert without_times(summary) == without_times(whole[1])
    same(left(tmp_path), left(whole[0]))


@pytest.mark.parametrize("name", ["no record", "NaN", "parts of None"])
def test_replies_forged_by_all_end_the_run_and_it_goes_on(tmp_path, whole, after_one_round, name) -> None:
    change = (FITS | NOT_FINITE)[name]
    after_one_round(tmp_path, PFedST)
    with (
        forged(change, lambda client, request: (request.kind, request.round) == ("fit", 2)),
        pytest.raises(PfedstError, match="0 of 3 clients reported"),
    ):
        go_on(tmp_path, PFedST(), rounds=ROUNDS)
    assert without_times(go_on(tmp_path, PFedST(), rounds=ROUNDS)) == without_times(whole[1])


def test_forged_fine_tuning_leaves_its_client_out(tmp_path) -> None:
    change = record_with("train_loss", NAN)
    with forged(change, lambda client, request: request.finetune_epochs > 0 and client == BAD[0]):
        summary = fit(tmp_path, PFedST(finetune_epochs=1), rounds=1)
    assert summary["left_out"] == {BAD[0]: {"StateError": 1}}


# -- what only the method understands ----------------------------------------------------------------------------------

CONTROLS = {
    "none": lambda parts: {NET: parts[NET]},
    "empty": lambda parts: parts | {"control": {}},
    "a key less": lambda parts: parts | {"control": dict(list(parts["control"].items())[1:])},
    "another shape": lambda parts: parts | {"control": {key: t[:0] for key, t in parts["control"].items()}},
    "another dtype": lambda parts: parts | {"control": {key: t.to(torch.bool) for key, t in parts["control"].items()}},
}


@pytest.mark.parametrize("name", CONTROLS)
def test_among_others_a_forged_extra_part_is_left_out(tmp_path, after_one_round, name) -> None:
    after_one_round(tmp_path, SCAFFOLD)
    with forged(parts_with(CONTROLS[name]), of_bad("fit")):
        summary = go_on(tmp_path, SCAFFOLD(), rounds=ROUNDS)
    assert summary["left_out"] == {BAD[0]: {"StateError": 1}}


@pytest.fixture(scope="module")
def whole_scaffold(tmp_path_factory):
    """The summary of a run of SCAFFOLD in which nothing is forged."""
    return fit(tmp_path_factory.mktemp("scaffold"), SCAFFOLD(), rounds=ROUNDS)


@pytest.mark.parametrize("name", ["none", "empty", "a key less", "another shape"])
def test_an_extra_part_that_cannot_be_merged_is_one_error(tmp_path, whole_scaffold, after_one_round, name) -> None:
    """Where all clients that report are hostile, no other says what is usual."""
    after_one_round(tmp_path, SCAFFOLD)
    with (
        forged(parts_with(CONTROLS[name]), lambda client, request: (request.kind, request.round) == ("fit", 2)),
        pytest.raises(StateError, match="method SCAFFOLD cannot merge the messages of site_a, site_b, site_c"),
    ):
        go_on(tmp_path, SCAFFOLD(), rounds=ROUNDS)
    assert go_on(tmp_path, SCAFFOLD(), rounds=ROUNDS)["personal"] == whole_scaffold["personal"]


# -- evaluations, prototypes, cost and the first reply -----------------------------------------------------------------


def evaluated_with(value, *path):
    return values_with(("evaluated", *path), value)


EVALUATIONS = {
    "nothing": lambda reply: None,
    "values of text": lambda reply: Reply("4711"),
    "not evaluated": values_with(("evaluated",), ...),
    "no test": evaluated_with(..., "test"),
    "no generic model": evaluated_with(..., "test", "generic"),
    "no metrics": evaluated_with(..., "test", "generic", "metrics"),
    "metrics of text": evaluated_with("4711", "test", "generic", "metrics"),
    "an accuracy of NaN": evaluated_with(NAN, "test", "generic", "metrics", "accuracy"),
    "a huge accuracy": evaluated_with(1e99, "test", "generic", "metrics", "accuracy"),
    "one metric more": evaluated_with(0.5, "test", "generic", "metrics", "quadratic_kappa"),
    "no counts": evaluated_with(..., "test", "generic", "counts"),
    "counts of text": evaluated_with("4711", "test", "generic", "counts"),
    "counts of NaN": evaluated_with([[NAN] * 3] * 3, "test", "generic", "counts", "confusion"),
    "more images than there are": evaluated_with([[99] * 3] * 3, "test", "generic", "counts", "confusion"),
    "another number of classes": evaluated_with([[12]], "test", "generic", "counts", "confusion"),
    "deep counts": evaluated_with(nested(100_000), "test", "generic", "counts", "confusion"),
    "no bins": evaluated_with([], "test", "generic", "counts", "reliability", "images"),
    "parts of text": lambda reply: Reply(reply.values, "4711"),
}


@pytest.mark.parametrize("name", EVALUATIONS)
def test_a_client_with_a_forged_evaluation_is_in_no_mean(tmp_path, caplog, after_one_round, name) -> None:
    """Of that round; nothing else of the run is another."""
    after_one_round(tmp_path, PFedST)
    with forged(EVALUATIONS[name], of_bad("evaluate")):
        summary = go_on(tmp_path, PFedST(), rounds=2)
    assert summary["not_evaluated"] == {BAD[0]: [2]}
    assert "client site_b" in next(text for text in caplog.messages if "is not evaluated after round 2" in text)
    assert "Traceback" not in caplog.text


def test_after_it_the_run_goes_on_with_the_same_bits(tmp_path, whole, after_one_round) -> None:
    after_one_round(tmp_path, PFedST)
    with forged(EVALUATIONS["an accuracy of NaN"], of_bad("evaluate")):
        go_on(tmp_path, PFedST(), rounds=ROUNDS)
    found, expected = left(tmp_path), left(whole[0])
    same(([], *found[1:]), ([], *expected[1:]))


def sums_with(**changes):
    """Change the sums and counts of class prototypes."""

    def change(reply):
        found = dict(reply.parts[PROTOTYPES])
        return Reply({}, {PROTOTYPES: found | {key: value(found[key]) for key, value in changes.items()}})

    return change


FORGED_PROTOTYPES = {
    "nothing": lambda reply: None,
    "no parts": lambda reply: Reply({}),
    "parts of text": lambda reply: Reply({}, "4711"),
    "another part": lambda reply: Reply({}, {NET: {"w": torch.ones(1)}}),
    "one part more": lambda reply: Reply({}, reply.parts | {NET: {"w": torch.ones(1)}}),
    "no counts": lambda reply: Reply({}, {PROTOTYPES: {"sums": reply.parts[PROTOTYPES]["sums"]}}),
    "sums of text": lambda reply: Reply({}, {PROTOTYPES: {"sums": "x", "counts": "y"}}),
    "images": lambda reply: Reply({}, {PROTOTYPES: reply.parts[PROTOTYPES] | {"images": torch.ones(3, 8, 8)}}),
    "a class less": sums_with(sums=lambda t: t[1:], counts=lambda t: t[1:]),
    "another width": sums_with(sums=lambda t: t[:, 1:]),
    "another dtype": sums_with(sums=lambda t: t.half()),
    "counts that are no whole numbers": sums_with(counts=lambda t: t.double()),
    "NaN": sums_with(sums=lambda t: t * NAN),
    "infinite": sums_with(sums=lambda t: t + float("inf")),
    "longer than so many images": sums_with(sums=lambda t: t * 1e6),
    "fewer images than none": sums_with(counts=lambda t: t - t.sum()),
    "more images than there are": sums_with(counts=lambda t: t * 10**6),
    "counts beyond measure": sums_with(counts=lambda t: t + 2**62),
}


@pytest.mark.parametrize("name", FORGED_PROTOTYPES)
def test_forged_prototypes_end_the_run_with_one_error(tmp_path, name) -> None:
    with (
        forged(FORGED_PROTOTYPES[name], lambda client, request: (request.kind, client) == ("prototypes", BAD[0])),
        pytest.raises(StateError, match="site_b"),
    ):
        fit(tmp_path, FedAvg())
    assert not list((tmp_path / "run/state").glob("round-*"))


@pytest.mark.parametrize("change", [lambda r: None, lambda r: Reply({}), values_with(("flops_per_image",), "many")])
def test_a_forged_cost_is_not_told(tmp_path, caplog, change) -> None:
    with forged(change, lambda client, request: request.kind == "cost"):
        summary = fit(tmp_path, FedAvg(), rounds=1)
    assert summary["cost"]["flops_per_image"] is None
    assert "FLOPs are not counted: client site_a" in caplog.text
    assert "Traceback" not in caplog.text


HELLOS = {
    "nothing": lambda reply: None,
    "values of text": lambda reply: Reply("4711"),
    "no images": values_with(("samples",), {}),
    "fewer images than none": values_with(("samples", "train"), -1),
    "images beyond measure": values_with(("samples", "train"), 10**400),
    "images of NaN": values_with(("samples", "train"), NAN),
    "no classes": values_with(("classes",), []),
    "classes of numbers": values_with(("classes",), [1, 2, 3]),
    "a class twice": values_with(("classes",), ["x", "x", "y"]),
    "a study of text": values_with(("study",), "4711"),
    "a deep study": values_with(("study",), {"x": nested(100_000)}),
    "a study of NaN": values_with(("study",), {"x": NAN}),
    "a long study": values_with(("study",), {"x": "4711" * 10**6}),
    "a fingerprint of bytes": values_with(("fingerprint",), b"x"),
    "threads of text": values_with(("threads",), "one"),
    "a protocol that names the method": values_with(("protocol", "method"), "Mine"),
    "a protocol without data": values_with(("protocol", "data"), ...),
    "a protocol of tensors": values_with(("protocol", "data"), torch.ones(1)),
}


@pytest.mark.parametrize("name", HELLOS)
@pytest.mark.parametrize("site", ["site_a", "site_b"])
def test_a_forged_first_reply_ends_the_run_before_it_starts(tmp_path, monkeypatch, name, site) -> None:
    hello = InProcess.hello

    def changing(self, run):
        replies = hello(self, run)
        return replies | {site: HELLOS[name](replies[site])}

    monkeypatch.setattr(InProcess, "hello", changing)
    with pytest.raises(StateError, match=f"client {site}"):
        fit(tmp_path, FedAvg())
    assert not list((tmp_path / "run").iterdir())


# -- replies that nobody asked for, and any other ----------------------------------------------------------------------


def test_replies_that_are_lost_doubled_or_of_others(tmp_path, monkeypatch, whole, after_one_round) -> None:
    ask = InProcess.ask

    def doubled(self, requests, started):
        for client, reply in ask(self, requests, started):
            yield "somebody", reply
            yield client, reply
            yield client, None

    with monkeypatch.context() as patch:
        patch.setattr(InProcess, "ask", doubled)
        assert without_times(fit(tmp_path / "doubled", PFedST(), rounds=ROUNDS)) == without_times(whole[1])

    def lost(self, requests, started):
        for client, reply in ask(self, requests, started):
            if (requests[client].kind, client, requests[client].round) != ("fit", *BAD):
                yield client, reply

    with monkeypatch.context() as patch:
        patch.setattr(InProcess, "ask", lost)
        after_one_round(tmp_path / "lost", PFedST)
        summary = go_on(tmp_path / "lost", PFedST(), rounds=ROUNDS)
    assert summary["left_out"] == {BAD[0]: {"NoAnswerError": 1}}
    monkeypatch.setattr(InProcess, "ask", lambda self, requests, started: iter(()))
    with pytest.raises(NoAnswerError, match="client site_a sent no reply"):
        fit(tmp_path / "silent", PFedST(), rounds=ROUNDS)
    monkeypatch.setattr(InProcess, "hello", lambda self, run: {})
    with pytest.raises(NoAnswerError, match="no client can be reached"):
        fit(tmp_path / "nobody", PFedST(), rounds=ROUNDS)


ODD = (None, True, -1, 0, 10**400, NAN, float("inf"), -0.5, 1e300, "", "4711", [], {}, [[]], {"x": {}}, b"x", object())


def any_change(values, draw):
    """Change one entry of nested dicts and lists at random."""
    place, key = None, None
    found = values
    while isinstance(found, dict | list) and found and (place is None or draw.random() < 0.8):
        place, key = found, draw.choice(list(found) if isinstance(found, dict) else range(len(found)))
        found = found[key]
    if place is not None:
        if draw.random() < 0.2:
            del place[key]
        else:
            place[key] = draw.choice(ODD)
    return values


@pytest.mark.parametrize("seed", range(4))
def test_whatever_is_changed_in_replies_a_run_ends_well(tmp_path, caplog, seed) -> None:
    """Every reply of one client is changed at random, with a chance of one in three."""
    draw = random.Random(seed)

    def change(reply):
        return Reply(any_change(json.loads(json.dumps(reply.values)), draw), reply.parts)

    with forged(change, lambda client, request: client == BAD[0] and draw.random() < 1 / 3):
        found = [fit(tmp_path / str(number), PFedST(), rounds=ROUNDS) for number in range(6)]
    for ended in found:
        json.dumps(ended, allow_nan=False)
        assert set(ended["left_out"]) <= {"site_b"}
        assert set(ended["left_out"].get("site_b", {})) <= {"StateError"}
        assert set(ended.get("not_evaluated", {})) <= {"site_b"}
    assert len({"not_evaluated" in ended for ended in found}) == 2
    assert "Traceback" not in caplog.text
