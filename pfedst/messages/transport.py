"""The protocol of a transport: the only thing that the server knows of the way to its clients."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from types import TracebackType
from typing import Protocol

from pfedst.messages.faults import Fault
from pfedst.messages.requests import Reply, Request

Started = Callable[[str], None]
"""Called with the name of a client when its request is under way."""


class Transport(Protocol):
    """Carries requests to clients and replies back; a context, within which it may hold processes or connections."""

    def __enter__(self) -> Transport:
        """Open what the transport needs."""
        ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it."""
        ...

    def hello(self, run: str) -> dict[str, Reply]:
        """Return the reply to `hello` of every client that can be reached, by name.

        Args:
            run: name of the run.
        """
        ...

    def ask(self, requests: Mapping[str, Request], started: Started) -> Iterator[tuple[str, Reply | Fault]]:
        """Send requests and yield each client's name with its reply, or with the fault, in any order.

        Args:
            requests: by client name.
            started: called when a client begins.

        Raises:
            ConfigurationError: an option that cannot work at any client.
        """
        ...
