"""The other end of a `WorkerPool`: a worker process."""

from __future__ import annotations

import logging
import signal
import warnings
from contextlib import suppress
from typing import Any, NamedTuple

import torch

from pfedst.child_processes import ParentProcess
from pfedst.client.client import Client
from pfedst.errors import ConfigurationError
from pfedst.messages.faults import Fault
from pfedst.messages.payload import from_bytes, to_bytes
from pfedst.messages.requests import Reply, Request
from pfedst.transport.in_process import attempt

READY = "ready"


class TorchSettings(NamedTuple):
    """Settings of torch that hold for a whole process and decide over bits, as chosen in the process of the run."""

    deterministic: bool
    warn_only: bool
    cudnn_benchmark: bool
    matmul_precision: str

    @classmethod
    def here(cls) -> TorchSettings:
        """Return the settings of this process."""
        return cls(
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
            torch.backends.cudnn.benchmark,
            torch.get_float32_matmul_precision(),
        )

    def adopt(self) -> None:
        """Apply the settings to this process."""
        torch.use_deterministic_algorithms(self.deterministic, warn_only=self.warn_only)
        torch.backends.cudnn.benchmark = self.cudnn_benchmark
        torch.set_float32_matmul_precision(self.matmul_precision)


def serve(parent: ParentProcess, settings: list[Any]) -> None:
    """Run a worker: receive the client, then answer requests until the parent closes the connection."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that has the run
    be_quiet()
    with suppress(ConnectionError):
        try:
            TorchSettings(*settings).adopt()
            client: Client = parent.receive()
            torch.set_num_threads(client.threads)
            client.own_memory()
            parent.send(READY)
        except Exception as error:
            parent.send(refusal(error))
            return
        while True:
            name, values, parts = parent.receive()
            parent.send(answer(client, name, values, parts))


def be_quiet() -> None:
    """Leave it to the process that has the run to say what Lightning has to say."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")


def answer(client: Client, name: str, values: dict[str, Any], parts: dict[str, bytes]) -> Any:
    """Return the packed reply, a Fault, or the ConfigurationError that ends the run."""
    try:
        reply = attempt(client, name, Request.from_values(values, from_bytes(parts)))
    except ConfigurationError as error:
        return error
    return (reply.values, to_bytes(reply.parts)) if isinstance(reply, Reply) else reply


def refusal(error: Exception) -> Fault | ConfigurationError:
    """Return what a worker sends in place of a reply."""
    return error if isinstance(error, ConfigurationError) else Fault.of(error)
