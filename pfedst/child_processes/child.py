"""Starting a child process: a fork where that gives what a new process would be, else a spawned process."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any, NamedTuple, Protocol

from pfedst.child_processes.environment import apply_changes, changes_between
from pfedst.child_processes.fork_server import fork
from pfedst.child_processes.parent import ParentProcess


class Process(Protocol):
    """What a forked and a spawned process have in common, by the names of `multiprocessing`."""

    @property
    def pid(self) -> int | None:
        """The process identifier."""

    @property
    def exitcode(self) -> int | None:
        """None while it runs; negative: the signal that ended it."""

    def join(self, timeout: float | None = None) -> None:
        """Wait until it has ended, `timeout` seconds at most."""

    def terminate(self) -> None:
        """Ask it to end."""

    def kill(self) -> None:
        """End it."""


class ChildProcess(NamedTuple):
    """A child, and the connection to it. Closing the connection ends the child."""

    process: Process
    connection: Connection


def start_child(
    target: Callable[..., None], *arguments: Any, environment: Mapping[str, str] | None = None
) -> ChildProcess:
    """Start a process that calls `target(parent, *arguments)`, with a `ParentProcess`.

    It is forked if `start_fork_server` was called and a fork would have the given environment; otherwise it is spawned.

    Args:
        target: a function of a module.
        arguments: JSON values.
        environment: all environment variables of the child; None for those of this process.
    """
    environment = dict(os.environ) if environment is None else environment
    connection, other_end = multiprocessing.Pipe()
    with other_end:
        process = fork(target, arguments, environment, other_end) or _spawn(target, arguments, environment, other_end)
    return ChildProcess(process, connection)


def _spawn(
    target: Callable[..., None], arguments: tuple[Any, ...], environment: Mapping[str, str], connection: Connection
) -> Process:
    process = multiprocessing.get_context("spawn").Process(target=_run, args=(connection, target, arguments))
    with _environment(environment):
        process.start()
    return process


def _run(connection: Connection, target: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    target(ParentProcess(connection), *arguments)


@contextmanager
def _environment(wanted: Mapping[str, str]) -> Iterator[None]:
    """Give this process other variables: a spawned process gets those that its parent has when it starts."""
    before = dict(os.environ)
    changes = changes_between(before, wanted)
    apply_changes(changes)
    try:
        yield
    finally:
        apply_changes({name: before.get(name) for name in changes})
