"""A fork server: a copy of this process, made before it computed anything, that forks children with all its imports.

Importing torch and Lightning takes seconds of processor time; a fork of a process that has them takes milliseconds.
Three things limit where a fork equals a new process:

- A process that has run an operator of torch has threads of OpenMP, which a fork does not get: its first operator would
  wait for them for ever. Hence the server is made early, and never computes.
- Most environment variables are read when a library is imported. A child whose variables differ from the server's in
  others than `READ_LATE` is not forked.
- CUDA cannot be used after a fork. On a machine with a GPU nothing is forked.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import selectors
import signal
import socket
import struct
import sys
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NoReturn

from pfedst.child_processes.environment import Changes, apply_changes, changes_between
from pfedst.child_processes.parent import ParentProcess

READ_LATE = ("WANDB_", "PFEDST_", "PL_", "CUBLAS_", "COLUMNS", "LINES")
"""How names of environment variables begin that are read when they are needed, after all imports."""
THREADS = "OMP_NUM_THREADS"
"""Read by OpenMP at import; a forked child calls `torch.set_num_threads` in its place."""
_LENGTH = struct.Struct("!I")
_STATUS = struct.Struct("!i")


class ForkedProcess:
    """A child of the fork server, with the methods of `multiprocessing.Process` that are needed here."""

    def __init__(self, pid: int, status: int) -> None:
        self.pid = pid
        self._status = status
        self._exitcode: int | None = None

    @property
    def exitcode(self) -> int | None:
        """None while it runs; negative: the signal that ended it."""
        self.join(0)
        return self._exitcode

    def join(self, timeout: float | None = None) -> None:
        """Wait until it has ended, `timeout` seconds at most."""
        if self._exitcode is not None:
            return
        with selectors.DefaultSelector() as waiting:
            waiting.register(self._status, selectors.EVENT_READ)
            if not waiting.select(timeout):
                return
        found = os.read(self._status, _STATUS.size)
        os.close(self._status)
        if not found:  # the server itself was killed, and nobody knows how its child ends
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
        self._exitcode = _STATUS.unpack(found)[0] if found else -signal.SIGKILL

    def terminate(self) -> None:
        """Ask it to end."""
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it."""
        self._signal(signal.SIGKILL)

    def _signal(self, number: int) -> None:
        if self.exitcode is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)


class _ForkServer:
    """The server as its users see it."""

    def __init__(self, pid: int, control: socket.socket, environment: Mapping[str, str]) -> None:
        self.pid = pid
        self.control = control
        self.environment = environment

    def fork(
        self, target: Callable[..., None], arguments: Sequence[Any], changes: Changes, other_end: int
    ) -> ForkedProcess:
        """Let the server fork a child.

        Raises:
            OSError: the server has ended.
        """
        request = json.dumps([target.__module__, target.__qualname__, arguments, str(Path.cwd()), changes]).encode()
        own_status, status = os.pipe()
        try:
            try:
                socket.send_fds(self.control, [_LENGTH.pack(len(request))], [other_end, status])
                self.control.sendall(request)
            finally:
                os.close(status)
            if not (pid := os.read(own_status, _STATUS.size)):
                raise BrokenPipeError("the fork server has ended")
        except OSError:
            os.close(own_status)
            raise
        return ForkedProcess(_STATUS.unpack(pid)[0], own_status)

    def stop(self) -> None:
        """End the server. Its children go on, and end with this process."""
        self.control.close()
        os.waitpid(self.pid, 0)


_server: _ForkServer | None = None
_inherited_bytes = 0


def start_fork_server() -> None:
    """Make the fork server of this process, if it has none, before the first operator of torch runs.

    Nothing happens where a fork cannot take the place of a new process: on other systems than Linux, or with a GPU.
    """
    global _server
    if _server is not None or not _can_fork():
        return
    ours, theirs = socket.socketpair()
    environment = dict(os.environ)
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        _alone(lambda: _serve(theirs, ours))
    theirs.close()
    _server = _ForkServer(pid, ours, environment)


def stop_fork_server() -> None:
    """End the fork server of this process, if it has one; later children are spawned."""
    global _server
    if _server is not None:
        _server.stop()
        _server = None


def fork(
    target: Callable[..., None], arguments: Sequence[Any], environment: Mapping[str, str], connection: Connection
) -> ForkedProcess | None:
    """Fork a child; return None if there is no fork server, or if a fork would not have this environment."""
    if _server is None:
        return None
    changes = _late_changes(_server.environment, environment)
    if changes is None:
        return None
    try:
        return _server.fork(target, arguments, changes, connection.fileno())
    except OSError:  # killed, by the system as a rule
        stop_fork_server()
        return None


def inherited_bytes() -> int:
    """Return the resident memory with which this process began: of a forked one the pages that it shares, else 0."""
    return _inherited_bytes


def _can_fork() -> bool:
    if sys.platform != "linux" or not hasattr(os, "pidfd_open"):
        return False
    torch = sys.modules.get("torch")
    return torch is None or torch.cuda.device_count() == 0


def _late_changes(before: Mapping[str, str], wanted: Mapping[str, str]) -> Changes | None:
    """Return the variables that a child sets itself (None: removes); None if others differ."""
    changes = changes_between(before, wanted)
    for name, value in changes.items():
        if not (name.startswith(READ_LATE) or (name == THREADS and value is not None and value.isdecimal())):
            return None
    return changes


# -- in the server -----------------------------------------------------------------------------------------------------


def _alone(work: Callable[[], None]) -> NoReturn:
    """Do the work of a forked process and end it: what its parent would do next must not happen twice."""
    code = 1
    try:
        work()
        code = 0
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        with suppress(BaseException):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _serve(control: socket.socket, other_end: socket.socket) -> None:
    """Fork children on request until the other end closes."""
    global _server
    _server = None  # it is the parent's
    other_end.close()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that has the run
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    # as in a new process: a program may have put others in their place
    sys.stdout = os.fdopen(1, "w", closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, errors="backslashreplace", closefd=False)
    gc.freeze()  # a collection in a child would copy every page that it shares
    with selectors.DefaultSelector() as ready:
        ready.register(control, selectors.EVENT_READ)
        while True:
            for key, _ in ready.select():
                if key.fileobj is not control:
                    _report_end(ready, key)
                elif not _answer(ready, control):
                    return


def _answer(ready: selectors.BaseSelector, control: socket.socket) -> bool:
    """Fork one child; return False if no request will come any more."""
    length, files, _, _ = socket.recv_fds(control, _LENGTH.size, 2)
    if not length:
        return False
    request = control.recv(_LENGTH.unpack(length)[0], socket.MSG_WAITALL)
    connection, status = files
    pid = os.fork()
    if pid == 0:
        for key in list(ready.get_map().values()):
            os.close(key.fd)
            if key.data is not None:
                os.close(key.data[1])
        os.close(status)
        _alone(lambda: _run(request, connection))
    os.close(connection)
    os.write(status, _STATUS.pack(pid))
    ready.register(os.pidfd_open(pid), selectors.EVENT_READ, (pid, status))
    return True


def _report_end(ready: selectors.BaseSelector, key: selectors.SelectorKey) -> None:
    pid, status = key.data
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    ready.unregister(key.fileobj)
    os.close(key.fd)
    with suppress(BrokenPipeError):  # nobody asks any more
        os.write(status, _STATUS.pack(code))
    os.close(status)


# -- in a child --------------------------------------------------------------------------------------------------------


def _run(request: bytes, connection: int) -> None:
    import resource  # not on every system

    global _inherited_bytes
    _inherited_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    module, name, arguments, folder, changes = json.loads(request)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with suppress(OSError):  # it is gone: a spawned process would not have it either
        os.chdir(folder)
    apply_changes(changes)
    if THREADS in changes and (torch := sys.modules.get("torch")):
        torch.set_num_threads(int(changes[THREADS]))
    getattr(importlib.import_module(module), name)(ParentProcess(Connection(connection)), *arguments)
    for thread in threading.enumerate():  # as at the end of any process
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join()
