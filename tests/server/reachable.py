"""All objects that some objects keep alive: what the server's half of a process can reach in memory."""

import gc
import io
import logging
import types
import weakref
from collections.abc import Callable, Iterator

import torch

CODE = (type, types.ModuleType, types.BuiltinFunctionType, types.CodeType, types.FrameType)
"""Programs, not data: a class, module or frame leads to everything that is loaded."""
PLAIN = (str, bytes, int, float, complex, bool, type(None), torch.device, torch.dtype)
SHARED = (weakref.ReferenceType, logging.Logger, logging.Handler, io.IOBase)
"""A weak reference keeps nothing; a logger or a stream belongs to the whole process."""
NOT_FOLLOWED = (*CODE, *SHARED)
Way = tuple["Way | None", str | int]
"""The way to the object that refers to this one, and a word for this one's place in it; a root has no way before it."""


def in_words(way: Way | None) -> str:
    """Return a way as the words of its places, from the root on."""
    words = []
    while way is not None:
        way, word = way
        words.append(str(word))
    return " > ".join(reversed(words))


def children(found: object) -> Iterator[tuple[str | int, object]]:
    """The objects that an object refers to, each with a word or a number for its place."""
    if isinstance(found, types.FunctionType):
        # not its globals: these are the module
        for name, cell in zip(found.__code__.co_freevars, found.__closure__ or (), strict=True):
            try:
                yield f"closure {name}", cell.cell_contents
            except ValueError:  # not set yet
                continue
        yield "defaults", (found.__defaults__, found.__kwdefaults__, found.__dict__)
        return
    if isinstance(found, types.GeneratorType):
        yield "generator", dict(found.gi_frame.f_locals) if found.gi_frame else {}
        return
    if isinstance(found, dict):
        for key, value in found.items():
            yield "key", key
            yield str(key)[:40] if isinstance(key, str | int) else "value", value
        return
    if isinstance(found, torch.Tensor):
        yield "grad", found.grad
        yield "attributes", getattr(found, "__dict__", {})
        return
    attributes = getattr(found, "__dict__", None)
    if isinstance(attributes, dict):
        yield type(found).__name__, attributes
    yield from enumerate(gc.get_referents(found))


def is_plain(found: object) -> bool:
    """True for text and numbers, and tuples of them, of which a tokenizer has a hundred thousand."""
    return isinstance(found, PLAIN) or (type(found) is tuple and all(isinstance(part, PLAIN) for part in found))


def reachable(roots: dict[str, object], stops: Callable[[object], bool]) -> Iterator[tuple[Way, object]]:
    """Yield every object that can be reached from `roots`, with a way to it; nothing behind an object that stops."""
    seen: dict[int, object] = {}
    waiting: list[tuple[Way, object]] = [((None, name), root) for name, root in roots.items()]
    while waiting:
        way, found = waiting.pop()
        if id(found) in seen or isinstance(found, NOT_FOLLOWED) or stops(found):
            continue
        seen[id(found)] = found  # kept, so that no other object gets its id
        yield way, found
        waiting += [((way, word), child) for word, child in children(found) if not is_plain(child)]
