"""Worker processes give the bits of a run in one process, for every method, and report clearly what went wrong."""

import copy
import hashlib
import os
import signal
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from pfedst_baselines.fedavg import FedAvg
from safetensors.torch import load_file

from pfedst.client.exchange import start_maker
from pfedst.client.training import LocalTrainer
from pfedst.errors import ConfigurationError, PfedstError, TooFewClientsError
from pfedst.messages.payload import from_bytes, to_bytes
from pfedst.messages.requests import Reply, Request
from pfedst.methods.pfedst import PFedST
from pfedst.methods.registry import registered_methods
from pfedst.server.server import Server
from pfedst.simulation import make_client
from pfedst.testing import small
from pfedst.torch_threads import torch_threads
from pfedst.transport.in_process import InProcess
from pfedst.transport.processes import Processes, fitting_workers, gpu_variables
from pfedst.transport.workers import answer

SPLITS = ("validation", "test")


class Fails(FedAvg):
    """Each site in a way of its own."""

    def edit_gradients(self, client) -> None:
        if client.name == "site_a":
            raise PfedstError("the client has had enough: give it a rest")
        if client.name == "site_b":
            raise ZeroDivisionError("a defect")
        os.kill(os.getpid(), signal.SIGKILL)


def client_of(method, sites, seed=0):
    sgd = {"optimizer": partial(torch.optim.SGD, lr=0.01)} if type(method).__name__ == "PFedMe" else {}
    local = LocalTrainer(small.trainer(max_epochs=method.fewest_local_epochs))
    return make_client(small.template(method, **sgd), small.prepared(), method, seed, local, sites)


def server_of(client):
    """A server whose prototypes, if it needs any, are merged."""
    samples = {site: client.data.samples(site, "train") for site in client.data.sites}
    server = Server(client.method, samples, start_maker(client.model), client.run_seed)
    if server.needs_prototypes:
        parts = [
            client.answer(site, Request("prototypes", "run")).parts["prototypes"] for site in server.training_sites
        ]
        server.merge_prototypes([part["sums"] for part in parts], [part["counts"] for part in parts])
    server.begin()
    return server


def elsewhere(client, name, request):
    """The reply of another process, as it arrives here."""
    got = answer(client, name, request.values(), to_bytes(request.parts))
    assert type(got) is tuple, got
    return Reply(got[0], from_bytes(got[1]))


def same(one, other) -> bool:
    """Nested dicts and lists with tensors, bit for bit."""
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


def without_times(record):
    return {key: value for key, value in record.items() if key not in ("fit_seconds", "peak_memory_bytes")}


@pytest.mark.parametrize("name", sorted(registered_methods()))
def test_a_fit_elsewhere_is_the_fit_here_for_every_method(name, tmp_path) -> None:
    here = client_of(registered_methods()[name](), tmp_path / "here")
    server = server_of(here)
    if not server.trains:
        pytest.skip(f"{name} trains nothing")
    there = copy.deepcopy(here)
    there.sites = tmp_path / "there"
    there.own_memory()
    for tensor in there.model.own_tensors().values():  # a worker has trained other clients before
        if tensor.is_floating_point():
            torch.nn.init.normal_(tensor)
    trainee = server.names[0]
    for number in (1, 2):  # the second continues with a kept optimiser and a memo
        request = Request(
            "fit",
            "run",
            number,
            number - 1,
            keep_optimizer=True,
            evaluate=SPLITS,
            parts=server.parts_for(trainee),
        )
        result, expected = elsewhere(there, trainee, request), here.answer(trainee, request)
        assert same(without_times(result.values["record"]), without_times(expected.values["record"]))
        assert same(result.parts, expected.parts)
        files = [f"{trainee}/after-{number:06d}/{part}.safetensors" for part in ("client", "message")]
        for file in files:
            assert same(load_file(tmp_path / "there" / file), load_file(tmp_path / "here" / file))
        server.merge({trainee: expected.parts})


def test_an_evaluation_elsewhere_is_the_evaluation_here(tmp_path) -> None:
    here = client_of(PFedST(), tmp_path / "sites")
    server = server_of(here)
    fit = Request("fit", "run", 1, parts=server.parts_for("site_a"))
    server.merge({"site_a": here.answer("site_a", fit).parts})
    there = copy.deepcopy(here)
    there.own_memory()
    request = Request("evaluate", "run", 1, 1, evaluate=SPLITS, parts=server.parts_for("site_a"))
    result = elsewhere(there, "site_a", request)
    assert result.parts == {}
    assert result.values == here.answer("site_a", request).values
    assert result.values["evaluated"]["test"].keys() == {"personal", "generic"}


def test_messages_come_back_as_they_were_and_share_no_memory() -> None:
    tensor = torch.randn(3, 4)
    parts = {
        "net": {"a": tensor, "b": tensor.bfloat16(), "c": tensor.T},
        "control": {"0": torch.tensor(2.5), "c": torch.empty(0, 2), "d": torch.arange(4), "e": torch.tensor([True])},
        "none": {},
    }
    got = from_bytes(to_bytes(parts))
    assert same(got, parts)
    got["net"]["a"].zero_()
    assert tensor.abs().sum() > 0


def test_a_message_that_does_not_fit_is_refused(tmp_path) -> None:
    client = client_of(FedAvg(), tmp_path)
    parts = server_of(client).parts_for("site_a")
    del parts["net"][next(iter(parts["net"]))]
    fault = answer(client, "site_a", Request("fit", "run", 1).values(), to_bytes(parts))
    assert fault.kind == "StateError"
    assert "site_a" in fault.text


# -- processes ---------------------------------------------------------------------------------------------------------


def digests(folder):
    """SHA-256 of all saved tensors by file."""
    run = folder / "run"
    files = sorted([*(run / "state").rglob("*.safetensors"), *(run / "sites").rglob("*.safetensors")])
    return {str(file.relative_to(run)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def records(folder):
    lines = (folder / "run" / "rounds.jsonl").read_text().splitlines()
    cut = ('"fit_seconds"', '"peak_memory_bytes"')
    return [",".join(part for part in line.split(",") if not part.strip().startswith(cut)) for line in lines]


def test_a_run_in_processes_leaves_the_bits_of_one_in_this_process(tmp_path) -> None:
    options = {"optimizer_state": "keep", "participation": 0.7, "threads": 1}
    summaries = [
        small.fit(tmp_path / kind, PFedST(), transport=kind, **options, **workers)
        for kind, workers in (("in_process", {}), ("processes", {"workers": 2}))
    ]
    assert digests(tmp_path / "in_process") == digests(tmp_path / "processes")
    assert any(Path(name).parts[0] == "sites" for name in digests(tmp_path / "processes"))
    assert records(tmp_path / "in_process") == records(tmp_path / "processes")
    assert summaries[0]["protocol"] == summaries[1]["protocol"]
    assert summaries[0]["personal"] == summaries[1]["personal"]


def test_errors_of_a_worker_are_reported_here(tmp_path, caplog) -> None:
    with pytest.raises(TooFewClientsError) as caught:
        small.fit(tmp_path, Fails(), transport="processes", workers=1, threads=1, evaluate_every=2)
    assert "site_a (PfedstError), site_b (ZeroDivisionError), site_c (NoAnswerError)" in str(caught.value)
    for words in ("has had enough", "ZeroDivisionError: a defect", "worker 0 ended (exit code -9"):
        assert words in caplog.text


class NotAtTheStart(PFedST):
    """Site b cannot be evaluated in round 0."""

    def personal_model(self, client):
        if (client.name, client.round) == ("site_b", 0):
            raise PfedstError("no images")
        return super().personal_model(client)


def test_a_site_that_cannot_be_evaluated_by_a_worker_is_excluded(tmp_path) -> None:
    summary = small.fit(tmp_path, NotAtTheStart(), transport="processes", workers=1, threads=1, rounds=1)
    assert summary["not_evaluated"] == {"site_b": [0]}


def test_a_run_that_cannot_be_sent_to_a_process_is_refused(tmp_path) -> None:
    class Local(FedAvg):
        """Not of a module."""

    with pytest.raises(ConfigurationError, match="cannot be sent to another process"):
        small.fit(tmp_path, Local(), transport="processes", workers=1)


# -- options -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"workers": 2}, "--coordinator.transport processes"),
        ({"workers": 0, "transport": "processes"}, "--coordinator.workers 0"),
        ({"threads": 0}, "--coordinator.threads 0"),
    ],
)
def test_options_out_of_range(tmp_path, options, words) -> None:
    with pytest.raises(ConfigurationError, match=words):
        small.fit(tmp_path, FedAvg(), **options)


def test_a_cluster_needs_its_extra(tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "pfedst.transport.ray_cluster", raising=False)
    with pytest.raises(ConfigurationError, match=r"pip install 'pfedst\[ray\]'"):
        small.fit(tmp_path, FedAvg(), transport="ray")


def test_workers_and_threads_are_chosen_to_fit() -> None:
    client = client_of(FedAvg(), None)
    with torch_threads(4):
        assert fitting_workers(torch.device("cpu"), 0) == 4
        chosen = []
        for threads, workers in ((None, None), (None, 2), (None, 9), (3, 2)):
            made = Processes(client, threads, workers)
            chosen.append((made.workers, client.threads))
        assert chosen == [(3, 1), (2, 2), (3, 1), (2, 3)]  # three clients
        InProcess(client, None)
        assert client.threads == 4


def test_a_request_runs_on_its_threads_and_leaves_them_as_they_were(monkeypatch) -> None:
    client, seen = client_of(FedAvg(), None), []
    monkeypatch.setattr(client, "_fit", lambda name, request: seen.append(torch.get_num_threads()) or Reply({}))
    before = torch.get_num_threads()
    list(InProcess(client, 3).ask({"site_a": Request("fit", "run", 1)}, lambda name: None))
    assert seen == [3]
    assert torch.get_num_threads() == before


def test_the_client_with_most_images_goes_first(tmp_path) -> None:
    client = client_of(FedAvg(), tmp_path)
    parts = server_of(client).parts_for("site_a")
    requests = {f"site_{letter}": Request("evaluate", "run", evaluate=("test",), parts=parts) for letter in "cba"}
    started = []
    with Processes(client, 1, 1) as transport:
        assert {name for name, reply in transport.ask(requests, started.append) if isinstance(reply, Reply)} == {
            *requests
        }
    assert started == ["site_a", "site_b", "site_c"]  # of 24, 18 and 15 images


@pytest.mark.parametrize(
    ("given", "gpus", "seen"), [("4,7", 0, "474"), ("", 2, "   "), (None, 0, "   "), (None, 2, "010")]
)
def test_workers_take_the_visible_gpus_in_turns(monkeypatch, given, gpus, seen) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if given is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    found = [gpu_variables(index) for index in range(3)]
    assert found == [{} if gpu == " " else {"CUDA_VISIBLE_DEVICES": gpu} for gpu in seen]
