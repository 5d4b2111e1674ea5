"""Clients side by side, in worker processes of this machine."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from contextlib import suppress
from multiprocessing.connection import wait
from typing import Any

import torch
import torch.multiprocessing  # teaches connections to send tensors in shared memory

from pfedst.child_processes import ChildProcess, start_child
from pfedst.client.client import Client
from pfedst.errors import ConfigurationError, NoAnswerError, PfedstError
from pfedst.messages.faults import Fault
from pfedst.messages.requests import Request
from pfedst.transport.pool import Worker, WorkerPool, packed
from pfedst.transport.workers import TorchSettings, serve

GPU_BYTES_A_WORKER = 3 * 10**9
"""Memory of a GPU that a worker takes beside the encoder: a CUDA context and the activations of a step, rounded up."""


class ChildWorker(Worker):
    """A child process with its connection.

    Args:
        index: counts the workers; a GPU follows from it.
        child: the process.
    """

    def __init__(self, index: int, child: ChildProcess) -> None:
        self.index = index
        self.child = child


class Processes(WorkerPool[ChildWorker]):
    """Worker processes of this machine.

    On a CPU they share one encoder in memory with this process; with several GPUs they are spread over them.

    Args:
        client: answers for all sites; each worker gets a copy.
        threads: threads of torch of each worker; None divides those that are set over the workers.
        workers: number of processes; None for one a thread, or on GPUs as many as should fit in their memory.
        timeout_seconds: the longest time of a request; its worker is then ended, and another takes its place. None for
            any time.

    Raises:
        ConfigurationError: the run cannot be sent to another process.
    """

    def __init__(
        self, client: Client, threads: int | None, workers: int | None, timeout_seconds: float | None = None
    ) -> None:
        workers = workers or fitting_workers(client.local.device, client.module.encoder.nbytes)
        super().__init__(client, workers, timeout_seconds)
        client.threads = threads or max(1, torch.get_num_threads() // self.workers)

    def _open(self) -> None:
        _allow_open_files()

    def _start(self, index: int) -> ChildWorker:
        environment = os.environ | gpu_variables(index)
        return ChildWorker(index, start_child(serve, list(TorchSettings.here()), environment=environment))

    def _greeting(self, worker: ChildWorker) -> Any:
        """Send the client to a new worker. One at a time: until it is received, each tensor is an open file."""
        with suppress(ConnectionError):  # it has ended: its answer says how
            worker.child.connection.send(self.client)
        return self._receive(worker)

    def _send(self, worker: ChildWorker, name: str, request: Request) -> bool:
        try:
            worker.child.connection.send((name, *packed(request)))
        except ConnectionError:  # it has ended while it was idle
            return False
        return True

    def _ready(self, running: Sequence[ChildWorker], seconds: float) -> Collection[ChildWorker]:
        connections = [worker.child.connection for worker in running]
        found = wait(connections, None if seconds == float("inf") else seconds)
        return [worker for worker in running if worker.child.connection in found]

    def _receive(self, worker: ChildWorker) -> Any:
        try:
            return worker.child.connection.recv()
        except (EOFError, ConnectionError):
            process = worker.child.process
            process.join(5)
            return Fault.of(
                NoAnswerError(
                    f"worker {worker.index} ended (exit code {process.exitcode}; -9 is a lack of memory as a "
                    f"rule): use fewer --coordinator.workers, or --coordinator.transport in_process"
                )
            )

    def _end(self, worker: ChildWorker) -> None:
        worker.child.process.kill()
        worker.child.process.join()
        worker.child.connection.close()

    def _close(self) -> None:
        for worker in self._all:
            worker.child.connection.close()  # a worker ends at this
        for worker in self._all:
            worker.child.process.join(2)
        super()._close()

    def _refusal(self, error: Exception) -> PfedstError:
        return ConfigurationError(
            f"--coordinator.transport processes: this run cannot be sent to another process ({error}). Methods, "
            f"adapters and data must be classes of a module, a script must start under if __name__ == "
            f'"__main__", and shared memory (/dev/shm) must hold the encoder; or use --coordinator.transport '
            f"in_process"
        )


def fitting_workers(device: torch.device, encoder_bytes: int) -> int:
    """Return one worker a thread on a CPU; on GPUs as many as fit beside each other, at least one each."""
    if device.type != "cuda":
        return torch.get_num_threads()
    free = [torch.cuda.mem_get_info(index)[0] for index in range(torch.cuda.device_count())]
    return sum(max(1, free_bytes // (encoder_bytes + GPU_BYTES_A_WORKER)) for free_bytes in free)


def gpu_variables(index: int) -> dict[str, str]:
    """Return the environment variables that let a worker see one GPU, in turns; without GPUs there are none."""
    name = "CUDA_VISIBLE_DEVICES"
    given = os.environ.get(name)
    if given is None:
        gpus = [str(number) for number in range(torch.cuda.device_count())]
    else:
        gpus = [gpu for gpu in given.split(",") if gpu]
    return {name: gpus[index % len(gpus)]} if gpus else {}


def _allow_open_files() -> None:
    """Raise the limit of open files, often 1024, as far as this process may: each shared tensor is an open file."""
    try:
        import resource
    except ImportError:  # not a Unix
        return
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
