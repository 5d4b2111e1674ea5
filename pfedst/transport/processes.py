"""Clients side by side, in worker processes of this machine.

Workers keep nothing between requests: the state of a site lies in its folder. Hence any worker may answer any request,
and since every random number is derived from the request itself, the bits are those of a run in one process with as
many threads a request.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from types import TracebackType
from typing import Any

import torch
import torch.multiprocessing as multiprocessing

from pfedst.client.client import Client
from pfedst.errors import ConfigurationError, NoAnswerError, PfedstError
from pfedst.messages.faults import Fault
from pfedst.messages.requests import Reply, Request
from pfedst.messages.transport import Started
from pfedst.transport.in_process import all_hellos
from pfedst.transport.workers import TorchSettings, from_bytes, serve, to_bytes

GPU_BYTES_A_WORKER = 3 * 10**9
"""Memory of a GPU that a worker takes beside the encoder: a CUDA context and the activations of a step, rounded up."""


@dataclass(eq=False)
class _Worker:
    index: int
    process: Any
    connection: Connection
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
        """Start the workers; their imports take some seconds."""
        try:
            self.client.module.encoder.to("cpu")
            for index in range(self.workers):
                self._start(index)
            for worker in self._all:
                self._await_ready(worker)
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
        context = multiprocessing.get_context("spawn")
        own_end, other_end = context.Pipe()
        process = context.Process(target=serve, args=(other_end, self.client, TorchSettings.here()), daemon=False)
        with visible_gpu(index):
            process.start()
        other_end.close()
        worker = _Worker(index, process, own_end)
        self._all.append(worker)
        return worker

    def _await_ready(self, worker: _Worker) -> None:
        answer = self._receive(worker)
        if isinstance(answer, Fault):
            answer.stop()
        self._idle.append(worker)

    def _replace(self, worker: _Worker) -> None:
        """Start another process in the place of one that has ended, or must end."""
        worker.process.kill()
        worker.process.join()
        worker.connection.close()
        self._all.remove(worker)
        self._await_ready(self._start(worker.index))

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
                    worker.connection.send((name, request.values(), to_bytes(request.parts)))
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
        ready = wait([worker.connection for worker in running], None if soonest == float("inf") else max(0.0, soonest))
        for worker in running:
            if worker.connection in ready:
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
            answer = worker.connection.recv()
        except (EOFError, ConnectionError):
            worker.process.join(5)
            return Fault.of(
                NoAnswerError(
                    f"worker {worker.index} ended (exit code {worker.process.exitcode}; -9 is a lack of memory as a "
                    f"rule): use fewer --coordinator.workers, or --coordinator.transport in_process"
                )
            )
        if isinstance(answer, ConfigurationError):
            raise answer
        return answer

    def _stop(self) -> None:
        for worker in self._all:
            worker.connection.close()  # a worker that waits for a task ends at this
        for worker in self._all:
            worker.process.join(2)
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()
        self._all, self._idle = [], []


def fitting_workers(device: torch.device, encoder_bytes: int) -> int:
    """Return one worker a thread on a CPU; on GPUs as many as fit beside each other, at least one each."""
    if device.type != "cuda":
        return torch.get_num_threads()
    free = [torch.cuda.mem_get_info(index)[0] for index in range(torch.cuda.device_count())]
    return sum(max(1, free_bytes // (encoder_bytes + GPU_BYTES_A_WORKER)) for free_bytes in free)


@contextmanager
def visible_gpu(index: int) -> Iterator[None]:
    """Let processes that are started within see one GPU, in turns; without GPUs nothing changes."""
    name = "CUDA_VISIBLE_DEVICES"
    given = os.environ.get(name)
    if given is None:
        gpus = [str(number) for number in range(torch.cuda.device_count())]
    else:
        gpus = [gpu for gpu in given.split(",") if gpu]
    if not gpus:
        yield
        return
    os.environ[name] = gpus[index % len(gpus)]
    try:
        yield
    finally:
        if given is None:
            del os.environ[name]
        else:
            os.environ[name] = given
