"""Clients side by side, on the machines of a Ray cluster of one owner.

It connects to the cluster that the variable `RAY_ADDRESS` names (`auto` on a machine of the cluster); without it, Ray
is started on this machine alone. All machines need the same installation, the images under the same paths, and the
folder of the run: a site's state is written by the worker that trained it, and read by whichever has it next.
"""

from __future__ import annotations

import logging
import os
import platform
import socket
import sys
from collections.abc import Collection, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import ray
import torch

from pfedst.client.client import Client
from pfedst.errors import ConfigurationError, NoAnswerError, PfedstError
from pfedst.messages.faults import Fault
from pfedst.messages.requests import Request
from pfedst.transport.pool import Worker, WorkerPool, packed
from pfedst.transport.workers import TorchSettings, answer, be_quiet, refusal

ADDRESS = "RAY_ADDRESS"
START_SECONDS = 120.0
"""How long a worker may take to find its place in the cluster and to import."""
ANSWER_SECONDS = 10.0
PREFIX = "PFEDST_"
"""Of the variables that a worker gets from this process."""


class Place(NamedTuple):
    """What a worker on another machine has to do as this process does.

    Attributes:
        folder: the working directory: paths of a run may be relative to it.
        modules: where Python finds the modules of methods and data.
        variables: of the environment.
        torch: settings of a whole process.
    """

    folder: str
    modules: list[str]
    variables: dict[str, str]
    torch: TorchSettings

    @classmethod
    def here(cls) -> Place:
        """Return those of this process."""
        variables = {name: value for name, value in os.environ.items() if name.startswith(PREFIX)}
        modules = [str(path) for path in dict.fromkeys(map(os.path.abspath, sys.path))]
        return cls(os.getcwd(), modules, variables, TorchSettings.here())  # noqa: PTH109  # as it is named everywhere

    def adopt(self) -> None:
        """Apply them to this process."""
        os.chdir(self.folder)
        sys.path.extend(path for path in self.modules if path not in sys.path)
        os.environ.update(self.variables)
        self.torch.adopt()


class Actor:
    """The worker's own end: the client, in a process of a Ray cluster."""

    def receive(self, place: Place, box: list[Any]) -> Any:
        """Take the client; return None, a Fault, or the ConfigurationError that ends the run.

        Args:
            place: to be adopted first, as the client may be of modules that only then are found.
            box: holds the reference of the client, so that Ray does not resolve it before.
        """
        be_quiet()
        try:
            place.adopt()
            self.client: Client = ray.get(box[0])
            check_shared(self.client.sites)
            torch.set_num_threads(self.client.threads)
            self.client.own_memory()
        except Exception as error:
            return refusal(error)
        return None

    def answer(self, name: str, values: dict[str, Any], parts: dict[str, bytes]) -> Any:
        """Return the packed reply to a request, or what went wrong."""
        return answer(self.client, name, values, parts)


def check_shared(sites: Path | None) -> None:
    """Check that this machine has the folder of the run.

    Raises:
        ConfigurationError: it has not.
    """
    if sites is not None and not sites.parent.is_dir():
        raise ConfigurationError(
            f"--coordinator.transport ray: {platform.node()} does not have the folder {sites.parent}: all machines of "
            f"the cluster need the run on a file system that they share (--runs_dir)"
        )


def check_listening(address: str) -> None:
    """Check that something listens at HOST:PORT: Ray itself tries for minutes, and then ends the process.

    Raises:
        OSError: nothing listens there.
    """
    host, _, port = address.rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host, int(port)), ANSWER_SECONDS).close()


class RayWorker(Worker):
    """An actor, and the answer that it is asked for.

    Args:
        index: counts the workers.
        actor: Ray's handle of it.
    """

    def __init__(self, index: int, actor: Any) -> None:
        self.index = index
        self.actor = actor
        self.answer: Any = None


class RayCluster(WorkerPool[RayWorker]):
    """Actors of a Ray cluster. Each takes as many processors as it has threads, and a whole GPU if the run uses GPUs.

    Args:
        client: answers for all sites; each worker gets a copy, its encoder included.
        threads: threads of torch of each worker; None for those that are set in this process.
        workers: number of actors; None for as many as the cluster has room for when the run starts.
        timeout_seconds: the longest time of a request; its worker is then ended, and another takes its place. None for
            any time.
    """

    def __init__(
        self, client: Client, threads: int | None, workers: int | None, timeout_seconds: float | None = None
    ) -> None:
        super().__init__(client, workers or len(client.names), timeout_seconds)
        self._chosen = workers is not None
        self._is_ours = False
        self._box: list[Any] = []
        client.threads = threads or torch.get_num_threads()

    @property
    def _needs(self) -> dict[str, int]:
        return {"CPU": self.client.threads} | ({"GPU": 1} if self.client.local.device.type == "cuda" else {})

    def _open(self) -> None:
        if not ray.is_initialized():
            address = os.environ.get(ADDRESS, "local")
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray reports to its makers otherwise
            try:
                check_listening(address)
                ray.init(address, log_to_driver=False, logging_level=logging.WARNING)
            except OSError as error:
                raise NoAnswerError(
                    f"no Ray cluster at {ADDRESS}={address} ({error}): start it (`ray start --head`), or unset the "
                    f"variable to use this machine alone"
                ) from error
            self._is_ours = True
        room = self._room()
        if room < 1 or (self._chosen and self.workers > room):
            needs = ", ".join(f"{number} {kind}" for kind, number in self._needs.items())
            raise ConfigurationError(
                f"--coordinator.transport ray: the cluster has room for {room} workers of {needs}"
                + (f", not for --coordinator.workers {self.workers}" if self._chosen else "")
                + "; the processors of a worker are --coordinator.threads"
            )
        self.workers = min(self.workers, room)
        self._box = [ray.put(self.client)]

    def _room(self) -> int:
        """Return how many workers fit into the machines of the cluster."""
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
        return sum(min(int(node.get(kind, 0)) // number for kind, number in self._needs.items()) for node in nodes)

    def _start(self, index: int) -> RayWorker:
        needs = self._needs
        # no restart by Ray: a new actor would not have the client
        kind = ray.remote(num_cpus=needs["CPU"], num_gpus=needs.get("GPU", 0), max_restarts=0)(Actor)
        worker = RayWorker(index, kind.remote())
        worker.answer = worker.actor.receive.remote(Place.here(), self._box)
        return worker

    def _greeting(self, worker: RayWorker) -> Any:
        if not self._ready([worker], START_SECONDS):
            return Fault.of(
                NoAnswerError(f"worker {worker.index} found no place in the Ray cluster within {START_SECONDS:g} s")
            )
        return self._receive(worker)

    def _send(self, worker: RayWorker, name: str, request: Request) -> bool:
        worker.answer = worker.actor.answer.remote(name, *packed(request))  # an actor that has ended is noticed later
        return True

    def _ready(self, running: Sequence[RayWorker], seconds: float) -> Collection[RayWorker]:
        timeout = None if seconds == float("inf") else seconds
        found, _ = ray.wait([worker.answer for worker in running], timeout=timeout)
        return [worker for worker in running if worker.answer in found]

    def _receive(self, worker: RayWorker) -> Any:
        try:
            return ray.get(worker.answer)
        except ray.exceptions.RayError as error:
            return Fault.of(
                NoAnswerError(f"worker {worker.index} ended, or its machine left the cluster ({type(error).__name__})")
            )

    def _end(self, worker: RayWorker) -> None:
        with suppress(ray.exceptions.RayError):
            ray.kill(worker.actor)

    def _close(self) -> None:
        if ray.is_initialized():
            super()._close()
        self._box = []
        if self._is_ours:
            ray.shutdown()

    def _refusal(self, error: Exception) -> PfedstError:
        return ConfigurationError(
            f"--coordinator.transport ray: this run cannot be sent to the workers ({error}). Methods, adapters and "
            f"data must be classes of a module; or use --coordinator.transport in_process"
        )
