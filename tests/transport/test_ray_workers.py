"""Workers on a cluster, with Ray as a table in this process; `test_ray_cluster.py` has Ray itself."""

import importlib
import socket
import sys

import pytest

from pfedst.errors import ConfigurationError, NoAnswerError, TooFewClientsError
from pfedst.methods.pfedst import PFedST
from pfedst.testing import small
from tests.transport.fake_ray import FakeRay
from tests.transport.test_processes import digests, records


@pytest.fixture
def cluster(monkeypatch):
    """A function that makes a cluster; its module stands for `ray`."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)

    def of(*processors, **options):
        ray = FakeRay(processors, **options)
        monkeypatch.setitem(sys.modules, "ray", ray)
        monkeypatch.delitem(sys.modules, "pfedst.transport.ray_cluster", raising=False)
        return ray, importlib.import_module("pfedst.transport.ray_cluster")

    yield of
    sys.modules.pop("pfedst.transport.ray_cluster", None)


def fit(folder, kind="ray", **options):
    return small.fit(folder / kind, PFedST(), transport=kind, threads=1, **options)


def test_a_run_on_workers_has_the_bits_of_one_without(cluster, tmp_path) -> None:
    ray, _ = cluster(1, 1)
    fit(tmp_path)
    assert len(ray.killed) == 2  # the workers of two machines, at the end
    assert not ray.is_initialized()
    fit(tmp_path, "in_process")
    assert digests(tmp_path / "ray") == digests(tmp_path / "in_process")
    assert records(tmp_path / "ray") == records(tmp_path / "in_process")


def test_a_cluster_that_was_there_stays(cluster, tmp_path) -> None:
    ray, _ = cluster(4)
    ray.init("auto")
    fit(tmp_path, rounds=1)
    assert ray.is_initialized()
    assert len(ray.killed) == 3  # no more workers than clients


def test_a_worker_that_ends_is_replaced(cluster, tmp_path, caplog) -> None:
    asked = []

    def dies(name):
        asked.append(name)
        return name == "site_b" and asked.count("site_b") == 3  # evaluated at the start, then its first fits

    cluster(1, dies=dies)
    summary = fit(tmp_path)
    assert summary["left_out"] == {"site_b": {"NoAnswerError": 1}}
    assert "ended, or its machine left the cluster (EndedError)" in caplog.text


def test_a_worker_without_a_place_is_given_up(cluster, tmp_path, monkeypatch) -> None:
    ray, module = cluster(1, 1)
    wait = ray.wait
    monkeypatch.setattr(module, "START_SECONDS", 0.0)
    monkeypatch.setattr(ray, "wait", lambda references, timeout=None: ([], []) if timeout == 0.0 else wait(references))
    with pytest.raises(NoAnswerError, match="worker 0 found no place in the Ray cluster within 0 s"):
        fit(tmp_path)


def test_all_workers_fail(cluster, tmp_path) -> None:
    cluster(1, dies=lambda name: True)
    with pytest.raises((TooFewClientsError, NoAnswerError)):
        fit(tmp_path)


@pytest.mark.parametrize(
    ("processors", "options", "words"),
    [
        ((0,), {}, "room for 0 workers of 1 CPU"),
        ((1, 1), {"workers": 3}, "room for 2 workers of 1 CPU, not for --coordinator.workers 3"),
    ],
)
def test_workers_without_room_are_refused(cluster, tmp_path, processors, options, words) -> None:
    cluster(*processors)
    with pytest.raises(ConfigurationError, match=words):
        fit(tmp_path, **options)


def test_what_cannot_be_sent_is_refused(cluster, tmp_path, monkeypatch) -> None:
    ray, _ = cluster(1)
    monkeypatch.setattr(ray, "put", lambda value: (_ for _ in ()).throw(TypeError("cannot pickle a generator")))
    with pytest.raises(ConfigurationError, match="this run cannot be sent to the workers"):
        fit(tmp_path)


def test_an_address_where_nothing_listens_is_refused_at_once(cluster, tmp_path, monkeypatch) -> None:
    """Ray itself tried for three minutes, and then ended the process."""
    cluster(1)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{taken.getsockname()[1]}")
        with pytest.raises(NoAnswerError, match="start it"):
            fit(tmp_path)


def test_a_folder_that_another_machine_does_not_have_is_refused(cluster, tmp_path) -> None:
    _, module = cluster(1)
    module.check_shared(None)
    module.check_shared(tmp_path / "sites")
    with pytest.raises(ConfigurationError, match="a file system that they share"):
        module.check_shared(tmp_path / "elsewhere" / "sites")
