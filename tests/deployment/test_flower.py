"""Rounds over Flower's messages, without its processes: the bits of a run in one process, and what is refused."""

import json
from dataclasses import replace

import pytest
import torch

pytest.importorskip("flwr", reason="pip install 'pfedst[flower]'")

from flwr.app import Context, Message, RecordDict
from safetensors.torch import load_file

from pfedst.client.exchange import start_maker
from pfedst.data import RemoteSites
from pfedst.data.subgroups import Subgroups
from pfedst.deployment.agreement import agreement, check_method, differences, reason_against, shared_study
from pfedst.deployment.apps import client_app, server_app
from pfedst.deployment.statement import statement
from pfedst.errors import ConfigurationError, StateError
from pfedst.messages.faults import Fault
from pfedst.messages.requests import Reply, Request
from pfedst.methods.pfedst import PFedST
from pfedst.methods.registry import registered_methods
from pfedst.reporting import RunFolder
from pfedst.server.coordinator import FederatedCoordinator
from pfedst.simulation import make_hooks
from pfedst.testing import small
from pfedst.transport.flower import Flower, packed, size_and_digest, unpacked
from tests.deployment.hospitals import CLASSES, SITES, FakeGrid, client_at, hospital
from tests.transport.test_processes import same, server_of

SHORT = {"wait_seconds": 0.0, "timeout_seconds": 20.0, "poll_seconds": 0.001}


@pytest.fixture
def sites(tmp_path):
    return {site: hospital(site, PFedST(), tmp_path / "hospitals" / site) for site in SITES}


@pytest.fixture
def grid(sites):
    return FakeGrid({name: site.handle for name, site in sites.items()})


def transport(grid, study=None, **options):
    module = small.template(PFedST()).build(CLASSES, PFedST(), 0)
    return Flower(grid, SITES, agreement(module, CLASSES, study or {}), **SHORT | options)


def fit(grid, folder, **options):
    """A run over Flower of `small.fit`'s study."""
    method, trainer = PFedST(), small.trainer(max_epochs=1)
    module = small.template(method).build(CLASSES, method, 0)
    run = RunFolder.create(folder, "run", "run")
    rounds = FederatedCoordinator(rounds=2, transport="flower", **options)
    given = transport(grid), method, start_maker(module.model), make_hooks(trainer, module), run, 0
    return rounds.fit(*given, study={})


def records(folder):
    rows = [json.loads(line) for line in (folder / "run" / "rounds.jsonl").read_text().splitlines()]
    return [
        {key: value for key, value in row.items() if key not in ("fit_seconds", "peak_memory_bytes")} for row in rows
    ]


def test_messages_travel_unchanged() -> None:
    parts = {"net": {"a": torch.tensor([1.0, -0.0, 2.5]), "b": torch.ones(2, 3, dtype=torch.bfloat16)}, "empty": {}}
    values = {"round": 3, "x": [0.1, None, "ü"]}
    found, tensors = unpacked(packed(values, parts))
    assert found == values
    assert tensors.keys() == parts.keys()
    assert all(torch.equal(tensors["net"][key], parts["net"][key]) for key in parts["net"])
    size, digest = size_and_digest(packed(values, parts))
    assert size > 3 * 4 + 6 * 2
    assert digest == size_and_digest(packed(values, parts))[1] != size_and_digest(packed({}, parts))[1]
    broken = packed(values, parts)
    broken.array_records["parts"]["net"].data = b"no safetensors"
    with pytest.raises(StateError, match="no safetensors"):
        unpacked(broken)


def test_a_run_has_the_bits_of_one_process_though_messages_are_lost(grid, sites, tmp_path) -> None:
    grid.lost = [("site_b", "train"), ("site_a", "evaluate")]
    grid.swallowed = [("site_c", "train")]
    grid.half = [("site_a", "train"), ("site_b", "evaluate")]
    over_flower = fit(grid, tmp_path / "flower")
    alone = small.fit(tmp_path / "alone", PFedST())
    assert records(tmp_path / "flower") == records(tmp_path / "alone")
    for file in sorted((tmp_path / "alone" / "run" / "state").rglob("*.safetensors")):
        one, other = load_file(file), load_file(tmp_path / "flower" / file.relative_to(tmp_path / "alone"))
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one), file
    for key in ("personal", "generic", "class_metrics", "calibration"):
        assert over_flower[key] == alone[key], key
    assert (grid.lost, grid.swallowed, grid.half) == ([], [], [])
    # personal state is in the folder of the hospital, and nowhere else
    state = tmp_path / "hospitals" / "site_a" / "run" / "sites" / "site_a"
    assert state.stat().st_mode & 0o777 == 0o700
    mine = load_file(state / "after-000002" / "client.safetensors")
    theirs = load_file(tmp_path / "alone" / "run" / "sites" / "site_a" / "after-000002" / "client.safetensors")
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[key], theirs[key]) for key in mine)
    assert not (tmp_path / "flower" / "run" / "sites").exists()
    lines = [
        json.loads(line) for line in (tmp_path / "hospitals" / "site_a" / "messages.jsonl").read_text().splitlines()
    ]
    assert [line["direction"] for line in lines] == ["received", "sent"] * (len(lines) // 2)


def test_a_site_with_another_study_refuses_with_the_differences(grid, sites) -> None:
    sites["site_b"].agreed["--coordinator.rounds"] = 3
    with pytest.raises(ConfigurationError, match=r"site_b is configured for another study: --coordinator.rounds is 3"):
        transport(grid).hello("run")
    assert "not set at the centre" in differences({"a": 1}, {})[0]
    # it would also refuse a fit, after a restart with another file
    ((_, fault),) = transport(grid).ask({"site_b": Request("fit", "run", 1)}, lambda name: None)
    assert isinstance(fault, Fault)
    assert fault.kind == "ConfigurationError"


def test_a_site_under_the_key_of_another_is_refused(grid, sites) -> None:
    grid.handlers["site_c"] = sites["site_b"].handle
    with pytest.raises(ConfigurationError, match="key of site site_c is used by a site that calls itself 'site_b'"):
        transport(grid).hello("run")


def test_a_site_that_does_not_come_is_named(grid) -> None:
    grid.online.remove("site_c")
    with pytest.raises(ConfigurationError, match="site_c: not connected for 0 s"):
        transport(grid).hello("run")


def test_an_oversized_reply_is_refused_and_the_run_goes_on(grid, sites, tmp_path) -> None:
    def oversized(message):
        reply = sites["site_b"].handle(message)
        if message.metadata.message_type != "train":
            return reply
        values, parts = unpacked(reply.content)
        return Message(packed(values, parts | {"more": {"x": torch.zeros(2**23)}}), reply_to=message)

    grid.handlers["site_b"] = oversized
    fit(grid, tmp_path)
    left_out = [row for row in records(tmp_path) if row["client"] == "site_b" and row["round"]]
    assert [row.get("left_out") for row in left_out] == ["StateError", "StateError"]


def test_the_text_of_an_error_does_not_leave(grid, sites, monkeypatch, caplog) -> None:
    def fails(name, request):
        raise ValueError("cannot read /images/Doe_Jane_1970.png")

    monkeypatch.setattr(sites["site_a"].client, "answer", fails)
    ((_, fault),) = transport(grid).ask({"site_a": Request("fit", "run", 1)}, lambda name: None)
    assert isinstance(fault, Fault)
    assert fault.kind == "ValueError"
    assert "Doe" not in fault.text + str(fault.error)
    assert "Doe" in caplog.text  # at the hospital itself
    assert "Doe" not in (sites["site_a"].folder / "messages.jsonl").read_text()


def test_a_hospital_that_cannot_be_evaluated_is_excluded_from_the_means(grid, sites, tmp_path, monkeypatch) -> None:
    """In round 0 and after the last round, too; the centre learns the kind of the error alone."""
    answer = sites["site_b"].client.answer

    def fails(name, request):
        if request.kind == "evaluate" and request.round != 1:
            raise ValueError("cannot read /images/Doe_Jane_1970.png")
        return answer(name, request)

    monkeypatch.setattr(sites["site_b"].client, "answer", fails)
    summary = fit(grid, tmp_path)
    assert summary["not_evaluated"] == {"site_b": [0, 2]}
    assert summary["best_on_validation"]["round"] == 1
    marked = [
        (row["round"], row["client"], row["not_evaluated"]) for row in records(tmp_path) if "not_evaluated" in row
    ]
    assert marked == [(0, "site_b", "ValueError"), (2, "site_b", "ValueError")]
    assert "Doe" not in (tmp_path / "run" / "rounds.jsonl").read_text() + json.dumps(summary)


@pytest.mark.parametrize("run", ["../elsewhere", "/tmp/x", "", "a" * 200])
def test_a_centre_cannot_choose_where_a_hospital_writes(grid, sites, run) -> None:
    ((_, fault),) = transport(grid).ask({"site_a": Request("fit", run, 1)}, lambda name: None)
    assert isinstance(fault, Fault)
    assert sorted(path.name for path in sites["site_a"].folder.iterdir()) == ["messages.jsonl"]


def test_flowers_own_app_answers_as_the_hospital_does(sites, grid, caplog) -> None:
    """The fallback: a stock SuperNode starts a process for each message."""
    app = client_app(lambda: sites["site_a"])
    context = Context(1, 2, {}, RecordDict(), {})
    grid.handlers["site_a"] = lambda message: app(message, context)
    hello = transport(grid).hello("run")["site_a"]
    assert hello.values["samples"] == sites["site_a"].client.answer("site_a", Request("hello", "run")).values["samples"]

    def fails():
        raise ValueError("cannot read /images/Doe_Jane_1970.png")

    broken = client_app(fails)
    grid.handlers["site_a"] = lambda message: broken(message, context)
    ((_, fault),) = transport(grid).ask({"site_a": Request("fit", "run", 1)}, lambda name: None)
    assert isinstance(fault, Fault)
    assert fault.kind == "ValueError"
    assert "Doe" not in fault.text
    with pytest.raises(ConfigurationError, match="stop flower-superexec"):
        server_app()(grid, context)


def test_a_message_of_another_kind_is_answered_by_the_kind_of_the_error(grid, sites) -> None:
    message = Message(RecordDict(), dst_node_id=2, message_type="train")
    message.metadata.__dict__["_message_id"] = "m"
    values, _ = unpacked(sites["site_a"].handle(message).content)
    assert values == {"site": "site_a", "fault": "StateError"}


def test_the_statement_names_all_that_a_fit_sends(sites, monkeypatch) -> None:
    client = sites["site_a"].client
    text = statement(client, "site_a", {"data.init_args.root": "/images"})
    for key, tensor in client.model.start().state.items():
        assert f"{key} {tuple(tensor.shape)}" in text
    assert "--data.init_args.root /images" in text
    assert "lora" not in text
    assert "subgroup" not in text
    monkeypatch.setattr(client.data, "subgroups", Subgroups(["sex", "age"], {}, 12))
    text = statement(client, "site_a", {})
    assert "of each subgroup by sex, age" in text
    assert "fewer than 12 images" in text


def test_options_of_a_hospital_are_not_compared() -> None:
    study = {
        "data.class_path": "pfedst.data.FolderSites",
        "data.init_args.root": "/images",
        "data.init_args.class_names": ["a"],
        "data.init_args.site_names": ["x"],
        "data.init_args.only_sites": ["x"],
        "data.init_args.subgroups": ["sex"],
        "data.init_args.batch_size": 4,
        "data.init_args.augmentation.class_path": "Flip",
        "model.encoder.init_args.weights": "clip.safetensors",
        "coordinator.threads": 2,
        "coordinator.rounds": 3,
        "flower.sites": ["x"],
    }
    assert shared_study(study) == {
        "coordinator.rounds": 3,
        "data.init_args.augmentation.class_path": "Flip",
        "data.init_args.batch_size": 4,
    }


def test_the_data_of_the_centre_hold_no_images() -> None:
    data = RemoteSites(class_names=["b", "a"], batch_size=4)
    assert data.class_names == ("b", "a")
    with pytest.raises(Exception, match="RemoteSites has no images: at the centre add"):
        data.prepare(small.encoder().preprocessing)


@pytest.mark.parametrize("name", sorted(registered_methods()))
def test_a_method_runs_between_hospitals_or_is_refused_with_the_reason(name) -> None:
    method = registered_methods()[name]()
    module = small.template(method).build(CLASSES, method, 0)
    reason = reason_against(method, module.model, SITES)
    assert (reason is not None) == (name == "Pooled")


@pytest.mark.parametrize("name", sorted(set(registered_methods()) - {"Pooled"}))
def test_the_replies_of_a_method_are_those_in_one_process(name, tmp_path) -> None:
    """Prototypes, a fit and an evaluation, through Flower's messages and without."""
    method = registered_methods()[name]()
    there, here = hospital("site_a", method, tmp_path / "there"), client_at("site_a", method, tmp_path)
    here.keep_state_in(tmp_path / "here")
    server = server_of(here)
    grid = FakeGrid({"site_a": there.handle})
    flower = Flower(grid, ["site_a"], there.agreed, **SHORT)
    evaluated = Request("evaluate", "run", 1, evaluate=("test",), parts=server.parts_to_evaluate("site_a", False))
    requests = [evaluated]
    if server.trains:
        requests = [Request("fit", "run", 1, parts=server.parts_for("site_a")), replace(evaluated, after=1)]
    for request in requests:
        ((_, got),) = flower.ask({"site_a": request}, lambda name: None)
        expected = here.answer("site_a", request)
        assert isinstance(got, Reply), got.text
        assert same(got.parts, expected.parts)
        for reply in (got, expected):
            for key in ("fit_seconds", "peak_memory_bytes"):
                reply.values.get("record", {}).pop(key, None)
        assert {key: value for key, value in got.values.items() if key != "site"} == expected.values


def test_a_method_that_shows_images_of_another_site_is_refused() -> None:
    method = registered_methods()["FACMIC"](target="held_out_site", target_site="site_c")
    module = small.template(method).build(CLASSES, method, 0)
    with pytest.raises(ConfigurationError, match="shows the images of site site_c"):
        check_method(method, module.model, SITES)


def test_one_site_alone_has_its_part_of_all_images(tmp_path) -> None:
    client = client_at("site_b", PFedST(), tmp_path)
    assert list(client.data.sites) == ["site_b"]
    assert client.data.samples("site_b", "test") == small.prepared().samples("site_b", "test")
