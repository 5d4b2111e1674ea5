"""Workers that answer for any client: how requests are handed to them, and what happens to one that is late or gone.

Workers keep nothing between requests: the state of a site lies in its folder. Hence any worker may answer any request,
and since every random number is derived from the request itself, the bits are those of a run in one process with as
many threads a request.
"""

from __future__ import annotations

import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Generic, TypeVar

from pfedst.client.client import Client
from pfedst.errors import ConfigurationError, NoAnswerError, PfedstError
from pfedst.messages.faults import Fault
from pfedst.messages.payload import from_bytes, to_bytes
from pfedst.messages.requests import Reply, Request
from pfedst.messages.transport import Started
from pfedst.transport.in_process import all_hellos


class Worker:
    """One worker: what every kind of pool knows of it."""

    index: int
    deadline: float = float("inf")
    """When it is given up; of `time.monotonic`."""


WorkerT = TypeVar("WorkerT", bound=Worker)


class WorkerPool(ABC, Generic[WorkerT]):
    """Workers that live as long as the run.

    Args:
        client: answers for all sites; each worker gets a copy.
        workers: number of workers, >= 1.
        timeout_seconds: the longest time of a request; its worker is then ended, and another takes its place. None for
            any time.
    """

    def __init__(self, client: Client, workers: int, timeout_seconds: float | None) -> None:
        self.client = client
        self.workers = min(1 if client.method.pooled else len(client.names), workers)
        self.timeout_seconds = float("inf") if timeout_seconds is None else timeout_seconds
        self._idle: list[WorkerT] = []
        self._all: list[WorkerT] = []

    @abstractmethod
    def _start(self, index: int) -> WorkerT:
        """Start a worker, and do not wait for it."""

    @abstractmethod
    def _greeting(self, worker: WorkerT) -> Any:
        """Give a new worker the client; return what it answers, as `_receive`."""

    @abstractmethod
    def _send(self, worker: WorkerT, name: str, request: Request) -> bool:
        """Hand a request for client `name` to a worker; return False if the worker has ended."""

    @abstractmethod
    def _ready(self, running: Sequence[WorkerT], seconds: float) -> Collection[WorkerT]:
        """Wait until a worker has an answer, at most so many seconds; return those that have."""

    @abstractmethod
    def _receive(self, worker: WorkerT) -> Any:
        """Return what a worker answers: a packed reply, a Fault, or an error that ends the run."""

    @abstractmethod
    def _end(self, worker: WorkerT) -> None:
        """End one worker at once."""

    @abstractmethod
    def _refusal(self, error: Exception) -> PfedstError:
        """Return the error of a run that the workers cannot be given."""

    def _open(self) -> None:
        """Open what the workers need."""

    def _close(self) -> None:
        """End all workers, and close what was opened."""
        for worker in self._all:
            self._end(worker)

    def hello(self, run: str) -> dict[str, Reply]:
        """Return what every client has; this process knows it itself."""
        return all_hellos(self.client, run)

    def __enter__(self) -> WorkerPool[WorkerT]:
        """Start the workers, all before the first is waited for: one that is spawned imports for some seconds."""
        try:
            self.client.module.encoder.to("cpu")
            self._open()
            for worker in [self._begin(index) for index in range(self.workers)]:
                self._make_ready(worker)
        except BaseException as error:
            self._stop()
            if isinstance(error, PfedstError) or not isinstance(error, Exception):
                raise
            raise self._refusal(error) from error  # what cannot be sent says so in many ways
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def ask(self, requests: Mapping[str, Request], started: Started) -> Iterator[tuple[str, Reply | Fault]]:
        """Hand requests to free workers, the client with most images first, so that none ends long after the others."""
        data = self.client.data
        sizes = {name: data.samples(name, "train") if name in data.sites else 0 for name in requests}
        waiting, running = sorted(requests, key=lambda name: -sizes[name]), dict[WorkerT, str]()
        while waiting or running:
            while waiting and self._idle:
                worker, name = self._idle.pop(0), waiting.pop(0)
                started(name)
                worker.deadline = time.monotonic() + self.timeout_seconds
                if self._send(worker, name, requests[name]):
                    running[worker] = name
                else:
                    self._replace(worker)
                    waiting.insert(0, name)
            for worker, answer in self._answers(list(running)):
                name = running.pop(worker)
                yield name, answer if isinstance(answer, Fault) else Reply(answer[0], from_bytes(answer[1]))

    def _begin(self, index: int) -> WorkerT:
        worker = self._start(index)
        self._all.append(worker)
        return worker

    def _make_ready(self, worker: WorkerT) -> None:
        answer = _checked(self._greeting(worker))
        if isinstance(answer, Fault):
            answer.stop()
        self._idle.append(worker)

    def _replace(self, worker: WorkerT) -> None:
        """Start another worker in the place of one that has ended, or must end; without room the others go on."""
        self._end(worker)
        self._all.remove(worker)
        another = self._begin(worker.index)
        try:
            self._make_ready(another)
        except NoAnswerError as error:
            self._end(another)
            self._all.remove(another)
            if not self._all:
                raise
            logging.getLogger("pfedst").warning("%s; the run goes on with %d workers", error, len(self._all))

    def _answers(self, running: Sequence[WorkerT]) -> Iterator[tuple[WorkerT, Any]]:
        """Yield the workers that answer next; a worker that is late or has ended is replaced."""
        soonest = min(worker.deadline for worker in running) - time.monotonic()
        ready = self._ready(running, max(0.0, soonest))
        for worker in running:
            if worker in ready:
                answer = _checked(self._receive(worker))
            elif time.monotonic() >= worker.deadline:
                answer = Fault.of(NoAnswerError(f"no answer within {self.timeout_seconds:g} s; it is ended"))
            else:
                continue
            if isinstance(answer, Fault) and isinstance(answer.error, NoAnswerError):
                self._replace(worker)
            else:
                self._idle.append(worker)
            yield worker, answer

    def _stop(self) -> None:
        self._close()
        self._all, self._idle = [], []


def _checked(answer: Any) -> Any:
    """Return an answer; raise what cannot work at any client."""
    if isinstance(answer, ConfigurationError):
        raise answer
    return answer


def packed(request: Request) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Return what travels of a request: its values and tensors."""
    return request.values(), to_bytes(request.parts)
