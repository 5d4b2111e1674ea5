"""Children are forked only where a fork is what a new process would be, and end with their parent, however that ends."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from pfedst.child_processes import fork_server, start_child, start_fork_server, stop_fork_server
from tests.child_processes import targets

linux = pytest.mark.skipif(sys.platform != "linux", reason="children are forked on Linux only")


@pytest.fixture
def server(monkeypatch):
    monkeypatch.delenv("PYTEST_CURRENT_TEST", raising=False)  # which pytest changes before the test
    monkeypatch.setattr(fork_server, "_server", None)  # that of all tests
    start_fork_server()
    yield
    stop_fork_server()


@pytest.fixture(params=["forked", pytest.param("spawned")])
def kind(request):
    """Both kinds of children: what holds for one holds for the other."""
    if request.param == "forked":
        request.getfixturevalue("server")
    else:
        request.getfixturevalue("monkeypatch").setattr(fork_server, "_server", None)
    return {"forked": "ForkedProcess", "spawned": "SpawnProcess"}[request.param]


def runs(pid) -> bool:
    """Whether a process runs; one that has ended and that nobody waits for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().split(") ")[1][0] != "Z"
    except OSError:
        return False


def wait_until_ended(*pids) -> None:
    deadline = time.monotonic() + 300
    while any(map(runs, pids)):
        assert time.monotonic() < deadline, "it hangs"
        time.sleep(0.02)


@linux
def test_a_child_has_its_arguments_environment_folder_and_exit_code(kind, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    environment = os.environ | {"WANDB_NAME": "a run", "PFEDST_CACHE": "there"}
    names = ["WANDB_NAME", "PFEDST_CACHE", "HOME"]
    child = start_child(targets.say, names, environment=environment)
    assert type(child.process).__name__ == kind
    said = child.connection.recv()
    assert said["pid"] == child.process.pid
    assert said["folder"] == str(tmp_path)
    assert said["variables"] == {"WANDB_NAME": "a run", "PFEDST_CACHE": "there", "HOME": os.environ.get("HOME")}
    assert child.process.exitcode is None
    child.connection.send(7)
    child.process.join()
    assert child.process.exitcode == 7
    child.connection.close()


@linux
def test_a_child_ends_by_an_error_a_signal_or_its_parents_end(kind, tmp_path) -> None:
    failing, stopping = start_child(targets.fail, str(tmp_path / "a")), start_child(targets.stop, str(tmp_path / "b"))
    for child in (failing, stopping):
        child.process.join()
        assert child.process.exitcode == 1
    assert "RuntimeError: a defect" in (tmp_path / "a").read_text()
    assert (tmp_path / "b").read_text() == "no more\n"
    children = [start_child(targets.sleep) for _ in range(3)]
    for child in children:
        assert child.connection.recv() == child.process.pid
    terminated, killed, closed = children
    terminated.process.terminate()
    killed.process.kill()
    closed.connection.close()
    for child, code in ((terminated, -signal.SIGTERM), (killed, -signal.SIGKILL), (closed, 1)):
        child.process.join()
        assert child.process.exitcode == code
        child.process.kill()  # of one that has ended: nothing


@linux
def test_what_cannot_be_built_in_the_child_is_an_error_of_its_code(kind) -> None:
    child = start_child(targets.echo)
    child.connection.send(Unbuildable())
    assert child.connection.recv() == "KeyError"
    child.connection.send("still there")
    assert child.connection.recv() == "still there"
    child.connection.close()


class Unbuildable:
    def __reduce__(self):
        return dict.__getitem__, ({}, "missing")


@linux
@pytest.mark.parametrize(
    ("changes", "forked"),
    [
        ({}, True),
        ({"WANDB_NAME": "x", "PFEDST_DATA_ROOT": "y", "COLUMNS": "90"}, True),
        ({"OMP_NUM_THREADS": "2"}, True),
        ({"OMP_NUM_THREADS": "2,1"}, False),  # of nested teams: torch has no call for it
        ({"OMP_NUM_THREADS": None}, False),
        ({"ATEN_CPU_CAPABILITY": "default"}, False),
        ({"MKL_ENABLE_INSTRUCTIONS": "SSE4_2"}, False),
        ({"HF_HOME": "/elsewhere"}, False),
        ({"MPLBACKEND": "svg"}, False),
    ],
)
def test_a_child_with_variables_that_libraries_have_read_is_not_forked(server, changes, forked) -> None:
    environment = {name: value for name, value in (os.environ | changes).items() if value is not None}
    made = fork_server.fork(targets.sleep, (), environment, Connection())
    assert (made is not None) == forked
    if made:
        made.kill()
        made.join()


class Connection:
    """An end of a pipe that stays open as long as the process of these tests."""

    read, write = os.pipe()

    def fileno(self):
        return self.read


@linux
def test_a_server_that_was_killed_is_replaced_by_spawning(server) -> None:
    child = start_child(targets.sleep)
    child.connection.recv()
    os.kill(fork_server._server.pid, signal.SIGKILL)
    child.process.join()  # nobody knows how it would end: it is ended
    assert child.process.exitcode == -signal.SIGKILL
    wait_until_ended(child.process.pid)
    other = start_child(targets.say, [])
    assert type(other.process).__name__ == "SpawnProcess"
    other.connection.close()
    other.process.join()


def test_nothing_is_forked_beside_a_gpu_or_on_another_system(monkeypatch) -> None:
    monkeypatch.setattr(fork_server, "_server", None)
    for place, name, value in ((torch.cuda, "device_count", lambda: 1), (sys, "platform", "darwin")):
        with monkeypatch.context() as patch:
            patch.setattr(place, name, value)
            start_fork_server()
            assert fork_server._server is None


@linux
def test_the_peak_memory_of_a_forked_child_is_its_own(server) -> None:
    size = 200 * 2**20
    child = start_child(targets.grow, size)
    before, after, _ = child.connection.recv()
    child.process.join()
    assert 0 <= before < size / 2  # the libraries of these tests alone are more
    assert size / 2 < after - before < 2 * size


PROGRAM = """
import json, os, sys
import torch  # and no operator of it
from pfedst.child_processes import start_child, start_fork_server
from tests.child_processes import targets

if __name__ == "__main__":
    start_fork_server()
    found = {}
    for name, changes in json.loads(sys.argv[1]).items():
        child = start_child(targets.compute, environment=os.environ | changes)
        found[name] = [type(child.process).__name__, *child.connection.recv()]
        child.process.join()
    family = start_child(targets.start_another)
    print(json.dumps(found | {"family": family.connection.recv()}), flush=True)
    sys.stdin.read()
"""


@linux
def test_forks_of_a_process_that_never_computed(tmp_path) -> None:
    """They compute with several threads and the kernels they are asked for, and the whole family ends with the first."""
    (tmp_path / "program.py").write_text(PROGRAM)
    wanted = {
        "one": {"OMP_NUM_THREADS": "1"},
        "two": {"OMP_NUM_THREADS": "2"},
        "old": {"OMP_NUM_THREADS": "1", "ATEN_CPU_CAPABILITY": "default"},
    }
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(tmp_path / "program.py"), json.dumps(wanted)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, cwd=tmp_path
    ) as process:
        found = json.loads(process.stdout.readline())
        middle, last, kind_of_last = found["family"]
        assert kind_of_last == "ForkedProcess"
        assert runs(middle)
        assert runs(last)
        process.kill()
    wait_until_ended(middle, last)
    here = torch.backends.cpu.get_cpu_capability()
    assert found["one"][:3] == ["ForkedProcess", here, 1]
    assert found["two"][:3] == ["ForkedProcess", here, 2]
    assert found["old"][:3] == ["SpawnProcess", "DEFAULT", 1]
