"""The fits of a round: who is asked what, whose message is merged, and who is left out and why."""

import logging

import pytest
import torch
from pfedst_baselines.fedavg import FedAvg

from pfedst.errors import NoAnswerError, PfedstError, StateError, TooFewClientsError
from pfedst.messages.faults import Fault
from pfedst.messages.payload import NET, payload_bytes
from pfedst.messages.requests import Reply, Request
from pfedst.server.fits import FitOptions, Fits
from pfedst.server.schedule import Schedule
from pfedst.testing.small import federation
from pfedst.tracking import RunProgress

RECORD = {"train_loss": 0.5, "fit_seconds": 1.0, "images": 24, "skipped_steps": 0, "peak_memory_bytes": None}
NAMES = ["site_a", "site_b", "site_c"]


class Clients:
    """A transport: `replies[name]` makes the reply of a client from a request, in the order of `replies`."""

    def __init__(self, **replies) -> None:
        self.replies = replies
        self.asked: list[dict[str, Request]] = []

    def ask(self, requests, started):
        self.asked.append(dict(requests))
        for name in [name for name in self.replies if name in requests]:
            started(name)
            yield name, self.replies[name](requests[name])


def moved(by, **values):
    """A client that adds a number to all that it receives."""

    def reply(request):
        message = {NET: {key: tensor + by for key, tensor in request.message[NET].items()}}
        return Reply({"record": dict(RECORD), "repeated": False} | values, message)

    return reply


def fails(error):
    return lambda request: Fault.of(error)


class Made:
    """The fits of a run of FedAvg, with clients of a test."""

    def __init__(self, method=None, min_clients=1, ratio=1000.0, keep=False, **replies) -> None:
        self.server = federation(method or FedAvg(weighting="uniform")).server
        self.transport = Clients(**replies)
        self.progress = RunProgress(9)
        options = FitOptions(keep, min_clients, ratio, Schedule("step", 1, 8))
        self.fits = Fits(options, self.server, self.transport, self.request, self.progress)
        self.before = {key: tensor.clone() for key, tensor in self.server.state[NET].items()}

    def request(self, kind, name, **fields):
        return Request(kind, "run", parts=self.server.parts_for(name), **fields)

    def round(self, number=1, names=NAMES, evaluate=()):
        return self.fits.run_round(number, names, "round", evaluate)

    def change(self) -> float:
        """By how much the merge has moved the model."""
        found = {round((self.server.state[NET][key] - tensor).mean().item(), 4) for key, tensor in self.before.items()}
        assert len(found) == 1
        return found.pop()


def three(**others):
    return {"site_a": moved(1.0), "site_b": moved(2.0), "site_c": moved(3.0)} | others


def test_replies_are_merged_and_recorded() -> None:
    made = Made(**three(), keep=True)
    reported = made.round(number=4, evaluate=("test",))
    assert made.change() == 2.0
    ((requests),) = made.transport.asked
    found = {(request.kind, request.round, request.keep_optimizer, request.lr_factor) for request in requests.values()}
    assert found == {("fit", 4, True, 1.0)}
    assert {request.evaluate for request in requests.values()} == {("test",)}
    assert list(reported.records) == NAMES
    size = payload_bytes({NET: made.before})
    expected = RECORD | {"upload_bytes": size, "download_bytes": size}
    assert reported.records == dict.fromkeys(NAMES, expected)
    assert reported.left_out == {}


def test_the_order_of_replies_changes_nothing() -> None:
    found = []
    for names in (NAMES, NAMES[::-1]):
        replies = three()
        made = Made(**{name: replies[name] for name in names})
        assert list(made.round().records) == NAMES
        found.append(made.server.state[NET])
    assert all(torch.equal(tensor, found[1][key]) for key, tensor in found[0].items())


def nan(request):
    reply = moved(1.0)(request)
    reply.parts[NET][next(iter(reply.parts[NET]))].fill_(float("nan"))
    return reply


def less(request):
    reply = moved(1.0)(request)
    reply.parts[NET].pop(next(iter(reply.parts[NET])))
    return reply


def more(request):
    reply = moved(1.0)(request)
    return Reply(reply.values, reply.parts | {"patients": {"ids": torch.ones(1)}})


def other_shape(request):
    reply = moved(1.0)(request)
    key = next(iter(reply.parts[NET]))
    reply.parts[NET][key] = reply.parts[NET][key][:1]
    return reply


FAULTS = {
    "defect": (fails(ZeroDivisionError("a defect")), "ZeroDivisionError"),
    "remedy": (fails(PfedstError("give it a rest")), "PfedstError"),
    "no answer": (fails(NoAnswerError("no answer within 3 s")), "NoAnswerError"),
    "NaN": (nan, "NotFiniteError"),
    "a key less": (less, "StateError"),
    "an undeclared part": (more, "StateError"),
    "another shape": (other_shape, "StateError"),
    "absurd": (moved(1e9), "StateError"),
    "nothing": (lambda request: Reply({"record": RECORD}), "StateError"),
}


@pytest.mark.parametrize(("reply", "kind"), FAULTS.values(), ids=FAULTS)
def test_a_client_at_fault_is_left_out_and_the_others_are_merged(caplog, reply, kind) -> None:
    made = Made(**three(site_b=reply))
    reported = made.round(number=2)
    assert made.change() == 2.0  # (1 + 3) / 2
    assert list(reported.records) == ["site_a", "site_c"]
    assert reported.left_out == {"site_b": {"left_out": kind, "download_bytes": payload_bytes({NET: made.before})}}
    assert "client site_b is excluded from round 2" in caplog.text


def test_a_fault_is_told_at_length_once_a_client_and_kind(caplog) -> None:
    made = Made(**three(site_a=fails(ZeroDivisionError("a defect")), site_b=fails(ZeroDivisionError("another"))))
    for number in (1, 2, 3):
        made.round(number)
    assert caplog.text.count("a defect") == caplog.text.count("another") == 1
    assert caplog.text.count("ZeroDivisionError, as before") == 4
    made.transport.replies["site_a"] = fails(StateError("what is new"))
    made.round(4)
    assert "what is new" in caplog.text


def test_without_a_limit_an_absurd_message_is_merged() -> None:
    made = Made(**three(site_b=moved(1e6)), ratio=None)
    assert made.round().left_out == {}


@pytest.mark.parametrize(("demanded", "enough"), [(0, True), (1, True), (2, False), (3, False)])
def test_too_few_clients_end_the_run(demanded, enough) -> None:
    broken = fails(ZeroDivisionError())
    made = Made(**three(site_a=broken, site_b=broken), min_clients=demanded)
    if enough:
        assert list(made.round().records) == ["site_c"]
        return
    with pytest.raises(TooFewClientsError, match=r"1 of 3 clients reported.*site_a \(ZeroDivisionError\)"):
        made.round()


def test_a_round_in_which_nobody_reports_merges_nothing() -> None:
    made = Made(**dict.fromkeys(NAMES, fails(ZeroDivisionError())), min_clients=0)
    assert made.round().records == {}
    assert all(made.server.state[NET][key] is not None for key in made.before)
    assert made.change() == 0.0
    with pytest.raises(TooFewClientsError, match="0 of 3"):
        Made(**dict.fromkeys(NAMES, fails(ZeroDivisionError()))).round()


def test_of_few_clients_that_are_asked_all_may_be_demanded() -> None:
    """A round of participation 0.3 asks one; one is then enough, whatever is demanded of others."""
    made = Made(**three(), min_clients=1)
    assert list(made.round(names=["site_b"]).records) == ["site_b"]
    assert made.change() == 2.0


class Ring(FedAvg):
    sequential = True


def test_a_sequential_method_asks_one_client_after_the_other() -> None:
    made = Made(Ring(), **three(site_b=fails(ZeroDivisionError())))
    reported = made.round()
    assert [list(requests) for requests in made.transport.asked] == [[name] for name in NAMES]
    assert made.change() == 4.0  # each goes on from the one before
    assert list(reported.records) == ["site_a", "site_c"]
    assert list(reported.left_out) == ["site_b"]


def test_fine_tuning_merges_nothing_and_notes_no_bytes() -> None:
    made = Made(**three(site_b=fails(ZeroDivisionError())), keep=True)
    reported = made.fits.finetune(5, NAMES, 2)
    ((requests),) = made.transport.asked
    found = {(r.kind, r.round, r.finetune_epochs, r.fit_number, r.keep_optimizer) for r in requests.values()}
    assert found == {("fit", 5, 2, 6, True)}
    assert made.change() == 0.0
    assert reported.records == {"site_a": RECORD, "site_c": RECORD}
    assert reported.left_out == {"site_b": {"left_out": "ZeroDivisionError"}}
    with pytest.raises(TooFewClientsError, match="fine-tuning: 0 of 3"):
        Made(**dict.fromkeys(NAMES, fails(ZeroDivisionError()))).fits.finetune(5, NAMES, 2)


def test_progress_knows_fits_of_an_earlier_process() -> None:
    made = Made(**three(site_a=moved(1.0, repeated=True), site_b=fails(ZeroDivisionError())))
    made.round()
    assert (made.progress.done, made.progress.earlier) == (3, 1)


def test_what_a_client_sent_is_not_changed_by_the_merge() -> None:
    kept = {}

    def remembered(request):
        reply = kept["reply"] = moved(1.0)(request)
        kept["copy"] = {key: tensor.clone() for key, tensor in reply.parts[NET].items()}
        return reply

    Made(**three(site_a=remembered)).round()
    assert all(torch.equal(tensor, kept["copy"][key]) for key, tensor in kept["reply"].parts[NET].items())


def test_nothing_is_told_where_nothing_is_wrong(caplog) -> None:
    with caplog.at_level(logging.DEBUG, "pfedst"):
        Made(**three()).round()
    assert caplog.text == ""
