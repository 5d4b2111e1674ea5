"""Clients in this process, one after another."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import TracebackType

import torch

from pfedst.client.client import Client
from pfedst.messages.faults import Fault
from pfedst.messages.requests import Reply, Request
from pfedst.messages.transport import Started


class InProcess:
    """Calls the client directly.

    Args:
        client: answers for all sites.
        threads: threads of torch within a request; None for those that are set.
    """

    def __init__(self, client: Client, threads: int | None = None) -> None:
        self.client = client
        client.threads = threads or torch.get_num_threads()

    def __enter__(self) -> InProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def hello(self, run: str) -> dict[str, Reply]:
        """Return what every client has."""
        return all_hellos(self.client, run)

    def ask(self, requests: Mapping[str, Request], started: Started) -> Iterator[tuple[str, Reply | Fault]]:
        """Answer the requests in the order given."""
        for name, request in requests.items():
            started(name)
            yield name, attempt(self.client, name, request)


def all_hellos(client: Client, run: str) -> dict[str, Reply]:
    """Return the reply to `hello` of every client that a process answers for."""
    return {name: client.answer(name, Request("hello", run)) for name in client.data.sites}


def attempt(client: Client, name: str, request: Request) -> Reply | Fault:
    """Answer one request, or return the fault.

    Raises:
        ConfigurationError: see `Fault.of`.
    """
    try:
        return client.answer(name, request)
    except Exception as error:
        return Fault.of(error)
