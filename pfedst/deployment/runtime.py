"""Takes tasks of Flower into this process. With `grid.py` it stands on parts of flwr that are not public.

Flower would start a process for each message (9 s of imports) and run the code of the bundle in it. Here a process that
lives as long as the run, or as the site, takes the task and answers with the installed package; the bundle is neither
unpacked nor imported. `make check-hospitals` tests both files on every new version of flwr.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from flwr.app import Context, Message
from flwr.app.error import Error
from flwr.common.constant import ErrorCode, SubStatus
from flwr.common.serde import context_from_proto, fab_to_proto, run_from_proto
from flwr.proto.control_pb2 import StartRunRequest
from flwr.proto.node_pb2 import Node
from flwr.proto.runtime_pb2 import (
    AcquireTaskRequest,
    PullAppMessagesRequest,
    PullTaskInputRequest,
    PullTaskInputResponse,
    PushTaskOutputRequest,
    SendTaskHeartbeatRequest,
)
from flwr.supercore.constant import TaskType
from flwr.supercore.control.control_http_client import ControlHttpClient
from flwr.supercore.fab import Fab
from flwr.supercore.heartbeat import HeartbeatSender
from flwr.supercore.inflatable.inflatable_protobuf_utils import make_pull_object_fn_protobuf
from flwr.supercore.interceptors import (
    RuntimeTokenHttpInterceptor,
    RuntimeVersionHttpInterceptor,
    SuperExecAuthHttpInterceptor,
)
from flwr.supercore.retry import RetryInvoker, exponential
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supercore.task_identity import TaskIdentity
from flwr.supernode.runtime.run_clientapp import push_message, push_task_output

from pfedst.deployment.bundle import bundle, bundle_digest
from pfedst.deployment.grid import LimitedGrid
from pfedst.deployment.pieces import ArrivingMessage
from pfedst.errors import ConfigurationError, NoAnswerError

ACQUIRE = frozenset({"/flwr.proto.Runtime/AcquireTask"})
"""The requests that are signed with the secret."""
RETRY_SECONDS = 120.0
"""How long the SuperLink may be away, for a restart."""
TAKE_SECONDS = 30.0
"""How long the SuperLink may take to offer a run that was just submitted."""
POLL_SECONDS = 0.3
BUSY = (502, 503, 504)
"""Codes of HTTP with which a request is repeated."""
Handle = Callable[[Message], Message]

logging.getLogger("flwr").setLevel(logging.ERROR)
logging.getLogger("httpx").setLevel(logging.WARNING)


@dataclass(frozen=True)
class Address:
    """Where a part of Flower listens.

    Attributes:
        host_and_port: HOST:PORT.
        secret: the file with the secret of its tasks.
        root_certificates: the certificate of its authority; None for a SuperNode on this machine, without TLS.
        retry_seconds: how long it may be away.
    """

    host_and_port: str
    secret: Path
    root_certificates: Path | None = None
    retry_seconds: float = RETRY_SECONDS

    @property
    def trusted(self) -> bytes | None:
        """The content of `root_certificates`."""
        return None if self.root_certificates is None else self.root_certificates.read_bytes()

    def client(self, kind: type[Any], component: str, *interceptors: Any) -> Any:
        """Return a client of Flower's interface `kind`."""
        return kind.from_server_address(
            server_address=self.host_and_port,
            insecure=self.root_certificates is None,
            root_certificates=self.trusted,
            interceptors=[RuntimeVersionHttpInterceptor(component_name=component), *interceptors],
            retry_invoker=_retries(self.retry_seconds),
        )

    def tasks(self, component: str) -> RuntimeHttpClient:
        """Return a client that may take tasks."""
        signs = SuperExecAuthHttpInterceptor(master_secret=self.secret.read_bytes(), protected_methods=ACQUIRE)
        found: RuntimeHttpClient = self.client(RuntimeHttpClient, component, signs)
        return found


@contextmanager
def submitted_run(link: Address) -> Iterator[LimitedGrid]:
    """Submit a run to the SuperLink, and be its server within this block.

    Raises:
        ConfigurationError: the SuperLink refuses the run or the secret, or another program has taken the run.
        NoAnswerError: the SuperLink cannot be reached.
    """
    try:
        run_id, token = _take_run(link)
        grid = LimitedGrid(link.host_and_port, link.root_certificates is None, link.trusted, token=token)
        grid._retry_invoker = _retries(link.retry_seconds)
        client = grid._runtime_client
        with _heartbeat(client):
            pulled = client.PullTaskInput(PullTaskInputRequest())
            TaskIdentity.task_id, TaskIdentity.run_id = pulled.task_id, run_id
            TaskIdentity.node_id = pulled.context.node_id
            grid.set_run(run_from_proto(pulled.run))
            status = SubStatus.FAILED
            try:
                yield grid
                status = SubStatus.COMPLETED
            finally:
                grid._retry_invoker.max_tries = 1
                _end(client, status)
                grid.close()
    except httpx.HTTPStatusError as error:
        raise ConfigurationError(
            f"the SuperLink at {link.host_and_port} refuses a request ({error.response.status_code}): is "
            f"--flower.secret the file of its --superexec-auth-secret-file, and was the run not stopped?"
        ) from error
    except httpx.HTTPError as error:
        raise NoAnswerError(
            f"the SuperLink at {link.host_and_port} cannot be reached ({error}): start it, and check "
            f"--flower.superlink and --flower.root_certificates. What was done is saved: continue with the same "
            f"command, --name and --resume true"
        ) from error


def _take_run(link: Address) -> tuple[int, str]:
    """Submit a run; return its number and the token of its server."""
    control = link.client(ControlHttpClient, "flwr CLI")
    submitted = control.StartRun(StartRunRequest(fab=fab_to_proto(Fab(bundle_digest(), bundle(), {}))))
    control.close()
    if not submitted.HasField("run_id"):
        raise ConfigurationError(f"the SuperLink at {link.host_and_port} refuses to start a run")
    tasks = link.tasks("SuperExec")
    end = time.monotonic() + TAKE_SECONDS
    try:
        while time.monotonic() < end:
            found = tasks.AcquireTask(AcquireTaskRequest(supported_task_types=[TaskType.SERVER_APP]))
            if found.HasField("task") and found.token and found.task.run_id == submitted.run_id:
                return submitted.run_id, found.token
            if found.HasField("task") and found.token:  # of a run that nobody has taken
                _end(link.client(RuntimeHttpClient, "flwr-serverapp", RuntimeTokenHttpInterceptor(found.token)))
            else:
                time.sleep(POLL_SECONDS)
    finally:
        tasks.close()
    raise ConfigurationError(
        f"another program has taken the run at {link.host_and_port}: start flower-superlink with --isolation process, "
        f"and no flower-superexec beside it"
    )


def _end(client: RuntimeHttpClient, status: str = SubStatus.FAILED) -> None:
    try:
        client.PushTaskOutput(PushTaskOutputRequest(sub_status=status, details=""))
    except httpx.HTTPError:
        logging.getLogger("pfedst").warning("the SuperLink was not told that the run has ended; it notices by itself")


class LostMessageError(Exception):
    """A message was taken and got no reply. Its SuperNode waits for one for ever, and takes no other message."""


def answer_one(node: Address, tasks: RuntimeHttpClient, handle: Handle) -> bool:
    """Take a message from the SuperNode and answer it; return False if there is none.

    Raises:
        httpx.HTTPError: the SuperNode cannot be reached.
        LostMessageError: the SuperNode must be started again; the server then sends the request again.
    """
    token = first = _taken(tasks)
    while token:
        token = _answered(node, tasks, token, handle)
    return bool(first)


def _taken(tasks: RuntimeHttpClient) -> str:
    """Return the token of a task; empty if there is none."""
    task = tasks.AcquireTask(AcquireTaskRequest(supported_task_types=[TaskType.CLIENT_APP]))
    return str(task.token) if task.HasField("task") else ""


def _answered(node: Address, tasks: RuntimeHttpClient, token: str, handle: Handle) -> str:
    """Answer the message of a task. Return the token of a next task if this message will never be there.

    A SuperNode offers a task before it has the message, and takes the next message only after this one is answered or
    given up: a next task says that its centre was killed meanwhile.
    """
    client = node.client(RuntimeHttpClient, "flwr-clientapp", RuntimeTokenHttpInterceptor(token))
    context, status = None, SubStatus.FAILED
    with closing(client), _heartbeat(client):
        try:
            taken = client.PullTaskInput(PullTaskInputRequest())
            TaskIdentity.task_id, TaskIdentity.run_id = taken.task_id, taken.run.run_id
            TaskIdentity.node_id = taken.context.node_id
            context = context_from_proto(taken.context)
            arriving, next_token = _named(client, context), ""
            while not (arriving and arriving.pull()) and not next_token:
                time.sleep(POLL_SECONDS)
                arriving, next_token = arriving or _named(client, context), _taken(tasks)
            if arriving and not next_token:
                reply, status = _reply(arriving.message(), taken, handle)
                push_message(client, reply, context)
        except Exception as error:
            raise LostMessageError(f"{type(error).__name__}: {error}") from error
        push_task_output(client, context, status, "")
    return next_token


def _named(client: RuntimeHttpClient, context: Context) -> ArrivingMessage | None:
    """Return the message of a task as far as it is there; None if it is not named yet."""
    found = client.PullMessages(PullAppMessagesRequest())
    if not found.messages_list:
        return None
    of_node = Node(node_id=context.node_id)
    pull = make_pull_object_fn_protobuf(client.PullObject, of_node, context.run_id)
    return ArrivingMessage(found.message_object_trees[0], pull)


def _reply(message: Message, taken: PullTaskInputResponse, handle: Handle) -> tuple[Message, str]:
    """Return the reply to a message, and what becomes of its task."""
    if taken.fab.hash_str == bundle_digest():
        return handle(message), SubStatus.COMPLETED
    logging.getLogger("pfedst").warning(
        "refused: run %d brings another bundle, %s", taken.run.run_id, taken.fab.hash_str
    )
    return Message(Error(ErrorCode.INVALID_FAB, "another bundle"), reply_to=message), SubStatus.FAILED


@contextmanager
def _heartbeat(client: RuntimeHttpClient) -> Iterator[None]:
    """Keep a task alive. Flower's own function would interrupt this process when a task has ended elsewhere."""

    def beat() -> bool:
        try:
            client.SendTaskHeartbeat(SendTaskHeartbeatRequest())
        except httpx.TransportError:
            return False
        except httpx.HTTPError:
            return True
        return True

    sender = HeartbeatSender(beat)
    sender.start()
    try:
        yield
    finally:
        sender.stop()


def _retries(seconds: float) -> RetryInvoker:
    """Repeat a request while the other side is away; Flower's own policy would interrupt this process at a refusal."""
    return RetryInvoker(
        lambda: exponential(base_delay=0.5, max_delay=5),
        (httpx.TransportError, httpx.HTTPStatusError),
        max_tries=None,
        max_time=seconds,
        should_giveup=_is_final,
    )


def _is_final(error: Exception) -> bool:
    if isinstance(error, httpx.HTTPStatusError):
        return error.response.status_code not in BUSY
    return any(word in str(error).lower() for word in ("certificate", "ssl", "tls"))
