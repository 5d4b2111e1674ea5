"""The client's side of the border: messages are checked against the declarations of the method."""

from __future__ import annotations

import copy
from collections.abc import Callable

from torch import Tensor

from pfedst.client.model import ClientModel
from pfedst.messages.payload import Payload, check_message, copy_payload
from pfedst.methods.interface import FederatedMethod, Start


def receive_message(model: ClientModel, method: FederatedMethod, message: Payload) -> None:
    """Check a message from the server and let the method receive it.

    Raises:
        StateError: it does not fit what is declared shared, or a number is not finite.
    """
    what = f"the message to client {model.name}"
    check_message(message, model.shared_tensors(), method.extra_messages, type(method).__name__, what)
    model.received = message
    method.receive(model, message)


def make_upload(model: ClientModel, method: FederatedMethod) -> Payload:
    """Make the message of a client after its fit, checked and copied.

    Raises:
        StateError: a tensor that is not declared shared is about to leave the client, or a number is not finite.
    """
    message = method.upload(model.move_to("cpu"))
    what = f"the message from client {model.name}"
    check_message(message, model.shared_tensors(), method.extra_messages, type(method).__name__, what)
    return copy_payload(message)


def start_maker(model: ClientModel) -> Callable[[Tensor | None], Start]:
    """Return the function by which the server learns the start of a run, from a copy of a client's model."""
    initial = copy.deepcopy(model)

    def make_start(anchors: Tensor | None) -> Start:
        if anchors is not None:
            initial.set_anchors(anchors)
        return initial.start()

    return make_start
