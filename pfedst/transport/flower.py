"""Clients at hospitals, reached through Flower: requests and replies as Flower's messages.

The transport polls by itself: Flower's `send_and_receive` sleeps three seconds between two looks. Flower never repeats
a message. A request gives the same reply whenever it is answered, so this transport sends it again if a site was away.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from types import TracebackType
from typing import Any, Protocol

from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict

from pfedst import errors
from pfedst.errors import ConfigurationError, NoAnswerError, PfedstError, StateError, listed
from pfedst.messages.faults import Fault
from pfedst.messages.payload import Payload, from_bytes, payload_bytes, to_bytes
from pfedst.messages.requests import Reply, Request
from pfedst.messages.transport import Started
from pfedst.reporting import bytes_text

VALUES, PARTS, SAFETENSORS = "values", "parts", "safetensors"
AGREEMENT, SITE, FAULT, DIFFERENCES = "agreement", "site", "fault", "differences"
"""Values of a message beside those of a request or a reply."""
TYPES = {"fit": "train", "evaluate": "evaluate"}
"""Flower's types of messages; all others are queries."""
LOST = (3, 4, 5, 8)
"""Flower's codes for a message that a site did not get or could not answer: the site, or its process, was away."""
MARGIN_BYTES = 2**24
"""Bytes of a reply that are accepted beside twice those of its request: prototypes, metrics, counts."""
LONGEST_SECONDS = 7 * 24 * 3600.0
"""How long Flower keeps a message of a request without a time limit."""


class Unread(Enum):
    """Why a reply that has arrived was not read."""

    TOO_LARGE = "above its limit of bytes"
    INCOMPLETE = "the site went away before all of it was there"


class ReplyGrid(Protocol):
    """What this transport needs of Flower's `Grid`, with a limit on what is pulled."""

    def get_nodes(self) -> Iterable[Any]:
        """Return the nodes that are online."""
        ...

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Send messages; return their numbers."""
        ...

    def pull_replies(self, limits: Mapping[str, int]) -> Iterable[tuple[str, Message | Unread]]:
        """Yield the replies that have arrived, by the number of their request; a reply is pulled up to its limit.

        Args:
            limits: most bytes of all pieces of a reply, by the number of each request under way.
        """
        ...


def packed(values: Mapping[str, Any], parts: Payload) -> RecordDict:
    """Return plain values and named tensors as Flower's records; tensors travel as safetensors."""
    arrays = {name: Array("uint8", (len(part),), SAFETENSORS, part) for name, part in to_bytes(parts).items()}
    text = json.dumps(values, allow_nan=False)
    return RecordDict({VALUES: ConfigRecord({"json": text}), PARTS: ArrayRecord(arrays)})


def unpacked(content: RecordDict) -> tuple[dict[str, Any], Payload]:
    """The inverse of `packed`.

    Raises:
        StateError: the records are of another kind.
    """
    try:
        values = json.loads(str(content.config_records[VALUES]["json"]))
        arrays = dict(content.array_records[PARTS])
        whole = isinstance(values, dict) and all(array.stype == SAFETENSORS for array in arrays.values())
    except (KeyError, ValueError, RecursionError) as error:
        raise StateError("a message holds no values and tensors of pfedst") from error
    if not whole:
        raise StateError("a message holds no values and tensors of pfedst")
    return values, from_bytes({str(name): array.data for name, array in arrays.items()})


def size_and_digest(content: RecordDict) -> tuple[int, str]:
    """Return the bytes of values and tensors of a message, and their SHA-256."""
    pieces = [str(content.config_records[VALUES]["json"]).encode()]
    pieces += [array.data for _, array in sorted(content.array_records[PARTS].items())]
    return sum(map(len, pieces)), hashlib.sha256(b"".join(pieces)).hexdigest()


@dataclass
class _Sent:
    """A request under way.

    Attributes:
        deadline: when it is given up.
        message: its number at Flower; empty while it is not under way.
        activated: when the node that has it came online.
        away_since: since when the site is away; None while it is there.
    """

    deadline: float
    message: str = ""
    activated: str = ""
    away_since: float | None = None


class Flower:
    """Hospitals behind Flower's SuperLink.

    A site is known by the name under which its key is registered. The name that it says of itself must be the same.

    Args:
        grid: connected to the SuperLink.
        sites: the names of all sites of the run.
        agreement: what every site must have in common with the server; a site refuses with the differences.
        wait_seconds: how long to wait for a site that is not connected, at the start and whenever it goes away, >= 0.
        timeout_seconds: the longest time of a request; None for any time.
        poll_seconds: time between two looks for replies, > 0.
    """

    def __init__(
        self,
        grid: ReplyGrid,
        sites: Sequence[str],
        agreement: Mapping[str, Any],
        wait_seconds: float,
        timeout_seconds: float | None = None,
        poll_seconds: float = 0.3,
    ) -> None:
        self.grid = grid
        self.sites = sorted(sites)
        self.agreement = dict(agreement)
        self.wait_seconds = wait_seconds
        self.timeout_seconds = timeout_seconds
        self.poll_seconds = poll_seconds
        self._hellos: dict[str, Reply] = {}

    def __enter__(self) -> Flower:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def hello(self, run: str) -> dict[str, Reply]:
        """Return the first reply of every site; wait until all have registered and replied.

        Raises:
            ConfigurationError: a site refuses, calls itself by another name than its key has, or does not come.
        """
        if not self._hellos:
            requests = {name: Request("hello", run) for name in self.sites}
            found = dict(self._exchange(requests, lambda name: None))
            self._hellos = {name: _accepted(name, found[name]) for name in self.sites}
        return dict(self._hellos)

    def ask(self, requests: Mapping[str, Request], started: Started) -> Iterator[tuple[str, Reply | Fault]]:
        """Send all requests at once; yield the replies as they arrive."""
        yield from self._exchange(requests, started)

    def _exchange(self, requests: Mapping[str, Request], started: Started) -> Iterator[tuple[str, Reply | Fault]]:
        longest = self.timeout_seconds or LONGEST_SECONDS
        waiting = {name: _Sent(time.monotonic() + longest) for name in requests}
        while waiting:
            nodes = {node.name: node for node in self.grid.get_nodes() if node.name in waiting}
            for name, sent in list(waiting.items()):
                if sent.message and name in nodes and nodes[name].last_activated_at != sent.activated:
                    sent.message = ""  # the node that had it is gone, and nobody will reply
                if not sent.message and name in nodes:
                    if not sent.activated:
                        started(name)
                    self._send(name, sent, nodes[name], requests[name])
                elif not sent.message and self._is_given_up(sent):
                    del waiting[name]
                    yield name, _no_answer(name, f"not connected for {self.wait_seconds:g} s")
            for name, reply in self._replies(waiting, requests):
                del waiting[name]
                yield name, reply
            for name in [name for name, sent in waiting.items() if time.monotonic() > sent.deadline]:
                del waiting[name]
                yield name, _no_answer(name, f"no answer within {longest:g} s")
            if waiting:
                time.sleep(self.poll_seconds)

    def _send(self, name: str, sent: _Sent, node: Any, request: Request) -> None:
        if sent.activated:
            logging.getLogger("pfedst").info("site %s was away; its request is sent again", name)
        message = Message(
            packed({**request.values(), AGREEMENT: self.agreement}, request.parts),
            dst_node_id=node.node_id,
            message_type=TYPES.get(request.kind, f"query.{request.kind}"),
            group_id=str(request.round),
            ttl=max(1.0, sent.deadline - time.monotonic()) + 60,
        )
        (number,) = self.grid.push_messages([message]) or ("",)
        sent.message, sent.activated, sent.away_since = number or "", node.last_activated_at, None

    def _is_given_up(self, sent: _Sent) -> bool:
        """Return True if a site has been away for too long; the time begins when this is first asked."""
        sent.away_since = sent.away_since or time.monotonic()
        return time.monotonic() - sent.away_since >= self.wait_seconds

    def _replies(
        self, waiting: Mapping[str, _Sent], requests: Mapping[str, Request]
    ) -> Iterator[tuple[str, Reply | Fault]]:
        names = {sent.message: name for name, sent in waiting.items() if sent.message}
        limits = {number: most_bytes(requests[name]) for number, name in names.items()}
        for number, message in self.grid.pull_replies(limits) if names else ():
            name = names.pop(number)
            if message is Unread.TOO_LARGE:
                most = bytes_text(limits[number])
                yield name, Fault.of(StateError(f"site {name}: a reply of more than {most}, which was not read"))
            elif isinstance(message, Unread) or (message.has_error() and message.error.code in LOST):
                waiting[name].message = ""
            else:
                yield name, _reply(name, message)


def most_bytes(request: Request) -> int:
    """Return the bytes that a reply to a request may have: twice those of the request, and a margin."""
    return 2 * payload_bytes(request.parts) + MARGIN_BYTES


def _reply(name: str, message: Message) -> Reply | Fault:
    """Return what a site sent; nothing of it is trusted."""
    if message.has_error():
        return Fault.of(StateError(f"site {name}: Flower reports error {message.error.code}"))
    try:
        values, parts = unpacked(message.content)
    except Exception as error:
        text = str(error) if isinstance(error, StateError) else type(error).__name__
        return Fault.of(StateError(f"site {name}: {text}"))
    if FAULT in values:
        return _reported_fault(name, values)
    if values.get(SITE) != name:
        return Fault.of(
            StateError(
                f"the key of site {name} is used by a site that calls itself {str(values.get(SITE))[:80]!r}: start it "
                f"with --site {name}, or register its key under its own name"
            )
        )
    return Reply(values, parts)


def _reported_fault(name: str, values: Mapping[str, Any]) -> Fault:
    """Return the fault that a site reports by its kind alone; a site cannot end the run with it."""
    kind = str(values[FAULT])
    kind = kind if re.fullmatch(r"\w{1,60}", kind) else "Exception"
    found = getattr(errors, kind, PfedstError)
    known = isinstance(found, type) and issubclass(found, PfedstError) and found is not ConfigurationError
    text = f"site {name} reports {kind}; the reason is in its own log"
    if differences := values.get(DIFFERENCES):
        text = f"site {name} is configured for another study: {listed([str(d)[:300] for d in differences], '; ')}"
    return Fault(kind, text, (found if known else PfedstError)(text))


def _accepted(name: str, reply: Reply | Fault) -> Reply:
    if isinstance(reply, Fault):
        raise ConfigurationError(reply.text)
    return reply


def _no_answer(name: str, reason: str) -> Fault:
    return Fault.of(NoAnswerError(f"site {name}: {reason}"))
