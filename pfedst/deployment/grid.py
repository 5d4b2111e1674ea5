"""Flower's grid with a limit on the size of a reply, checked piece by piece while the reply is pulled.

It stands on parts of flwr that are not public, as `runtime.py` does. `make check-hospitals` tests both on every new
version of flwr.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import httpx
from flwr.app import Message
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest
from flwr.proto.runtime_pb2 import PullAppMessagesRequest
from flwr.supercore.inflatable.inflatable_protobuf_utils import make_pull_object_fn_protobuf
from flwr.supercore.inflatable.inflatable_utils import ObjectPullError
from flwr.superlink.grid import HttpGrid

from pfedst.deployment.pieces import ArrivingMessage, PullPiece
from pfedst.transport.flower import Unread

PULL_PATH = "/v1/runtime/pull-object"
MOST_PIECE_BYTES = 2**24
"""Bytes of one piece of a reply. Flower cuts tensors into pieces of 5 MiB; plain values are one piece."""
MOST_PIECES = 10_000
"""Pieces of a reply: at 5 MiB each, ten times more than a reply of this size can need."""


class _OversizedError(Exception):
    """A reply, or a piece of it, is above its limit."""


class LimitedGrid(HttpGrid):
    """The way to the SuperLink; see `pfedst.transport.flower.ReplyGrid`."""

    def __init__(self, *options: Any, **named: Any) -> None:
        super().__init__(*options, **named)
        self._arriving: dict[str, ArrivingMessage] = {}
        """By the number of the request."""

    def _connect(self) -> None:
        super()._connect()
        # called before the body is read: a piece that is too large is not received
        self._runtime_client._client.event_hooks["response"].append(_refuse_large_piece)

    def pull_replies(self, limits: Mapping[str, int]) -> Iterator[tuple[str, Message | Unread]]:
        """Yield the replies that are there now, by the number of their request; the others are pulled on next time."""
        for number in self._arriving.keys() - limits.keys():  # given up
            self._confirm(self._arriving.pop(number).name)
        if new := [number for number in limits if number not in self._arriving]:
            found = self._runtime_client.PullMessages(PullAppMessagesRequest(message_ids=new))
            for head, tree in zip(found.messages_list, found.message_object_trees, strict=True):
                number = head.metadata.reply_to_message_id
                if number in limits:
                    self._arriving[number] = ArrivingMessage(tree, self._counting(limits[number]))
        for number, arriving in list(self._arriving.items()):
            if (reply := _pulled(arriving)) is not None:
                del self._arriving[number]
                self._confirm(arriving.name)
                yield number, reply

    def _counting(self, most_bytes: int) -> PullPiece:
        """Return a function that pulls the pieces of one reply, up to a number of bytes."""
        pull, received = make_pull_object_fn_protobuf(self._runtime_client.PullObject, self.node, self.run.run_id), [0]

        def counted(piece: str) -> bytes:
            content = pull(piece)
            received[0] += len(content)
            if received[0] > most_bytes:
                raise _OversizedError
            return content

        return counted

    def _confirm(self, name: str) -> None:
        """Let the SuperLink delete a reply, whether it was read or not."""
        confirmed = ConfirmMessageReceivedRequest(node=self.node, run_id=self.run.run_id, message_object_id=name)
        self._runtime_client.ConfirmMessageReceived(confirmed)


def _pulled(arriving: ArrivingMessage) -> Message | Unread | None:
    """Return a reply, or why it is not read; None while pieces are missing."""
    if arriving.pieces > MOST_PIECES:
        return Unread.TOO_LARGE
    try:
        return arriving.message() if arriving.pull() else None
    except _OversizedError:
        return Unread.TOO_LARGE
    except ObjectPullError:  # the sender was away before all pieces were there
        return Unread.INCOMPLETE


def _refuse_large_piece(response: httpx.Response) -> None:
    if response.request.url.path == PULL_PATH and int(response.headers.get("content-length", 0)) > MOST_PIECE_BYTES:
        raise _OversizedError
