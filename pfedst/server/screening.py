"""Screening: the server compares the messages of a round before it merges any."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from statistics import median

import torch

from pfedst.errors import StateError
from pfedst.messages.payload import Payload

FEWEST_TO_COMPARE = 3
"""Number of messages below which no norm is unusual: of two that differ, either may be wrong."""


def outliers(
    messages: Mapping[str, Payload], received: Mapping[str, Payload], max_norm_ratio: float | None
) -> dict[str, StateError]:
    """Return the clients whose message is unlike those of the others, each with the error that says why.

    All clients of a round send the same names, shapes and dtypes; a client that differs from most is excluded. Of the
    others, a client is excluded whose change of what it received is a thousand times longer than is usual in its round,
    or a thousand times longer than what it received (which can be said of a single message): such a message is the work
    of a fault. An attacker stays below that; robust merge rules tolerate attackers.

    Args:
        messages: by client name; each has passed the checks that need no comparison.
        received: what each of these clients was sent.
        max_norm_ratio: the largest ratio of the norm of a change to the median over clients, and to the norm of what
            was received unless that is zero; None for no limit.
    """
    forms = {name: _form(message) for name, message in messages.items()}
    # in the order of names, so that of two forms that are equally frequent the same one is taken each time
    usual = Counter(forms[name] for name in sorted(forms)).most_common(1)
    found = {
        name: StateError(f"the message from client {name} has other names, shapes or dtypes than those of most clients")
        for name, form in forms.items()
        if form != usual[0][0]
    }
    if max_norm_ratio is None:
        return found
    norms = {name: change_norm(messages[name], received[name]) for name in messages if name not in found}

    def exclude(limits: Mapping[str, float], compared_with: str) -> None:
        for name in [name for name in norms if norms[name] > max_norm_ratio * limits[name] > 0]:
            found[name] = StateError(
                f"the message from client {name} changes what it received by a norm of {norms.pop(name):.3g}, more "
                f"than {max_norm_ratio:g} times {compared_with} (--coordinator.most_norm_ratio)"
            )

    exclude({name: change_norm(received[name], {}) for name in norms}, "that of what it received")
    if len(norms) >= FEWEST_TO_COMPARE:
        exclude(dict.fromkeys(norms, median(norms.values())), "the median over clients")
    return found


def change_norm(message: Payload, received: Payload) -> float:
    """Return the Euclidean norm of a message minus what was received under the same names, over all real numbers."""
    squares = 0.0
    for part, state in message.items():
        for key, tensor in state.items():
            if tensor.is_floating_point():
                before = received.get(part, {}).get(key)
                change = tensor if before is None or before.shape != tensor.shape else tensor - before
                squares += float(torch.linalg.vector_norm(change.detach(), dtype=torch.float64)) ** 2
    return math.sqrt(squares)


def _form(message: Payload) -> tuple[tuple[str, str, tuple[int, ...], torch.dtype], ...]:
    return tuple(
        (part, key, tuple(tensor.shape), tensor.dtype)
        for part, state in sorted(message.items())
        for key, tensor in sorted(state.items())
    )
