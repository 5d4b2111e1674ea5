"""Where tasks run: one after another in this process, or in worker processes side by side.

Workers keep nothing between tasks: with each goes the state of its client, and back comes the state after it. Hence
any worker may do any task, the server side knows no workers, and since every random number is derived from the task
itself, the bits are those of a sequential run with as many threads a fit.
"""

from __future__ import annotations

import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from types import TracebackType
from typing import Any, Literal

import torch
import torch.multiprocessing as multiprocessing

from pfedst.client.client import ClientWork, Fit, Task, longest_first
from pfedst.errors import ConfigurationError, NoAnswerError, PfedstError
from pfedst.messages.faults import Fault
from pfedst.server.server import Federation
from pfedst.transport.workers import TorchSettings, load, serve, state_for

ExecutorKind = Literal["sequential", "processes"]
Started = Callable[[Task], None]

GPU_BYTES_A_WORKER = 3 * 10**9
"""What a worker takes of a GPU beside the encoder: a CUDA context and the activations of a step, rounded up."""


class Executor(ABC):
    """Does the tasks of a round; a context, within which it may hold processes.

    Args:
        work: the federation of this process, its data and its Trainer.
        threads: of torch, for each task; None for those that are set, divided over workers.
    """

    def __init__(self, work: ClientWork, threads: int | None) -> None:
        self.work = work
        self.threads = threads or torch.get_num_threads()

    def __enter__(self) -> Executor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    @abstractmethod
    def run(self, tasks: Sequence[Task], started: Started) -> Iterator[tuple[Task, dict[str, Any] | Fault]]:
        """Do tasks of different clients; yields each with its result when it is done, in any order.

        Where a task failed its result is a Fault, and the client of a fit may be left in any state.

        Args:
            tasks: at most one a client.
            started: is told each task when it begins.

        Raises:
            ConfigurationError: an option that cannot work, told by a task.
        """


@dataclass(eq=False)
class _Worker:
    index: int
    process: Any
    connection: Connection
    deadline: float = float("inf")


class SequentialExecutor(Executor):
    """In this process, one after another, in the order given."""

    def run(self, tasks: Sequence[Task], started: Started) -> Iterator[tuple[Task, dict[str, Any] | Fault]]:
        """See there."""
        for task in tasks:
            started(task)
            with torch_threads(self.threads):
                result = self.work.attempt(task)
            yield task, result


class ProcessExecutor(Executor):
    """In worker processes that live as long as the run.

    On a CPU they share one encoder in memory with this process; with several GPUs they are spread over them.

    Args:
        work: see there.
        threads: of each worker.
        workers: number of processes; None for one a thread, or on GPUs as many as should fit in their memory.
        timeout_seconds: most that a task may take; its worker is then ended, and another takes its place. None for
            any time.

    Raises:
        ConfigurationError: what the run is made of cannot be sent to another process.
    """

    def __init__(
        self, work: ClientWork, threads: int | None, workers: int | None, timeout_seconds: float | None = None
    ) -> None:
        super().__init__(work, threads)
        clients = len(work.federation.trainees)
        self.workers = min(clients, workers or fitting_workers(work.local.device, work.federation))
        self.timeout_seconds = float("inf") if timeout_seconds is None else timeout_seconds
        if threads is None:
            self.threads = max(1, torch.get_num_threads() // self.workers)
        self._idle: list[_Worker] = []
        self._all: list[_Worker] = []

    def __enter__(self) -> ProcessExecutor:
        """Start the workers; their imports take some seconds."""
        try:
            self.work.federation.encoder.to("cpu")
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
                f"--coordinator.executor processes: this run cannot be sent to another process ({error}). Methods, "
                f"adapters and data must be classes of a module, a script must start under if __name__ == "
                f'"__main__", and shared memory (/dev/shm) must hold the encoder; or use --coordinator.executor '
                f"sequential"
            ) from error
        return self

    def _start(self, index: int) -> _Worker:
        context = multiprocessing.get_context("spawn")
        own_end, other_end = context.Pipe()
        arguments = (other_end, self.work, TorchSettings.here(self.threads))
        process = context.Process(target=serve, args=arguments, daemon=False)
        with visible_gpu(index):
            process.start()
        other_end.close()
        worker = _Worker(index, process, own_end)
        self._all.append(worker)
        return worker

    def _await_ready(self, worker: _Worker) -> None:
        answer = self._answer(worker)
        if isinstance(answer, Fault):
            answer.stop()
        self._idle.append(worker)

    def _replace(self, worker: _Worker) -> None:
        """Another process in the place of one that has ended, or must."""
        worker.process.kill()
        worker.process.join()
        worker.connection.close()
        self._all.remove(worker)
        self._await_ready(self._start(worker.index))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def run(self, tasks: Sequence[Task], started: Started) -> Iterator[tuple[Task, dict[str, Any] | Fault]]:
        """See there."""
        federation = self.work.federation
        sizes = {name: self.work.data.samples(name, "train") for name in federation.clients}
        waiting, running = longest_first(tasks, sizes), dict[_Worker, Task]()
        while waiting or running:
            while waiting and self._idle:
                worker, task = self._idle.pop(0), waiting.pop(0)
                started(task)
                worker.deadline = time.monotonic() + self.timeout_seconds
                try:
                    worker.connection.send((task, state_for(federation, task)))
                except ConnectionError:  # it has ended while it was idle
                    self._replace(worker)
                    waiting.insert(0, task)
                    continue
                running[worker] = task
            for worker, answer in self._answers(list(running)):
                task = running.pop(worker)
                if isinstance(answer, Fault):
                    yield task, answer
                    continue
                result, state = answer
                if isinstance(task, Fit):
                    load(federation.trainees[task.name], state)
                yield task, result

    def _answers(self, running: Sequence[_Worker]) -> Iterator[tuple[_Worker, Any]]:
        """Of the workers that answer next; in place of one that is late or has ended another stands by."""
        soonest = min(worker.deadline for worker in running) - time.monotonic()
        ready = wait([worker.connection for worker in running], None if soonest == float("inf") else max(0.0, soonest))
        for worker in running:
            if worker.connection in ready:
                answer = self._answer(worker)
            elif time.monotonic() >= worker.deadline:
                answer = Fault.of(NoAnswerError(f"no answer within {self.timeout_seconds:g} s; it is ended"))
            else:
                continue
            if isinstance(answer, Fault) and isinstance(answer.error, NoAnswerError):
                self._replace(worker)
            else:
                self._idle.append(worker)
            yield worker, answer

    def _answer(self, worker: _Worker) -> Any:
        """What a worker says: a result, or a Fault; what cannot work on any client is raised."""
        try:
            answer = worker.connection.recv()
        except (EOFError, ConnectionError):
            worker.process.join(5)
            return Fault.of(
                NoAnswerError(
                    f"worker {worker.index} ended (exit code {worker.process.exitcode}; -9 is a lack of memory as a "
                    f"rule): use fewer --coordinator.workers, or --coordinator.executor sequential"
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


def make_executor(
    kind: ExecutorKind, work: ClientWork, threads: int | None, workers: int | None, timeout_seconds: float | None
) -> Executor:
    """The executor of a configuration."""
    if kind == "sequential":
        return SequentialExecutor(work, threads)
    return ProcessExecutor(work, threads, workers, timeout_seconds)


@contextmanager
def torch_threads(threads: int) -> Iterator[None]:
    """So many threads within one operation: the last bits of a sum depend on their number."""
    before = torch.get_num_threads()
    if threads == before:
        yield
        return
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def fitting_workers(device: torch.device, federation: Federation) -> int:
    """One a thread on a CPU; on GPUs as many as have room beside each other, at least one each."""
    if device.type != "cuda":
        return torch.get_num_threads()
    encoder_bytes = federation.encoder.nbytes
    rooms = [torch.cuda.mem_get_info(index)[0] for index in range(torch.cuda.device_count())]
    return sum(max(1, room // (encoder_bytes + GPU_BYTES_A_WORKER)) for room in rooms)


@contextmanager
def visible_gpu(index: int) -> Iterator[None]:
    """Processes started within see one GPU, in turns; without GPUs nothing changes."""
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
