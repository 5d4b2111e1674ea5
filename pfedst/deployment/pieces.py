"""A message of Flower that arrives piece by piece, for whoever must not wait for its last piece alone.

Flower names a message as soon as its sender has begun to send it, and its own functions then wait up to two hours for
the pieces. A sender that went away sends no more. With `grid.py` and `runtime.py` this stands on parts of flwr that are
not public; `make check-hospitals` tests them on every new version of flwr.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

from flwr.app import Message
from flwr.proto.message_pb2 import ObjectTree
from flwr.supercore.inflatable.inflatable_object import iterate_object_tree
from flwr.supercore.inflatable.inflatable_utils import ObjectUnavailableError, inflate_object_from_contents

PullPiece = Callable[[str], bytes]
"""Return a piece by its name; raises ObjectUnavailableError while it is not there, ObjectPullError if it never will."""


class ArrivingMessage:
    """Pieces of one message.

    Attributes:
        name: of the message.
        pieces: number of all its pieces.

    Args:
        tree: names the pieces.
        pull: returns a piece.
    """

    def __init__(self, tree: ObjectTree, pull: PullPiece) -> None:
        self.name = tree.object_id
        self._missing = list(dict.fromkeys(part.object_id for part in iterate_object_tree(tree)))
        self.pieces = len(self._missing)
        self._pull = pull
        self._contents: dict[str, bytes] = {}

    def pull(self) -> bool:
        """Pull what is there; return True when no piece is missing.

        Raises:
            ObjectPullError: a piece will never be there.
        """
        while self._missing:
            try:
                self._contents[self._missing[-1]] = self._pull(self._missing[-1])
            except ObjectUnavailableError:
                return False
            self._missing.pop()
        return True

    def message(self) -> Message:
        """Return the message, once; all its pieces are there."""
        made = cast(Message, inflate_object_from_contents(self.name, self._contents))
        made.metadata.__dict__["_message_id"] = self.name  # the pieces do not hold it
        return made
