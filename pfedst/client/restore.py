"""Puts the model of a client into the state that a request names: a saved fit, and the message of the server."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

from pfedst.client.exchange import receive_message
from pfedst.client.model import ClientModel
from pfedst.client.state import SiteState
from pfedst.messages.payload import State
from pfedst.messages.requests import Request
from pfedst.methods.interface import FederatedMethod


@dataclass(frozen=True)
class FirstState:
    """The state in which every client of a run begins.

    Attributes:
        tensors: all tensors that are not frozen, by their key in the model.
        memo: what the method keeps at a client.
    """

    tensors: State = field(repr=False)
    memo: dict[str, Any] = field(repr=False)

    @classmethod
    def of(cls, model: ClientModel) -> FirstState:
        """Copy the state of a model that was just built."""
        return cls(model.own_state(), copy.deepcopy(model.memo))


def restore(
    model: ClientModel,
    generic: ClientModel,
    method: FederatedMethod,
    first: FirstState,
    site: SiteState | None,
    request: Request,
) -> bool | None:
    """Put a model into the state after the fit that the server counts, and receive the server's message.

    Args:
        model: of the client; on the CPU.
        generic: the model whose personal tensors stay at their start; it gets the shared tensors of the server.
        method: the plugin.
        first: the state in which every client begins.
        site: the snapshots of the site; may be None if `request.after` is 0.
        request: its `after`, class anchors and message are used.

    Returns:
        True if that fit was on images of the site alone, after the last merge: fine-tuning, or joining a finished run.
            False if the site joined, and keeps the generic model. None for the fit of a round.

    Raises:
        StateError: that state is not on disk, or the message does not fit what is declared shared.
    """
    saved = site.start(request.after) if site is not None and request.after else None
    if saved is None:
        model.load_own_state(first.tensors)
        model.memo, model.optimizer_state = copy.deepcopy(first.memo), None
    if request.anchors is not None:
        # before the saved state: a head that is learned starts at the anchors
        model.set_anchors(request.anchors)
        generic.set_anchors(request.anchors)
    if saved is not None and site is not None:
        site.load(saved, model)
    receive_message(model, method, request.message)
    generic.load_shared(request.generic)
    if saved is not None and site is not None and saved.about.get("finetune_epochs"):
        # after fine-tuning nothing is merged: the client predicts with its own tensors
        site.load(saved, model)
        return True
    return None if saved is None else saved.about.get("joined")
