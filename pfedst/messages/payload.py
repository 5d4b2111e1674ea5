"""What travels between client and server, and the checks at that border."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor, nn

from pfedst.errors import NotFiniteError, StateError, listed

State = dict[str, Tensor]
"""A subset of a state dict."""

Payload = dict[str, State]
"""One message: named states. `net` is the model itself."""

NET = "net"
"""The name under which the shared part of the model travels."""


def payload_bytes(payload: Mapping[str, Mapping[str, Tensor]]) -> int:
    """Bytes of every tensor of a message."""
    return sum(t.numel() * t.element_size() for state in payload.values() for t in state.values())


def copy_payload(payload: Payload, device: torch.device | str = "cpu") -> Payload:
    """A message whose tensors share no memory with the sender's."""
    return {
        name: {key: t.detach().to(device, copy=True) for key, t in state.items()} for name, state in payload.items()
    }


class Uploads(Mapping[str, Payload]):
    """The messages of the clients that reported, by name and in the order of names, in which merges sum.

    Each is copied when it is read, and the copy is not kept: a message may hold its client's own tensors, and the
    messages of many clients are never in memory together.

    Args:
        messages: by client name; their clients must not train before the merge.
    """

    def __init__(self, messages: Mapping[str, Payload]) -> None:
        self._messages = messages

    def __getitem__(self, name: str) -> Payload:
        return copy_payload(self._messages[name])

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._messages))

    def __len__(self) -> int:
        return len(self._messages)


def raw_bytes(tensor: Tensor) -> memoryview:
    """The memory of a tensor on the CPU, not copied if it is contiguous."""
    return tensor.detach().contiguous().flatten().view(torch.uint8).numpy().data


def check_keys(found: Iterable[str], expected: Iterable[str], what: str) -> None:
    """Raise a StateError that lists missing and unexpected keys, with the nearest known name for the latter."""
    found, expected = set(found), set(expected)
    if found == expected:
        return
    lines = [f"{what} does not hold exactly what was declared:"]
    lines += [f"  missing: {key}" for key in sorted(expected - found)[:8]]
    for key in sorted(found - expected)[:8]:
        near = difflib.get_close_matches(key, sorted(expected), 1)
        lines.append(f"  unexpected: {key}" + (f" (nearest declared: {near[0]})" if near else ""))
    raise StateError("\n".join(lines))


def check_plain(payload: object, what: str) -> None:
    """Check that a message is dicts of plain tensors by name: nothing else can travel with it.

    A tensor of a class of its own could carry attributes, a sparse or nested one has other memory than its bytes say.

    Raises:
        StateError: naming what is no such thing.
    """
    if not isinstance(payload, dict):
        raise StateError(f"{what} is a {type(payload).__name__}, not dicts of tensors by name")
    for part, state in payload.items():
        if not isinstance(part, str) or not isinstance(state, dict):
            raise StateError(f"{what}: {part!r} holds a {type(state).__name__}, not tensors by name")
        for key, value in state.items():
            plain = type(value) in (Tensor, nn.Parameter) and value.layout is torch.strided and not value.is_quantized
            if not isinstance(key, str) or not plain or value.is_meta or value.is_nested:
                raise StateError(f"{what}: {part}/{key} is no plain tensor (a {type(value).__name__})")


def check_finite(state: Mapping[str, Tensor], what: str) -> None:
    """Raise a NotFiniteError that names the first keys whose numbers are NaN or infinite."""
    if _all_finite(state.values()):
        return
    bad = [key for key, t in state.items() if t.is_floating_point() and not torch.isfinite(t).all()]
    if bad:  # else only the sum overflowed
        raise NotFiniteError(f"{what} holds NaN or Inf: {listed(bad)}")


def check_tensors(state: Mapping[str, Tensor], expected: Mapping[str, Tensor], what: str) -> None:
    """Check keys, then shapes and dtypes, then that every number is finite, before anything is loaded.

    Raises:
        StateError: naming each key that does not fit.
        NotFiniteError: all fit, and some hold NaN or Inf.
    """
    check_keys(state, expected, what)
    faults = [
        f"  {key}: {tuple(tensor.shape)} {tensor.dtype}, expected {tuple(wanted.shape)} {wanted.dtype}"
        for key, tensor in state.items()
        if tensor.shape != (wanted := expected[key]).shape or tensor.dtype != wanted.dtype
    ]
    if faults:
        raise StateError("\n".join([f"{what} holds tensors that do not fit:", *faults[:8]]))
    check_finite(state, what)


def _all_finite(tensors: Iterable[Tensor]) -> bool:
    """True if every number is surely finite: a sum tells it in a tenth of the time, unless it overflows itself."""
    sums = [tensor.sum(dtype=torch.float32).cpu() for tensor in tensors if tensor.is_floating_point()]
    return not sums or bool(torch.isfinite(torch.stack(sums)).all())
