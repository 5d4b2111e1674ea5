"""What a child process knows of its parent: one connection, which ends the child when the parent ends."""

from __future__ import annotations

import os
import queue
import threading
from multiprocessing.connection import Connection
from typing import Any, NamedTuple


class _Unreadable(NamedTuple):
    error: Exception


class ParentProcess:
    """The process that started this one. When it has ended, however it ended, this process ends at once.

    A process that outlived a killed run would write into folders of the run while it is being resumed.

    Args:
        connection: the end of a pipe whose other end the parent holds.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._received: queue.SimpleQueue[Any] = queue.SimpleQueue()
        threading.Thread(target=self._read, name="reads from the parent", daemon=True).start()

    def _read(self) -> None:
        while True:
            try:
                self._received.put(self._connection.recv())
            except (EOFError, OSError):
                os._exit(1)
            except Exception as error:  # an object that cannot be built in this process
                self._received.put(_Unreadable(error))

    def receive(self) -> Any:
        """Wait for an object from the parent.

        Raises:
            Exception: the object cannot be built in this process.
        """
        received = self._received.get()
        if isinstance(received, _Unreadable):
            raise received.error
        return received

    def send(self, value: Any) -> None:
        """Send an object to the parent."""
        self._connection.send(value)
