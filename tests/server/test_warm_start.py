"""A run that begins with the tensors of another one: the same bits, other runs that do not fit, and resuming."""

import json
import shutil

import pytest
import torch
from pfedst_baselines.fedavg import FedAvg
from pfedst_baselines.local import Local
from pfedst_baselines.scaffold import SCAFFOLD
from pfedst_baselines.zero_shot import ZeroShot

from pfedst import simulation
from pfedst.adapters import LoRATower
from pfedst.client.module import FederatedClient
from pfedst.data import SyntheticSites
from pfedst.encoders import FrozenCLIP
from pfedst.errors import ConfigurationError, DataError, PfedstError, StateError
from pfedst.methods.interface import FederatedMethod
from pfedst.reporting import RunFolder
from pfedst.server.coordinator import FederatedCoordinator
from pfedst.server.warm_start import WarmStart
from pfedst.state.snapshot import read_snapshot
from pfedst.testing.small import data, encoder, fit, template, trainer
from tests.server.runs import left, same, without_times


class OnePersonal(FederatedMethod):
    """Keeps one tensor of the adapter at the clients."""

    def partition(self, client):
        return [(min(client.adapter.state_dict()), "personal"), ("*", "shared")]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("source")
    return folder / "run", fit(folder, FedAvg(), rounds=2)


def warm(folder, init, method=None, sites=None, model=None, resume=False, seed=1, init_from=None, **coordinator):
    method = method or FedAvg()
    run = RunFolder(folder / "run") if resume else RunFolder.create(folder, "run", "run")
    rounds = FederatedCoordinator(**({"rounds": 2} | coordinator))
    given = rounds, model or template(method), sites or data(), method
    return simulation.fit(*given, trainer(), run, seed, resume, warm_start=init_from or WarmStart.of_run(str(init)))


def server_state(folder, name):
    return read_snapshot(folder / "state" / name).parts["server"]


def test_round_0_holds_the_bits_of_the_source_and_evaluates_them(tmp_path, source) -> None:
    folder, summary = source
    found = warm(tmp_path, folder, keep_states=9)
    then, now = server_state(folder, "round-000002"), server_state(tmp_path / "run", "round-000000")
    for key, tensor in then["method"]["net"].items():
        assert torch.equal(now["method"]["net"][key], tensor), key
    assert torch.equal(now["anchors"]["classes"], then["anchors"]["classes"])
    records = [json.loads(line) for line in (tmp_path / "run/rounds.jsonl").read_text().splitlines()]
    at_start = {r["client"]: r["received"]["test"]["personal"] for r in records if r["round"] == 0}
    assert at_start == summary["personal"]["clients"]
    assert [r["setup_upload_bytes"] for r in records if r["round"] == 0] == [0, 0, 0]
    init = found["protocol"]["init"]
    assert (init["name"], init["round"]) == ("run", 2)
    assert len(init["sha256"]) == 64
    assert "init" not in summary["protocol"]


def test_the_best_round_of_the_source(tmp_path, source) -> None:
    folder, summary = source
    warm(tmp_path, f"{folder}@best", keep_states=9)
    then, now = server_state(folder, "best"), server_state(tmp_path / "run", "round-000000")
    assert all(torch.equal(now["method"]["net"][key], tensor) for key, tensor in then["method"]["net"].items())
    init = RunFolder(tmp_path / "run").summary()["protocol"]["init"]
    assert init["round"] == summary["best_on_validation"]["round"]


def test_the_hash_is_of_the_content_and_not_of_the_path(tmp_path, source) -> None:
    folder, _ = source
    shutil.copytree(folder, tmp_path / "copy")
    one, other = WarmStart.of_run(str(folder)), WarmStart.of_run(str(tmp_path / "copy"))
    assert one.study == other.study
    assert one.study != WarmStart.of_run(f"{folder}@1").study


def test_a_method_with_a_state_starts_it_anew(tmp_path, source) -> None:
    folder, _ = source
    warm(tmp_path, folder, SCAFFOLD(), keep_states=9)
    then, now = (
        server_state(place, name)["method"]
        for place, name in ((folder, "round-000002"), (tmp_path / "run", "round-000000"))
    )
    assert all(torch.equal(now["net"][key], tensor) for key, tensor in then["net"].items())
    assert now["control"]
    assert not any(tensor.any() for tensor in now["control"].values())


def test_personal_tensors_are_not_taken(tmp_path, source) -> None:
    """What the source shares and this run keeps at its clients begins as in a run without a warm start."""
    warm(tmp_path, source[0], OnePersonal(), keep_states=9, rounds=1)
    shared = server_state(tmp_path / "run", "round-000000")["method"]["net"]
    taken = WarmStart.of_run(str(source[0])).tensors
    assert shared.keys() < taken.keys()
    assert all(torch.equal(tensor, taken[key]) for key, tensor in shared.items())


class Reversed(SyntheticSites):
    """The same images, whose classes come in another order."""

    def read(self):
        found = super().read()
        return found.with_classes(found.class_names[::-1])


SITES = {"sites": 3, "samples_per_site": [24, 18, 15], "test_samples_per_site": [12, 12, 12]}


def test_classes_in_another_order_are_mapped(tmp_path, source) -> None:
    folder, summary = source
    sites = Reversed(batch_size=8, image_size=32, audit="off", classes=3, **SITES)
    found = warm(tmp_path, folder, sites=sites)
    assert found["protocol"]["classes"] == summary["protocol"]["classes"]


def linear(encoder_, head):
    return LoRATower(encoder_, head)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"sites": {"classes": 2}}, DataError, r"classes that these data do not name: keratosis"),
        ({"sites": {"classes": 4}}, DataError, r"vascular"),
        ({"encoder": FrozenCLIP("vit-nano", weights="random", image_size=48)}, StateError, r"another encoder"),
        ({"adapter": linear}, StateError, r"another adapter: .*which is not here"),
        ({"method": Local()}, PfedstError, r"."),
        ({"method": ZeroShot()}, StateError, r"--model.anchors as there|another adapter"),
    ],
    ids=["fewer classes", "more classes", "encoder", "adapter", "nothing shared", "anchors"],
)
def test_a_source_that_does_not_fit_is_refused(tmp_path, source, options, error, message) -> None:
    method = options.get("method", FedAvg())
    sites = data(**({"classes": 3} | options.get("sites", {})))
    model = template(method)
    if "encoder" in options:
        model = FederatedClient(options["encoder"], anchors="prototypes")
    if "adapter" in options:
        model = FederatedClient(encoder(), options["adapter"], anchors="prototypes")
    if isinstance(method, Local):  # it shares nothing, but takes the class anchors
        warm(tmp_path, source[0], method, sites, model, rounds=1)
        return
    with pytest.raises(error, match=message):
        warm(tmp_path, source[0], method, sites, model)


def test_a_source_that_keeps_tensors_at_its_clients_is_refused_by_key(tmp_path) -> None:
    fit(tmp_path / "personal", OnePersonal(), rounds=1)
    with pytest.raises(StateError, match=r"does not share tensors that this run shares.*: \w+\."):
        warm(tmp_path / "warm", tmp_path / "personal/run")


@pytest.mark.parametrize("name", ["missing", "empty"])
def test_a_folder_that_is_no_run_is_refused(tmp_path, name) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigurationError, match=r"--init .*: no run in"):
        WarmStart.of_run(str(tmp_path / name))


def test_a_round_that_is_not_kept_is_refused(source) -> None:
    with pytest.raises(ConfigurationError, match=r"round 9 of .* is not kept. Kept are"):
        WarmStart.of_run(f"{source[0]}@9")


def test_a_resumed_run_reads_the_source_no_more(tmp_path, source) -> None:
    shutil.copytree(source[0], tmp_path / "source")
    whole = warm(tmp_path / "whole", tmp_path / "source", rounds=3)
    warm(tmp_path / "cut", tmp_path / "source", rounds=2)
    shutil.rmtree(tmp_path / "source")
    continued = WarmStart.continued(RunFolder(tmp_path / "cut/run").identity())
    found = warm(tmp_path / "cut", None, resume=True, rounds=3, init_from=continued)
    assert without_times(found) == without_times(whole)
    same(left(tmp_path / "cut"), left(tmp_path / "whole"))
