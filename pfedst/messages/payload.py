"""Payloads: named states of plain tensors, and the checks that every payload passes at the border."""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Collection, Iterable, Mapping

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from pfedst.errors import NotFiniteError, StateError, listed

State = dict[str, Tensor]
"""A subset of a state dict."""

Payload = dict[str, State]
"""One message: named states. `net` is the model itself."""

NET = "net"
"""The name under which the shared part of the model travels."""


def payload_bytes(payload: Mapping[str, Mapping[str, Tensor]]) -> int:
    """Return the number of bytes of all tensors of a message."""
    return sum(t.numel() * t.element_size() for state in payload.values() for t in state.values())


def copy_payload(payload: Payload, device: torch.device | str = "cpu") -> Payload:
    """Copy a message, so that its tensors share no memory with the sender's."""
    return {
        name: {key: t.detach().to(device, copy=True) for key, t in state.items()} for name, state in payload.items()
    }


def to_bytes(parts: Payload) -> dict[str, bytes]:
    """Pack named states by value, as safetensors."""
    return {
        part: save(
            {key: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for key, tensor in s.items()}
        )
        for part, s in parts.items()
    }


def from_bytes(parts: Mapping[str, bytes]) -> Payload:
    """The inverse of `to_bytes`.

    Raises:
        StateError: the bytes are no safetensors.
    """
    try:
        return {part: load(content) for part, content in parts.items()}
    except SafetensorError as error:
        raise StateError(f"a message holds no safetensors ({error})") from error


def raw_bytes(tensor: Tensor) -> memoryview:
    """Return the memory of a tensor on the CPU; it is not copied if the tensor is contiguous."""
    return tensor.detach().contiguous().flatten().view(torch.uint8).numpy().data


def hash_of(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of keys, dtypes, shapes and values."""
    found = hashlib.sha256()
    for key, tensor in sorted(tensors.items()):
        found.update(json.dumps([key, str(tensor.dtype), list(tensor.shape)]).encode())
        found.update(raw_bytes(tensor))
    return found.hexdigest()


def same_tensors(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    """Return True if two states have the same keys and the same numbers, bit for bit."""
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


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
    """Check that a message consists of dicts of plain tensors by name, so that nothing else can travel with it.

    A tensor subclass could carry attributes; a sparse or nested tensor has other memory than its bytes say.

    Raises:
        StateError: naming the first entry that is not a plain tensor.
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


def check_message(
    payload: Payload, shared: Mapping[str, Tensor], extra_messages: Collection[str], method: str, what: str
) -> None:
    """Check a message of either direction against what the method declares.

    Args:
        payload: the message.
        shared: tensors of the keys, shapes and dtypes that are declared shared.
        extra_messages: names that the method declares beside `net`.
        method: its name, for errors.
        what: the message, for errors.

    Raises:
        StateError: no `net`, an undeclared name or key, another shape or dtype, or an entry that is not a plain tensor.
        NotFiniteError: NaN or infinite numbers.
    """
    check_plain(payload, what)
    if NET not in payload:
        raise StateError(f'{what} has no part "{NET}"')
    allowed = {NET, *extra_messages}
    if undeclared := sorted(set(payload) - allowed):
        raise StateError(
            f"{what}: method {method} sends {undeclared}, which its extra_messages do not declare "
            f"(declared: {sorted(allowed)})"
        )
    for part, state in payload.items():
        if part == NET:
            check_tensors(state, shared, what)
        else:
            check_finite(state, f"{what}, {part}")


def _all_finite(tensors: Iterable[Tensor]) -> bool:
    """Return True if every number is certainly finite: a sum takes a tenth of the time, unless it overflows itself."""
    sums = [tensor.sum(dtype=torch.float32).cpu() for tensor in tensors if tensor.is_floating_point()]
    return not sums or bool(torch.isfinite(torch.stack(sums)).all())
