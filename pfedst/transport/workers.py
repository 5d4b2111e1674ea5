"""The other end of a ProcessExecutor: what a worker process does, and what travels to it and back."""

from __future__ import annotations

import copy
import logging
import signal
import warnings
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pfedst.client.client import ClientWork, Fit, Task
from pfedst.client.module import FederatedClient
from pfedst.errors import ConfigurationError
from pfedst.messages.faults import Fault
from pfedst.messages.payload import raw_bytes
from pfedst.server.server import Federation


class _Bytes(NamedTuple):
    """A tensor by value. Sent as it is, a tensor would be shared memory that both sides write to."""

    content: bytes
    dtype: torch.dtype
    shape: tuple[int, ...]


def packed(value: Any) -> Any:
    """Nested dicts, lists and tuples with their tensors by value."""
    if isinstance(value, Tensor):
        plain = value.detach().cpu()
        return _Bytes(bytes(raw_bytes(plain)), plain.dtype, tuple(plain.shape))
    if isinstance(value, dict):
        return {key: packed(part) for key, part in value.items()}
    if type(value) in (list, tuple):
        return type(value)(packed(part) for part in value)
    return value


def unpacked(value: Any) -> Any:
    """The inverse of `packed`, with tensors of their own."""
    if isinstance(value, _Bytes):
        if not value.content:
            return torch.empty(value.shape, dtype=value.dtype)
        return torch.frombuffer(bytearray(value.content), dtype=value.dtype).reshape(value.shape)
    if isinstance(value, dict):
        return {key: unpacked(part) for key, part in value.items()}
    if type(value) in (list, tuple):
        return type(value)(unpacked(part) for part in value)
    return value


def _state(client: FederatedClient) -> dict[str, Any]:
    """All of a client that a task may change."""
    client.move_to("cpu")
    return {
        "own": client.own_tensors(),
        "memo": client.memo,
        "optimizer_state": client.optimizer_state,
        "round": client.round,
        "finetuning": client.finetuning,
    }


def state_for(federation: Federation, task: Task) -> list[dict[str, Any]]:
    """What a worker needs to know for a task, packed: the client, and for an evaluation the generic model."""
    clients = [federation.members[task.name]]
    if not isinstance(task, Fit) and federation.personalises:
        clients.append(federation.generic)
    return [packed(_state(client) | {"received": client.received}) for client in clients]


def load(client: FederatedClient, sent: dict[str, Any]) -> None:
    """Put a client in the state that the other side sent."""
    state = unpacked(sent)
    client.move_to("cpu").load_own_state(state.pop("own"))
    for name, value in state.items():
        setattr(client, name, value)
    client.derived.clear()


def refusal(error: Exception) -> Fault | ConfigurationError:
    """An answer that is none."""
    return error if isinstance(error, ConfigurationError) else Fault.of(error)


class TorchSettings(NamedTuple):
    """What of torch holds for a whole process, was chosen in the run's, and decides over bits."""

    threads: int
    deterministic: bool
    warn_only: bool
    cudnn_benchmark: bool
    matmul_precision: str

    @classmethod
    def here(cls, threads: int) -> TorchSettings:
        """Those of this process, but for the number of threads."""
        return cls(
            threads,
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
            torch.backends.cudnn.benchmark,
            torch.get_float32_matmul_precision(),
        )

    def adopt(self) -> None:
        """Have them hold in this process."""
        torch.set_num_threads(self.threads)
        torch.use_deterministic_algorithms(self.deterministic, warn_only=self.warn_only)
        torch.backends.cudnn.benchmark = self.cudnn_benchmark
        torch.set_float32_matmul_precision(self.matmul_precision)


def serve(connection: Connection, shared: ClientWork, settings: TorchSettings) -> None:
    """The life of a worker: tasks until the other end closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that has the run
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    with suppress(EOFError, ConnectionError):
        try:
            settings.adopt()
            # what came is shared memory; the encoder may stay so, clients are trained in place
            work = ClientWork(copy.deepcopy(shared.federation), shared.data, shared.local)
            connection.send("ready")
        except Exception as error:
            connection.send(refusal(error))
            return
        while True:
            task, state = connection.recv()
            try:
                connection.send(answer(work, task, state))
            except Exception as error:
                connection.send(refusal(error))


def answer(work: ClientWork, task: Task, sent: list[dict[str, Any]]) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """A task's result, and for a fit the client after it.

    Raises:
        Exception: whatever the task does.
    """
    federation = work.federation
    client = federation.members[task.name]
    for target, state in zip((client, federation.generic), sent, strict=False):
        load(target, state)
    result = work.do(task)
    return result, packed(_state(client)) if isinstance(task, Fit) else None
