"""Actors of a Ray cluster of two machines, here two raylets on loopback: `make check-hospitals` runs this file."""

import os
import signal
import time

import pytest

from pfedst.errors import ConfigurationError, NoAnswerError, TooFewClientsError
from pfedst.methods.pfedst import PFedST
from pfedst.testing import small
from tests.transport.test_processes import Fails, NotAtTheStart, digests, records

pytestmark = pytest.mark.hospitals
RAY = {"transport": "ray", "threads": 1}


@pytest.fixture(scope="module")
def cluster():
    """Two machines of one processor each."""
    pytest.importorskip("ray", reason="pip install 'pfedst[ray]'")
    from ray.cluster_utils import Cluster

    started = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    second = started.add_node(num_cpus=1)
    started.wait_for_nodes()
    yield started, second
    started.shutdown()


@pytest.fixture(autouse=True)
def address(cluster, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", cluster[0].address)


def test_a_run_on_two_machines_leaves_the_bits_of_one_in_this_process(tmp_path, monkeypatch) -> None:
    from pfedst.transport.ray_cluster import RayCluster, ray

    machines, receive = set(), RayCluster._greeting

    def greeting(pool, worker):
        answer = receive(pool, worker)
        machines.update(
            actor["Address"]["NodeID"] for actor in ray._private.state.actors().values() if actor["State"] == "ALIVE"
        )
        return answer

    monkeypatch.setattr(RayCluster, "_greeting", greeting)
    options = {"optimizer_state": "keep", "participation": 0.7, "threads": 1}
    summaries = [small.fit(tmp_path / kind, PFedST(), transport=kind, **options) for kind in ("in_process", "ray")]
    assert len(machines - {""}) == 2
    assert digests(tmp_path / "in_process") == digests(tmp_path / "ray")
    assert records(tmp_path / "in_process") == records(tmp_path / "ray")
    assert summaries[0]["protocol"] == summaries[1]["protocol"]
    assert summaries[0]["personal"] == summaries[1]["personal"]


def test_errors_of_a_worker_are_reported_here(tmp_path, caplog) -> None:
    with pytest.raises(TooFewClientsError) as caught:
        small.fit(tmp_path, Fails(), evaluate_every=2, **RAY)
    assert "site_a (PfedstError), site_b (ZeroDivisionError), site_c (NoAnswerError)" in str(caught.value)
    for words in ("has had enough", "ZeroDivisionError: a defect", "ended, or its machine left the cluster"):
        assert words in caplog.text


def test_a_site_that_cannot_be_evaluated_is_excluded(tmp_path) -> None:
    assert small.fit(tmp_path, NotAtTheStart(), rounds=1, **RAY)["not_evaluated"] == {"site_b": [0]}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"threads": 1, "workers": 3}, "room for 2 workers of 1 CPU, not for --coordinator.workers 3"),
        ({"threads": 2}, "room for 0 workers of 2 CPU; the processors"),
    ],
)
def test_workers_without_a_place_are_refused(tmp_path, options, words) -> None:
    with pytest.raises(ConfigurationError, match=words):
        small.fit(tmp_path, PFedST(), transport="ray", **options)


def test_a_machine_that_leaves_costs_one_site_one_round(cluster, tmp_path, monkeypatch, caplog) -> None:
    started, second = cluster
    from pfedst.transport import ray_cluster

    sent, send, state = [], ray_cluster.RayCluster._send, ray_cluster.ray._private.state

    def leaving(pool, worker, name, request):
        sent.append(request.kind)
        if sent.count("fit") == 5:  # of the second round
            actors = [actor for actor in state.actors().values() if actor["State"] == "ALIVE"]
            there = [actor["Pid"] for actor in actors if actor["Address"]["NodeID"] == second.node_id]
            assert len(there) == 1
            started.remove_node(second, allow_graceful=False)
            # a machine takes its processes along; those of a raylet outlive it for a while
            os.kill(there[0], signal.SIGKILL)
            while sum(node["Alive"] for node in ray_cluster.ray.nodes()) > 1:
                time.sleep(0.1)
            monkeypatch.setattr(ray_cluster, "START_SECONDS", 5.0)
        return send(pool, worker, name, request)

    monkeypatch.setattr(ray_cluster.RayCluster, "_send", leaving)
    summary = small.fit(tmp_path, PFedST(), rounds=3, **RAY)
    assert "found no place in the Ray cluster within 5 s; the run goes on with 1 workers" in caplog.text
    assert [*summary.get("left_out", {}).values()] in ([{"NoAnswerError": 1}], [])
    assert '"round": 3' in (tmp_path / "run" / "rounds.jsonl").read_text().splitlines()[-1]


def test_no_cluster_at_the_address(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(NoAnswerError, match="start it"):
        small.fit(tmp_path, PFedST(), **RAY)
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"
