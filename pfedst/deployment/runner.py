"""The process of a hospital: a SuperNode as its child, and one loop that answers all messages.

A SuperNode that has ended, or that a lost message has stopped, is started again, unless it has never worked: then its
log says why.
"""

from __future__ import annotations

import ctypes
import logging
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx

from pfedst.deployment.hospital import Hospital
from pfedst.deployment.runtime import POLL_SECONDS, Address, LostMessageError, answer_one
from pfedst.errors import ConfigurationError, NoAnswerError
from pfedst.state import write_atomically

LOG = "supernode.log"
SECRET = "secret"
STOP_SECONDS = 10.0
SIGNAL_AT_THE_END_OF_THE_PARENT = 1
"""PR_SET_PDEATHSIG of Linux."""
REFUSED = "[code: 2004]"
REFUSED_SECONDS = 75.0
"""How long a SuperNode is started again without success: for a minute Flower refuses the key of one that was killed."""
RETRY_SECONDS = 5.0
REASONS = {
    "CERTIFICATE_VERIFY_FAILED": "the certificate of the centre is not signed by --root-certificates, or is of another "
    "name than --superlink",
    REFUSED: "the centre has not registered the public key of --key (send it the file KEY.pub), or another process "
    "connects with this key",
}
"""Words in the log of a SuperNode that has ended, and what they mean."""


@contextmanager
def own_folder(folder: Path) -> Iterator[Path]:
    """Make the folder of a hospital for this user alone, and keep a second process out of it within the block.

    Raises:
        ConfigurationError: it cannot be written, or another process has it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        folder.chmod(0o700)
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise ConfigurationError(f"--state {folder} cannot be written: {error}") from error
    before = os.umask(0o077)
    try:
        with suppress(ImportError):  # not a Unix
            import fcntl

            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise ConfigurationError(f"--state {folder}: another pfedst site has it; stop that one") from error
        yield folder
    finally:
        os.umask(before)
        os.close(descriptor)


def run_hospital(hospital: Hospital, superlink: str, root_certificates: Path, key: Path) -> None:
    """Connect to the centre and answer its messages, until a signal ends the process.

    Args:
        hospital: answers.
        superlink: HOST:PORT of the centre.
        root_certificates: of the authority of the centre.
        key: the private key of the hospital.

    Raises:
        ConfigurationError: the centre refuses this hospital.
        NoAnswerError: the SuperNode has ended for another reason.
    """
    secret = hospital.folder / SECRET
    write_atomically(secret, secrets.token_bytes(32))
    node = Address(f"127.0.0.1:{_free_port()}", secret, retry_seconds=1.0)
    log = hospital.folder / LOG
    print(f"{hospital.site} answers {superlink}; Ctrl-C ends it; Flower's log is {log}", flush=True)
    worked, has_worked = time.monotonic(), False
    while time.monotonic() - worked < REFUSED_SECONDS:
        started = time.monotonic()
        with _supernode(node, superlink, root_certificates, key, log) as process:
            answered = _answer(hospital, node, process)
        if answered or time.monotonic() - started > REFUSED_SECONDS:
            worked, has_worked = time.monotonic(), True
        if REFUSED in log.read_text(errors="replace"):
            what = "the centre refuses the key for now"
        elif has_worked:
            what = "Flower's SuperNode has ended"
        else:
            break
        print(f"{what}; it is started again in {RETRY_SECONDS:g} s", flush=True)
        time.sleep(RETRY_SECONDS)
    raise _reason(log)


def _answer(hospital: Hospital, node: Address, process: subprocess.Popen[bytes]) -> bool:
    """Answer messages until a SuperNode ends or must be ended; return True if any was answered."""
    tasks, answered = node.tasks("SuperExec"), False
    while process.poll() is None:
        try:
            if answer_one(node, tasks, hospital.handle):
                answered = True
            else:
                time.sleep(POLL_SECONDS)
        except LostMessageError as error:
            logging.getLogger("pfedst").warning("a message was lost: %s", error)
            return answered
        except httpx.HTTPError:
            time.sleep(POLL_SECONDS)  # it starts, or has ended
    return answered


@contextmanager
def _supernode(
    node: Address, superlink: str, root_certificates: Path, key: Path, log: Path
) -> Iterator[subprocess.Popen[bytes]]:
    program = "from flwr.supernode.cli.flower_supernode import flower_supernode; flower_supernode()"
    options = {
        "--superlink": superlink,
        "--root-certificates": root_certificates,
        "--auth-supernode-private-key": key,
        "--isolation": "process",
        "--superexec-auth-secret-file": node.secret,
        "--port": node.host_and_port.rpartition(":")[2],
    }
    command = [sys.executable, "-c", program, *(str(part) for option in options.items() for part in option)]
    with log.open("wb") as file:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            start_new_session=True,  # Ctrl-C is for this process, which then ends the other
            preexec_fn=_end_with_parent,
        )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _end_with_parent() -> None:
    """Ask Linux to end this process when its parent is killed: a SuperNode alone would keep the place of the site."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(SIGNAL_AT_THE_END_OF_THE_PARENT, signal.SIGTERM)


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
    return port


def _reason(log: Path) -> ConfigurationError | NoAnswerError:
    """Return why a SuperNode has ended, as far as its log says."""
    text = log.read_text(errors="replace")
    for words, meaning in REASONS.items():
        if words in text:
            return ConfigurationError(f"{meaning} ({log})")
    return NoAnswerError(f"Flower's SuperNode has ended: {log} says why; start this command again")
