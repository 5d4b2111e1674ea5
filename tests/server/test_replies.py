"""Replies are checked before the server uses them: what no client sends becomes a fault, what is unknown is dropped."""

import copy
import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pfedst.errors import NoAnswerError, StateError
from pfedst.evaluation.averages import SITE_METRICS
from pfedst.messages.faults import Fault
from pfedst.messages.payload import NET
from pfedst.messages.requests import Reply, Request
from pfedst.methods.pfedst import PFedST
from pfedst.server.replies import CheckedTransport
from pfedst.transport.in_process import InProcess
from tests.client.clients import SPLITS, client_of, fit_request, same, server_of


class Clients:
    """A transport that answers with what a test gives it."""

    def __init__(self, hello, *replies) -> None:
        self.hellos = {"site_a": hello, "site_b": copy.deepcopy(hello)}
        self.replies = replies
        self.open = 0

    def __enter__(self):
        self.open += 1
        return self

    def __exit__(self, *_) -> None:
        self.open -= 1

    def hello(self, run):
        return self.hellos

    def ask(self, requests, started):
        yield from self.replies


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """The replies of a real client to every kind of request, by kind."""
    client = client_of(PFedST(), tmp_path_factory.mktemp("sites"))
    server = server_of(client)
    requests = {
        "hello": Request("hello", "run"),
        "prototypes": Request("prototypes", "run"),
        "fit": fit_request(server, "site_a", 1, evaluate=SPLITS),
        "evaluate": Request("evaluate", "run", evaluate=SPLITS, parts=server.parts_for("site_a")),
        "class_metrics": Request("class_metrics", "run"),
        "calibrate": Request("calibrate", "run"),
        "cost": Request("cost", "run", parts=server.parts_for("site_a")),
    }
    return {kind: (request, client.answer("site_a", request)) for kind, request in requests.items()}


def asked(real, kind, reply, name="site_a", has_generic=True):
    """The reply to one request, as the server sees it."""
    transport = CheckedTransport(Clients(real["hello"][1], (name, reply)), has_generic)
    transport.hello("run")
    ((found, checked),) = transport.ask({name: real[kind][0]}, lambda name: None)
    assert found == name
    return checked


@pytest.mark.parametrize("kind", ["prototypes", "fit", "evaluate", "class_metrics", "calibrate", "cost"])
def test_what_a_client_sends_passes_unchanged(real, kind) -> None:
    sent = real[kind][1]
    found = asked(real, kind, copy.deepcopy(sent))
    assert found.values == sent.values
    assert same(found.parts, sent.parts)


def test_a_first_reply_passes_unchanged(real) -> None:
    found = CheckedTransport(Clients(real["hello"][1])).hello("run")
    assert {name: reply.values for name, reply in found.items()} == dict.fromkeys(
        ("site_a", "site_b"), real["hello"][1].values
    )


def test_a_run_of_all_kinds_of_replies(tmp_path) -> None:
    """With a transport that is real, all values as JSON."""
    client = client_of(PFedST(), tmp_path)
    server = server_of(client)
    checked = CheckedTransport(InProcess(client))
    assert set(checked.hello("run")) == {"site_a", "site_b", "site_c"}
    with checked:
        requests = {name: fit_request(server, name, 1, evaluate=SPLITS) for name in server.sites}
        replies = dict(checked.ask(requests, lambda name: None))
    assert all(isinstance(reply, Reply) for reply in replies.values())
    assert json.loads(json.dumps({name: reply.values for name, reply in replies.items()}))


def test_of_a_method_without_a_generic_model_only_the_personal_one_is_taken(real) -> None:
    reply = copy.deepcopy(real["evaluate"][1])
    personal = {split: {"personal": models["personal"]} for split, models in reply.values["evaluated"].items()}
    assert asked(real, "evaluate", reply, has_generic=False).values == {"evaluated": personal}
    assert asked(real, "evaluate", Reply({"evaluated": personal}), has_generic=False).values == {"evaluated": personal}
    assert isinstance(asked(real, "evaluate", Reply({"evaluated": personal})), Fault)


# -- what is dropped ---------------------------------------------------------------------------------------------------


def test_keys_that_are_not_known_are_dropped(real) -> None:
    """They would be written into the records of a run."""
    for kind in ("fit", "class_metrics", "calibrate", "cost"):
        values = copy.deepcopy(real[kind][1].values)
        values["patients"] = ["4711"]
        if kind == "fit":
            values["record"] |= {"patients": ["4711"], "left_out": "x", "upload_bytes": 3}
            values["record"]["trained"]["images"] = ["4711"]
        if kind == "class_metrics":
            values["class_metrics"] |= {"patients": ["4711"]}
            values["class_metrics"]["personal"][0] |= {"patients": ["4711"]}
            values["class_metrics"]["personal"][0]["sensitivity"] |= {"patients": ["4711"]}
        if kind == "calibrate":
            values["calibration"] |= {"effective": [0.5, 0.5]}
            values["calibration"]["test"] |= {"labels": [1, 2]}
            values["calibration"]["test"]["after"] |= {"patients": ["4711"]}
            values["calibration"]["test"]["after"]["reliability"] |= {"patients": ["4711"]}
        found = asked(real, kind, Reply(values, real[kind][1].parts))
        assert found.values == real[kind][1].values
    sent = real["evaluate"][1].values
    values = {"evaluated": {split: models | {"x": 1} for split, models in sent["evaluated"].items()}, "x": 2}
    for models in values["evaluated"].values():
        for model in ("personal", "generic"):
            models[model] = models[model] | {"images": ["4711"]}
            models[model]["counts"] = models[model]["counts"] | {"images": ["4711"]}
    assert asked(real, "evaluate", Reply(values)).values == sent
    assert asked(real, "prototypes", Reply({"images": ["4711"]}, real["prototypes"][1].parts)).values == {}


def test_a_reply_that_was_not_asked_for_is_dropped(real) -> None:
    reply = real["cost"][1]
    transport = CheckedTransport(
        Clients(real["hello"][1], ("site_b", reply), ("site_a", reply), ("site_a", reply), ("x", 3))
    )
    transport.hello("run")
    found = list(transport.ask({"site_a": real["cost"][0]}, lambda name: None))
    assert [name for name, _ in found] == ["site_a"]


def test_a_client_that_does_not_reply_is_at_fault(real) -> None:
    transport = CheckedTransport(Clients(real["hello"][1], ("site_a", real["cost"][1])))
    transport.hello("run")
    requests = dict.fromkeys(("site_a", "site_b"), real["cost"][0])
    found = dict(transport.ask(requests, lambda name: None))
    assert found["site_b"].kind == "NoAnswerError"
    assert isinstance(found["site_a"], Reply)


def test_a_fault_passes(real) -> None:
    fault = Fault.of(ZeroDivisionError())
    assert asked(real, "fit", fault) is fault


def test_it_opens_and_closes_the_transport(real) -> None:
    clients = Clients(real["hello"][1])
    with CheckedTransport(clients):
        assert clients.open == 1
    assert clients.open == 0


# -- what is refused ---------------------------------------------------------------------------------------------------


def changed(values, path, value):
    """A copy of nested dicts with another value at one place."""
    made = copy.deepcopy(values)
    place = made
    for key in path[:-1]:
        place = place[key]
    if value is None:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return made


FITS = {
    "no record": (["record"], None),
    "no loss": (["record", "train_loss"], None),
    "a loss of text": (["record", "train_loss"], "0.5"),
    "a loss beyond any float": (["record", "train_loss"], 10**400),
    "NaN": (["record", "train_loss"], float("nan")),
    "negative images": (["record", "images"], -1),
    "not evaluated": (["record", "trained"], None),
    "no test": (["record", "trained", "test"], None),
    "no model": (["record", "trained", "test", "personal"], None),
    "no accuracy": (["record", "trained", "test", "personal", "accuracy"], None),
    "an accuracy of 2": (["record", "trained", "test", "personal", "accuracy"], 2.0),
    "another metric": (["record", "trained", "test", "personal", "x"], 0.5),
}


@pytest.mark.parametrize(("path", "value"), FITS.values(), ids=FITS)
def test_a_fit_that_no_client_reports_is_a_fault(real, path, value) -> None:
    sent = real["fit"][1]
    found = asked(real, "fit", Reply(changed(sent.values, path, value), sent.parts))
    assert isinstance(found, Fault)
    assert found.kind == "StateError"
    assert "client site_a" in found.text


EVALUATIONS = {
    "nothing": (["evaluated"], None),
    "no list": (["evaluated"], [1]),
    "no test": (["evaluated", "test"], None),
    "no generic model": (["evaluated", "test", "generic"], None),
    "no metrics": (["evaluated", "test", "personal", "metrics"], None),
    "NaN": (["evaluated", "test", "personal", "metrics", "accuracy"], float("nan")),
    "True": (["evaluated", "test", "personal", "metrics", "accuracy"], True),
    "text": (["evaluated", "test", "personal", "metrics", "accuracy"], "4711"),
    "no counts": (["evaluated", "test", "personal", "counts"], None),
    "a confusion of two classes": (["evaluated", "test", "personal", "counts", "confusion"], [[6, 0], [0, 6]]),
    "a confusion of other images": (["evaluated", "test", "personal", "counts", "confusion"], [[1, 1, 1]] * 3),
    "negative": (["evaluated", "test", "personal", "counts", "confusion"], [[13, -1, 0], [0, 0, 0], [0, 0, 0]]),
    "floats": (["evaluated", "test", "personal", "counts", "confusion"], [[12.0, 0, 0], [0, 0, 0], [0, 0, 0]]),
    "a list for each image": (["evaluated", "test", "personal", "counts", "confusion"], [list(range(1000))] * 3),
    "no bins": (["evaluated", "test", "personal", "counts", "reliability"], None),
    "few bins": (["evaluated", "test", "personal", "counts", "reliability", "images"], [12]),
    "more right than there are": (["evaluated", "test", "personal", "counts", "reliability", "right"], [13] + [0] * 14),
}


@pytest.mark.parametrize(("path", "value"), EVALUATIONS.values(), ids=EVALUATIONS)
def test_an_evaluation_that_no_client_reports_is_a_fault(real, path, value) -> None:
    found = asked(real, "evaluate", Reply(changed(real["evaluate"][1].values, path, value)))
    assert isinstance(found, Fault)
    assert found.kind == "StateError"
    assert "client site_a" in found.text
    assert "4711" not in found.text


OF_CLASS = ["class_metrics", "personal", 1]
CLASS_METRICS = {
    "nothing": (["class_metrics"], None),
    "no personal model": (["class_metrics", "personal"], None),
    "no list": (["class_metrics", "generic"], {"x": 1}),
    "two classes": (["class_metrics", "generic"], [{}, {}]),
    "other images": (["class_metrics", "images"], 11),
    "more units than images": (["class_metrics", "units"], 13),
    "units of floats": (["class_metrics", "units"], 3.0),
    "no number without a unit": (["class_metrics", "without_unit"], None),
    "other images of a class": ([*OF_CLASS, "images"], 0),
    "negative images": ([*OF_CLASS, "images"], -1),
    "more units than images of a class": ([*OF_CLASS, "units"], 12),
    "more other units than images of other classes": ([*OF_CLASS, "other_units"], 12),
    "no sensitivity": ([*OF_CLASS, "sensitivity"], None),
    "text": ([*OF_CLASS, "specificity", "value"], "4711"),
    "NaN": ([*OF_CLASS, "specificity", "low"], float("nan")),
    "less than nothing": ([*OF_CLASS, "average_precision", "value"], -0.5),
    "one end": ([*OF_CLASS, "sensitivity"], {"value": 0.5, "low": 0.1, "high": None}),
    "an interval of nothing": ([*OF_CLASS, "sensitivity"], {"value": None, "low": 0.1, "high": 0.2}),
    "ends in the wrong order": ([*OF_CLASS, "sensitivity"], {"value": 0.5, "low": 0.6, "high": 0.4}),
}


@pytest.mark.parametrize(("path", "value"), CLASS_METRICS.values(), ids=CLASS_METRICS)
def test_metrics_of_classes_that_no_client_reports_are_a_fault(real, path, value) -> None:
    found = asked(real, "class_metrics", Reply(changed(real["class_metrics"][1].values, path, value)))
    assert isinstance(found, Fault)
    assert (found.kind, "4711" in found.text) == ("StateError", False)
    assert "client site_a" in found.text


ESTIMATES = {metric: {"value": 0.5, "low": 0.4, "high": 0.6} for metric in SITE_METRICS}
SUBGROUP = {"name": "f", "images": 8, "units": 6, "classes": 2, "rare_classes": 1, "personal": ESTIMATES}
WITHHELD = {"name": "m", "withheld": "fewer than 5 images, patients or lesions"}
SUBGROUPS = {"minimum": 5, "columns": {"sex": [SUBGROUP, WITHHELD]}}
OF_SITE = {
    "no metrics of the site": (["intervals"], {}),
    "no personal model of the site": (["intervals", "personal"], None),
    "more images than the site has": (["intervals", "images"], 99),
    "an interval of text": (["intervals", "personal", "auroc", "low"], "4711"),
    "no minimum": (["subgroups", "minimum"], 0),
    "a list of columns": (["subgroups", "columns"], ["4711"]),
    "a name for each image": (["subgroups", "columns", "sex"], [WITHHELD] * 21),
    "a reason of its own": (["subgroups", "columns", "sex", 1, "withheld"], "patient 4711"),
    "a subgroup below the minimum": (["subgroups", "columns", "sex", 0, "units"], 4),
    "a name of many letters": (["subgroups", "columns", "sex", 0, "name"], "x" * 101),
    "more images in subgroups than the site has": (["subgroups", "columns", "sex", 1], SUBGROUP),
    "no metric of a subgroup": (["subgroups", "columns", "sex", 0, "personal", "accuracy"], None),
}


@pytest.fixture(scope="module")
def of_site(real):
    """What a client with subgroups sends, by its metrics of classes."""
    return real["class_metrics"][1].values | {"subgroups": SUBGROUPS}


def test_metrics_of_subgroups_pass_with_their_known_keys_alone(real, of_site) -> None:
    more = copy.deepcopy(of_site)
    more["subgroups"]["patients"] = more["intervals"]["patients"] = ["4711"]
    for table in more["subgroups"]["columns"]["sex"]:
        table["patients"] = ["4711"]
    assert asked(real, "class_metrics", Reply(more)).values == of_site


def test_a_client_of_an_older_version_sends_metrics_of_classes_alone(real, of_site) -> None:
    values = {"class_metrics": of_site["class_metrics"]}
    assert asked(real, "class_metrics", Reply(copy.deepcopy(values))).values == values


@pytest.mark.parametrize(("path", "value"), OF_SITE.values(), ids=OF_SITE)
def test_metrics_of_a_site_that_no_client_reports_are_a_fault(real, of_site, path, value) -> None:
    found = asked(real, "class_metrics", Reply(changed(of_site, path, value)))
    assert isinstance(found, Fault)
    assert (found.kind, "4711" in found.text) == ("StateError", False)


OF_TEST = ["calibration", "test"]
CALIBRATIONS = {
    "nothing": (["calibration"], None),
    "a list": (["calibration"], [1]),
    "no temperature": (["calibration", "temperature"], None),
    "a temperature of 0": (["calibration", "temperature"], 0),
    "NaN": (["calibration", "temperature"], float("nan")),
    "other images": (["calibration", "images"], 999),
    "more errors than images": (["calibration", "errors"], 999),
    "a reason of its own": (["calibration", "reason"], "patient 4711"),
    "fitted, without a threshold on test": (["calibration", "reason"], 0),
    "another prior": (["calibration", "prior"], "4711"),
    "a coverage of 2": (["calibration", "coverage"], 2),
    "no test": (OF_TEST, None),
    "other test images": ([*OF_TEST, "images"], 11),
    "no metrics": ([*OF_TEST, "before"], None),
    "no loss": ([*OF_TEST, "after", "nll"], None),
    "a loss of text": ([*OF_TEST, "after", "nll"], "4711"),
    "less than nothing": ([*OF_TEST, "after", "ece"], -0.5),
    "no bins": ([*OF_TEST, "after", "reliability"], None),
    "few bins": ([*OF_TEST, "after", "reliability", "images"], [12]),
    "more right than there are": ([*OF_TEST, "after", "reliability", "right"], [13] + [0] * 14),
    "no curve": ([*OF_TEST, "risk_coverage"], None),
    "a point for each image": ([*OF_TEST, "risk_coverage"], [[0.1, 0.1]] * 21),
    "a curve of text": ([*OF_TEST, "risk_coverage"], [["4711", 0.1]]),
    "a threshold that was refused": ([*OF_TEST, "selective"], {"coverage": 0.5, "accuracy": 0.5}),
}


@pytest.mark.parametrize(("path", "value"), CALIBRATIONS.values(), ids=CALIBRATIONS)
def test_a_calibration_that_no_client_reports_is_a_fault(real, path, value) -> None:
    found = asked(real, "calibrate", Reply(changed(real["calibrate"][1].values, path, value)))
    assert isinstance(found, Fault)
    assert (found.kind, "4711" in found.text) == ("StateError", False)
    assert "client site_a" in found.text


@pytest.mark.parametrize("value", ["1", -1.0, None, True, [1]], ids=repr)
def test_a_cost_that_is_no_number_is_a_fault(real, value) -> None:
    assert asked(real, "cost", Reply({"flops_per_image": value})).kind == "StateError"


class Carrier(torch.Tensor):
    """A tensor with something in its pocket."""


PARTS = [
    {NET: {"w": [1.0]}},
    {NET: {"w": torch.ones(1).as_subclass(Carrier)}},
    {NET: {3: torch.ones(1)}},
    {NET: {"w": torch.ones(2).to_sparse()}},
    {3: {}},
    {NET: torch.ones(1)},
    [NET],
    None,
]


@pytest.mark.parametrize("kind", ["prototypes", "fit", "evaluate", "class_metrics", "calibrate", "cost"])
@pytest.mark.parametrize("parts", PARTS, ids=lambda parts: type(parts).__name__)
def test_parts_that_are_no_plain_tensors_are_a_fault(real, kind, parts) -> None:
    found = asked(real, kind, Reply(real[kind][1].values, parts))
    assert (found.kind, "the message from client site_a" in found.text) == ("StateError", True)


@pytest.mark.parametrize("kind", ["prototypes", "fit", "evaluate", "class_metrics", "calibrate", "cost"])
@pytest.mark.parametrize("reply", [None, 3, "x", [], {}, Reply([]), Reply(None)], ids=repr)
def test_what_is_no_reply_is_a_fault(real, kind, reply) -> None:
    assert asked(real, kind, reply).kind == "StateError"


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda part: st.lists(part, max_size=3) | st.dictionaries(st.text(max_size=4), part, max_size=3),
    max_leaves=6,
)


@given(
    st.sampled_from(["fit", "evaluate", "class_metrics", "calibrate", "cost"]),
    st.dictionaries(st.sampled_from(["record", "evaluated", "calibration", "flops_per_image"]), anything),
)
def test_whatever_a_client_sends_is_a_fault_or_plain(real, kind, values) -> None:
    found = asked(real, kind, Reply(values))
    assert isinstance(found, Fault) or json.dumps(found.values, allow_nan=False)


CLEAN = {"error": 0, "warning": 0, "note": 0}
HELLOS = {
    "no samples": (["samples"], None),
    "no test": (["samples", "test"], None),
    "negative": (["samples", "test"], -1),
    "no training images": (["samples", "train"], 0),
    "text": (["samples", "train"], "24"),
    "no classes": (["classes"], []),
    "a class twice": (["classes"], ["x", "x"]),
    "classes of numbers": (["classes"], [1, 2]),
    "no study": (["study"], None),
    "a study that is no JSON": (["study"], {"x": {1, 2}}),
    "a study of NaN": (["study"], {"x": float("nan")}),
    "a huge study": (["study"], {"x": "y" * 2**21}),
    "no fingerprint": (["fingerprint"], None),
    "weights of numbers": (["encoder_weights"], 3),
    "ordinal of text": (["ordinal"], "yes"),
    "no threads": (["threads"], None),
    "no encoder": (["protocol", "encoder"], None),
    "a key of the server": (["protocol", "rounds"], 3),
    "a protocol of text": (["protocol"], "x"),
    "an audit of text": (["protocol", "data_audit"], "clean"),
    "an audit without codes": (["protocol", "data_audit"], {"opened": True, "findings": CLEAN}),
    "an audit of a severity that is no word": (
        ["protocol", "data_audit"],
        {"opened": True, "findings": {"<b>": 1}, "codes": []},
    ),
    "findings of text": (
        ["protocol", "data_audit"],
        {"opened": True, "findings": CLEAN | {"note": "<b>"}, "codes": []},
    ),
}


@pytest.mark.parametrize(("path", "value"), HELLOS.values(), ids=HELLOS)
def test_a_first_reply_that_no_client_sends_ends_the_run(real, path, value) -> None:
    transport = CheckedTransport(Clients(Reply(changed(real["hello"][1].values, path, value))))
    with pytest.raises(StateError, match=rf'the first reply from client site_a: "{path[0]}" is missing'):
        transport.hello("run")


def test_unknown_keys_of_a_first_reply_are_dropped(real) -> None:
    values = real["hello"][1].values
    found = CheckedTransport(Clients(Reply(values | {"patients": ["4711"]}, {NET: {}}))).hello("run")["site_a"]
    assert found.values == values
    assert found.parts == {}


def test_without_clients_there_is_no_run(real) -> None:
    clients = Clients(real["hello"][1])
    clients.hellos = {}
    with pytest.raises(NoAnswerError, match="start the clients"):
        CheckedTransport(clients).hello("run")
    clients.hellos = {"site_a": None}
    with pytest.raises(StateError, match="client site_a"):
        CheckedTransport(clients).hello("run")
