"""Clients side by side, in worker processes of this machine.

Workers keep nothing between requests: the state of a site lies in its folder. Hence any worker may answer any request,
and since every random number is derived from the request itself, the bits are those of a run in one process with as
many threads a request.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import wait
from types import TracebackType
from typing import Any

import torch
import torch.multiprocessing  # teaches connections to send tensors in shared memory

from pfedst.child_processes import ChildProcess, start_child
from pfedst.client.client import Client
from pfedst.errors import ConfigurationError, NoAnswerError, PfedstError
from pfedst.messages.faults import Fault
from pfedst.messages.payload import from_bytes, to_bytes
from pfedst.messages.requests import Reply, Request
from pfedst.messages.transport import Started
from pfedst.transport.in_process import all_hellos
from pfedst.transport.workers import TorchSettings, serve

GPU_BYTES_A_WORKER = 3 * 10**9
"""Memory of a GPU that a worker takes beside the encoder: a CUDA context and the activations of a step, rounded up."""


@dataclass(eq=False)
class _Worker:
    index: int
    child: ChildProcess
    deadline: float = float("inf")


class Processes:
    """Worker processes that live as long as the run.

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
        self.client = client
        clients = 1 if client.method.pooled else len(client.names)
        self.workers = min(clients, workers or fitting_workers(client.local.device, client.module.encoder.nbytes))
        self.timeout_seconds = float("inf") if timeout_seconds is None else timeout_seconds
        client.threads = threads or max(1, torch.get_num_threads() // self.workers)
        self._idle: list[_Worker] = []
        self._all: list[_Worker] = []

    def hello(self, run: str) -> dict[str, Reply]:
        """Return what every client has; this process knows it itself."""
        return all_hellos(self.client, run)

    def __enter__(self) -> Processes:
        """Start the workers. A spawned one imports for some seconds, so all start before the first is waited for."""
        try:
            self.client.module.encoder.to("cpu")
            _allow_open_files()
            for worker in [self._start(index) for index in range(self.workers)]:
                self._make_ready(worker)
        except BaseException as error:
            self._stop()
            if isinstance(error, PfedstError) or not isinstance(error, Exception):
                raise
            # what cannot be sent says so in many ways
            raise ConfigurationError(
                f"--coordinator.transport processes: this run cannot be sent to another process ({error}). Methods, "
                f"adapters and data must be classes of a module, a script must start under if __name__ == "
                f'"__main__", and shared memory (/dev/shm) must hold the encoder; or use --coordinator.transport '
                f"in_process"
            ) from error
        return self

    def _start(self, index: int) -> _Worker:
        environment = os.environ | gpu_variables(index)
        worker = _Worker(index, start_child(serve, list(TorchSettings.here()), environment=environment))
        self._all.append(worker)
        return worker

    def _make_ready(self, worker: _Worker) -> None:
        """Send the client to a new worker. One at a time: until it is received, each tensor is an open file."""
        with suppress(ConnectionError):  # it has ended: its answer says how
            worker.child.connection.send(self.client)
        answer = self._receive(worker)
        if isinstance(answer, Fault):
            answer.stop()
        self._idle.append(worker)

    def _replace(self, worker: _Worker) -> None:
        """Start another process in the place of one that has ended, or must end."""
        worker.child.process.kill()
        worker.child.process.join()
        worker.child.connection.close()
        self._all.remove(worker)
        self._make_ready(self._start(worker.index))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def ask(self, requests: Mapping[str, Request], started: Started) -> Iterator[tuple[str, Reply | Fault]]:
        """Hand requests to free workers, the client with most images first, so that none ends long after the others."""
        data = self.client.data
        sizes = {name: data.samples(name, "train") if name in data.sites else 0 for name in requests}
        waiting, running = sorted(requests, key=lambda name: -sizes[name]), dict[_Worker, str]()
        while waiting or running:
            while waiting and self._idle:
                worker, name = self._idle.pop(0), waiting.pop(0)
                started(name)
                worker.deadline = time.monotonic() + self.timeout_seconds
                request = requests[name]
                try:
                    worker.child.connection.send((name, request.values(), to_bytes(request.parts)))
                except ConnectionError:  # it has ended while it was idle
                    self._replace(worker)
                    waiting.insert(0, name)
                    continue
                running[worker] = name
            for worker, answer in self._answers(list(running)):
                name = running.pop(worker)
                yield name, answer if isinstance(answer, Fault) else Reply(answer[0], from_bytes(answer[1]))

    def _answers(self, running: Sequence[_Worker]) -> Iterator[tuple[_Worker, Any]]:
        """Yield the workers that answer next; a worker that is late or has ended is replaced."""
        soonest = min(worker.deadline for worker in running) - time.monotonic()
        connections = [worker.child.connection for worker in running]
        ready = wait(connections, None if soonest == float("inf") else max(0.0, soonest))
        for worker in running:
            if worker.child.connection in ready:
                answer = self._receive(worker)
            elif time.monotonic() >= worker.deadline:
                answer = Fault.of(NoAnswerError(f"no answer within {self.timeout_seconds:g} s; it is ended"))
            else:
                continue
            if isinstance(answer, Fault) and isinstance(answer.error, NoAnswerError):
                self._replace(worker)
            else:
                self._idle.append(worker)
            yield worker, answer

    def _receive(self, worker: _Worker) -> Any:
        """Return a worker's packed reply, or a Fault; raise what cannot work at any client."""
        try:
            answer = worker.child.connection.recv()
        except (EOFError, ConnectionError):
            process = worker.child.process
            process.join(5)
            return Fault.of(
                NoAnswerError(
                    f"worker {worker.index} ended (exit code {process.exitcode}; -9 is a lack of memory as a "
                    f"rule): use fewer --coordinator.workers, or --coordinator.transport in_process"
                )
            )
        if isinstance(answer, ConfigurationError):
            raise answer
        return answer

    def _stop(self) -> None:
        for worker in self._all:
            worker.child.connection.close()  # a worker ends at this
        for worker in self._all:
            worker.child.process.join(2)
            worker.child.process.kill()
            worker.child.process.join()
        self._all, self._idle = [], []


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
