"""Flower's grid with a limit on the size of a reply, checked piece by piece while the reply is pulled.

It stands on parts of flwr that are not public, as `runtime.py` does. `make check-hospitals` tests both on every new
version of flwr.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from typing import cast

import httpx
from flwr.app import Message
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest, ObjectTree
from flwr.proto.runtime_pb2 import PullAppMessagesRequest
from flwr.supercore.inflatable.inflatable_object import iterate_object_tree
from flwr.supercore.inflatable.inflatable_protobuf_utils import make_pull_object_fn_protobuf
from flwr.supercore.inflatable.inflatable_utils import ObjectPullError, inflate_object_from_contents, pull_objects
from flwr.superlink.grid import HttpGrid

from pfedst.transport.flower import Limit, Unread

PULL_PATH = "/v1/runtime/pull-object"
MOST_PIECE_BYTES = 2**24
"""Bytes of one piece of a reply. Flower cuts tensors into pieces of 5 MiB; plain values are one piece."""
MOST_PIECES = 10_000
"""Pieces of a reply: at 5 MiB each, ten times more than a reply of this size can need."""


class _OversizedError(Exception):
    """A reply, or a piece of it, is above its limit."""


class LimitedGrid(HttpGrid):
    """The way to the SuperLink; see `pfedst.transport.flower.ReplyGrid`."""

    def _connect(self) -> None:
        super()._connect()
        # called before the body is read: a piece that is too large is not received
        self._runtime_client._client.event_hooks["response"].append(_refuse_large_piece)

    def pull_replies(self, limits: Mapping[str, Limit]) -> Iterator[tuple[str, Message | Unread]]:
        """Yield the replies that have arrived, by the number of their request."""
        found = self._runtime_client.PullMessages(PullAppMessagesRequest(message_ids=list(limits)))
        for head, tree in zip(found.messages_list, found.message_object_trees, strict=True):
            number = head.metadata.reply_to_message_id
            if number in limits:
                yield number, self._pull(head.metadata.message_id, tree, limits[number])

    def _pull(self, name: str, tree: ObjectTree, limit: Limit) -> Message | Unread:
        """Pull one reply. The SuperLink deletes it afterwards, whether it was read or not."""
        client, run_id = self._runtime_client, self.run.run_id
        pull, received, lock = make_pull_object_fn_protobuf(client.PullObject, self.node, run_id), [0], threading.Lock()

        def counted(piece: str) -> bytes:
            content = pull(piece)
            with lock:
                received[0] += len(content)
                if received[0] > limit.most_bytes:
                    raise _OversizedError
            return content

        pieces = [of_tree.object_id for of_tree in iterate_object_tree(tree)]
        try:
            if len(pieces) > MOST_PIECES:
                return Unread.TOO_LARGE
            contents = pull_objects(pieces, counted, max_time=limit.seconds)
        except _OversizedError:
            return Unread.TOO_LARGE
        except ObjectPullError:  # the sender was away before all pieces were there, or the time is over
            return Unread.INCOMPLETE
        finally:
            confirmed = ConfirmMessageReceivedRequest(node=self.node, run_id=run_id, message_object_id=name)
            client.ConfirmMessageReceived(confirmed)
        message = cast(Message, inflate_object_from_contents(name, contents))
        message.metadata.__dict__["_message_id"] = name
        return message


def _refuse_large_piece(response: httpx.Response) -> None:
    if response.request.url.path == PULL_PATH and int(response.headers.get("content-length", 0)) > MOST_PIECE_BYTES:
        raise _OversizedError
