"""A client's state as it is saved: nested dicts of tensors, and the way back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pfedst.client.module import FederatedClient
from pfedst.errors import StateError, listed
from pfedst.messages.payload import check_plain


def part_name(client: str) -> str:
    """Under which a client's state is saved."""
    return f"client {client}"


def client_part(client: FederatedClient) -> dict[str, Any]:
    """All of one client that a run needs: nested dicts of tensors, its own and not copies."""
    return {
        "model": client.own_tensors(),
        "memo": client.memo,
        "optimizer": _saved_optimizer(client.optimizer_state or {}),
    }


def load_client_part(client: FederatedClient, part: Mapping[str, Any]) -> None:
    """Put a client in the state that `client_part` gave.

    Raises:
        StateError: other keys or shapes than this client's.
    """
    model, kept = saved_table(part, "model"), saved_table(part, "optimizer")
    check_plain({"model": model}, f"the saved state of client {client.name}")
    if any(not number.isdecimal() or not isinstance(of_one, dict) for number, of_one in kept.items()):
        raise StateError(f"the saved state of client {client.name}: its optimiser kept {listed(sorted(kept))}")
    client.move_to("cpu").load_own_state(model)
    client.memo = saved_table(part, "memo")
    client.optimizer_state = _loaded_optimizer(kept) or None
    client.derived.clear()


def saved_table(part: Mapping[str, Any], key: str) -> dict[str, Any]:
    """What is saved under a name; empty dicts are not saved.

    Raises:
        StateError: it is a tensor.
    """
    found = part.get(key, {})
    if not isinstance(found, dict):
        raise StateError(f'the saved state holds a tensor under "{key}", where there are many by name')
    return found


def _saved_optimizer(state: Mapping[int, Mapping[str, Any]]) -> dict[str, dict[str, Tensor]]:
    """What an optimiser keeps, as tensors: a number becomes one, and what is None is what a new optimiser has."""
    return {
        str(number): {
            name: value if isinstance(value, Tensor) else torch.tensor(value)
            for name, value in kept.items()
            if value is not None
        }
        for number, kept in state.items()
    }


def _loaded_optimizer(saved: Mapping[str, Mapping[str, Tensor]]) -> dict[int, dict[str, Any]]:
    return {int(number): dict(kept) for number, kept in saved.items()}
