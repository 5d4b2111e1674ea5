"""Workers give the bits of a sequential run, for every method, and say clearly what went wrong."""

import copy
import hashlib
import os
import signal

import pytest
import torch
from pfedst_baselines.fedavg import FedAvg

from pfedst.client.client import ClientWork, Evaluate, Fit, longest_first
from pfedst.client.training import LocalTrainer
from pfedst.errors import ConfigurationError, PfedstError, TooFewClientsError
from pfedst.methods.pfedst import PFedST
from pfedst.methods.registry import registered_methods
from pfedst.testing import small
from pfedst.transport.processes import (
    ProcessExecutor,
    SequentialExecutor,
    fitting_workers,
    make_executor,
    torch_threads,
    visible_gpu,
)
from pfedst.transport.workers import answer, load, packed, state_for, unpacked

SPLITS = ("validation", "test")


class Fails(FedAvg):
    """Each site in a way of its own."""

    def edit_gradients(self, client) -> None:
        if client.name == "site_a":
            raise PfedstError("the client has had enough: give it a rest")
        if client.name == "site_b":
            raise ZeroDivisionError("a defect")
        os.kill(os.getpid(), signal.SIGKILL)


def work_on(method, seed=0):
    options = (
        {"optimizer": lambda params: torch.optim.SGD(params, lr=0.01)} if type(method).__name__ == "PFedMe" else {}
    )
    made = small.federation(method, seed, **options)
    local = LocalTrainer(small.trainer(max_epochs=method.fewest_local_epochs))
    return ClientWork(made, small.prepared(), local)


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
def test_a_fit_elsewhere_is_the_fit_here_for_every_method(name) -> None:
    here = work_on(registered_methods()[name]())
    if not here.federation.trains:
        pytest.skip(f"{name} trains nothing")
    elsewhere = ClientWork(copy.deepcopy(here.federation), here.data, here.local)
    trainee = next(iter(here.federation.trainees))
    for name_of_other, client in elsewhere.federation.members.items():
        if name_of_other != trainee:  # a worker has seen other rounds of other clients
            torch.nn.init.normal_(next(iter(client.parameters())))
    for round_number in (1, 2):  # the second starts from a kept optimiser and a memo
        for made in (here.federation, elsewhere.federation):
            made.deliver(trainee)
        task = Fit(trainee, round_number, None, True, SPLITS)
        result, state = answer(elsewhere, task, state_for(here.federation, task))
        expected = here.do(task)
        assert same(without_times(result), without_times(expected))
        client = here.federation.trainees[trainee]
        after = {"own": client.own_state(), "memo": client.memo, "optimizer_state": client.optimizer_state}
        got = unpacked(state)
        assert same({key: got[key] for key in after}, after)
        assert got["round"] == round_number
        assert not got["finetuning"]


def test_an_evaluation_elsewhere_is_the_evaluation_here() -> None:
    here = work_on(PFedST())
    elsewhere = ClientWork(copy.deepcopy(here.federation), here.data, here.local)
    for parameter in (*here.federation.clients["site_a"].parameters(), *here.federation.generic.parameters()):
        torch.nn.init.normal_(parameter, std=0.1)
    task = Evaluate("site_a", SPLITS)
    result, state = answer(elsewhere, task, state_for(here.federation, task))
    assert state is None
    assert result == here.do(task)
    assert result["test"]["personal"] != result["test"]["generic"]


def test_what_travels_comes_back_as_it_was_and_shares_no_memory() -> None:
    tensor = torch.randn(3, 4)
    value = {
        "a": [tensor, (tensor.bfloat16(), 3, None)],
        "b": {0: torch.tensor(2.5), "c": torch.empty(0, 2), "d": torch.arange(4), "e": torch.tensor([True])},
        "f": "text",
    }
    got = unpacked(packed(value))
    assert same(got, value)
    assert type(got["a"]) is list
    assert type(got["a"][1]) is tuple
    got["a"][0].zero_()
    assert tensor.abs().sum() > 0


def test_a_state_that_does_not_fit_is_refused() -> None:
    made = small.federation(FedAvg())
    client = made.clients["site_a"]
    sent = state_for(made, Fit("site_a", 1, None, False, ()))[0]
    del sent["own"][next(iter(sent["own"]))]
    with pytest.raises(PfedstError, match="site_a"):
        load(client, sent)


# -- processes ---------------------------------------------------------------------------------------------------------


def digests(folder):
    files = sorted((folder / "run" / "state").rglob("*.safetensors"))
    return [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]


def records(folder):
    lines = (folder / "run" / "rounds.jsonl").read_text().splitlines()
    cut = ('"fit_seconds"', '"peak_memory_bytes"')
    return [",".join(part for part in line.split(",") if not part.strip().startswith(cut)) for line in lines]


def test_a_run_in_processes_leaves_the_bits_of_a_sequential_one(tmp_path) -> None:
    options = {"optimizer_state": "keep", "participation": 0.7, "threads": 1}
    summaries = [
        small.fit(tmp_path / kind, PFedST(), executor=kind, **options, **workers)
        for kind, workers in (("sequential", {}), ("processes", {"workers": 2}))
    ]
    assert digests(tmp_path / "sequential") == digests(tmp_path / "processes")
    assert records(tmp_path / "sequential") == records(tmp_path / "processes")
    assert summaries[0]["protocol"] == summaries[1]["protocol"]
    assert summaries[0]["personal"] == summaries[1]["personal"]


def test_what_goes_wrong_in_a_worker_is_told_here(tmp_path, caplog) -> None:
    with pytest.raises(TooFewClientsError) as caught:
        small.fit(tmp_path, Fails(), executor="processes", workers=1, threads=1, evaluate_every=2)
    assert "site_a (PfedstError), site_b (ZeroDivisionError), site_c (NoAnswerError)" in str(caught.value)
    for words in ("has had enough", "ZeroDivisionError: a defect", "worker 0 ended (exit code -9"):
        assert words in caplog.text


def test_what_cannot_be_sent_to_a_process_is_told(tmp_path) -> None:
    class Local(FedAvg):
        """Not of a module."""

    with pytest.raises(ConfigurationError, match="cannot be sent to another process"):
        small.fit(tmp_path, Local(), executor="processes", workers=1)


# -- options -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"workers": 2}, "--coordinator.executor processes"),
        ({"workers": 0, "executor": "processes"}, "--coordinator.workers 0"),
        ({"threads": 0}, "--coordinator.threads 0"),
    ],
)
def test_options_out_of_range(tmp_path, options, words) -> None:
    with pytest.raises(ConfigurationError, match=words):
        small.fit(tmp_path, FedAvg(), **options)


def test_workers_and_threads_are_chosen_to_fit() -> None:
    work = work_on(FedAvg())
    with torch_threads(4):
        assert fitting_workers(torch.device("cpu"), work.federation) == 4
        chosen = [make_executor("processes", work, None, workers, None) for workers in (None, 2, 9)]
        assert all(isinstance(executor, ProcessExecutor) for executor in chosen)
        assert [(e.workers, e.threads) for e in chosen] == [(3, 1), (2, 2), (3, 1)]  # three clients
        assert make_executor("processes", work, 3, 2, None).threads == 3
        sequential = make_executor("sequential", work, None, None, None)
        assert isinstance(sequential, SequentialExecutor)
        assert sequential.threads == 4


def test_a_task_runs_on_its_threads_and_leaves_them_as_they_were(monkeypatch) -> None:
    work, seen = work_on(FedAvg()), []
    monkeypatch.setattr(work, "do", lambda task: seen.append(torch.get_num_threads()) or {})
    before = torch.get_num_threads()
    list(SequentialExecutor(work, 3).run([Fit("site_a", 1, None, False, ())], lambda task: None))
    assert seen == [3]
    assert torch.get_num_threads() == before


def test_the_client_with_most_images_goes_first() -> None:
    tasks = [Evaluate(name, SPLITS) for name in "abc"]
    assert [task.name for task in longest_first(tasks, {"a": 2, "b": 9, "c": 5})] == ["b", "c", "a"]


@pytest.mark.parametrize(("given", "seen"), [("4,7", ["4", "7", "4"]), ("", ["", "", ""]), (None, [None] * 3)])
def test_workers_take_the_visible_gpus_in_turns(monkeypatch, given, seen) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if given is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    found = []
    for index in range(3):
        with visible_gpu(index):
            found.append(os.environ.get("CUDA_VISIBLE_DEVICES"))
        assert os.environ.get("CUDA_VISIBLE_DEVICES") == given
    assert found == seen
