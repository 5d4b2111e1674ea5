"""What the server can tell of messages by comparing them, before it merges any."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from statistics import median

import torch

from pfedst.errors import StateError
from pfedst.messages.payload import Payload

FEWEST_TO_COMPARE = 3
"""Of two messages whose lengths differ nobody can say which one is odd."""


def odd_messages(
    messages: Mapping[str, Payload], received: Mapping[str, Payload], most_norm_ratio: float | None
) -> dict[str, StateError]:
    """Clients whose message is not like those of the others, each with what is wrong with it.

    All clients of a round send the same names, shapes and dtypes; who differs from most is left out. Of those who do
    not, so is who has changed what it received a thousand times more than is usual in its round, or by a thousand
    times what it received, which can be said of a message that is alone: such a message is the work of a fault. An
    attacker stays below that, and is what robust merges are for.

    Args:
        messages: by client name; each has passed the checks that need no comparison.
        received: what each of these clients was sent.
        most_norm_ratio: most by which the norm of a change may exceed the median over clients, and that of what was
            received unless it is zero; None for any.
    """
    forms = {name: _form(message) for name, message in messages.items()}
    # names in order, so that of two forms that are equally frequent the same one is taken each time
    usual = Counter(forms[name] for name in sorted(forms)).most_common(1)
    odd = {
        name: StateError(f"the message from client {name} has other names, shapes or dtypes than those of most clients")
        for name, form in forms.items()
        if form != usual[0][0]
    }
    if most_norm_ratio is None:
        return odd
    norms = {name: change_norm(messages[name], received[name]) for name in messages if name not in odd}

    def leave_out(most: Mapping[str, float], usual: str) -> None:
        for name in [name for name in norms if norms[name] > most_norm_ratio * most[name] > 0]:
            odd[name] = StateError(
                f"the message from client {name} changes what it received by a norm of {norms.pop(name):.3g}, more "
                f"than {most_norm_ratio:g} times {usual} (--coordinator.most_norm_ratio)"
            )

    leave_out({name: change_norm(received[name], {}) for name in norms}, "that of what it received")
    if len(norms) >= FEWEST_TO_COMPARE:
        leave_out(dict.fromkeys(norms, median(norms.values())), "the median over clients")
    return odd


def change_norm(message: Payload, received: Payload) -> float:
    """Euclidean norm of a message less what was received under the same names, over all its real numbers."""
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
