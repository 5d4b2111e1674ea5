"""Checks a method where its class is written: a misspelt hook would have no effect, and nobody would notice."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from types import CodeType, FunctionType

from pfedst.errors import ConfigurationError, nearest

DECLARED = (bool, str, tuple)
"""Types of declarations: class attributes with a value."""


def check_declarations(method: type, base: type) -> None:
    """Check the names that a class defines against the hooks and declarations of the base class of all methods.

    Names with a leading underscore and constants in capitals are the author's own, and so is every name that a function
    of the class uses.

    Args:
        method: the class.
        base: FederatedMethod.

    Raises:
        ConfigurationError: nothing uses a public name; a hook takes other arguments; a declaration has a value of
            another type.
    """
    known = [name for name in vars(base) if not name.startswith("_")]
    used = {name for cls in method.__mro__ if cls is not base for name in _used(cls)}
    for name, value in vars(method).items():
        if name.startswith("_") or name.isupper():
            continue
        where = f"method {method.__name__} ({method.__module__}): {name}"
        if name in known:
            if problem := _problem(value, inspect.getattr_static(base, name)):
                raise ConfigurationError(f"{where} {problem}")
        elif name not in used:
            raise ConfigurationError(
                f"{where} is no hook or declaration, and no function of the class uses it: it would have no "
                f"effect.{nearest(name, known)} There are: {', '.join(known)}"
            )


def _used(cls: type) -> Iterator[str]:
    """Yield the names that the functions of a class use: global names and attributes."""
    for value in vars(cls).values():
        accessors = (value.fget, value.fset, value.fdel) if isinstance(value, property) else (value,)
        for found in accessors:
            function = getattr(found, "__func__", found)  # of a static method or class method
            if isinstance(function, FunctionType):
                yield from _names(function.__code__)


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:  # functions within a function
        if isinstance(constant, CodeType):
            yield from _names(constant)


def _problem(value: object, declared: object) -> str:
    """Return what is wrong with the value of a name, or nothing."""
    if isinstance(declared, DECLARED) and not isinstance(value, type(declared) | property):
        return f"must be a {type(declared).__name__}, and is a {type(value).__name__}"
    if isinstance(declared, property) and isinstance(value, FunctionType):
        return "is a property: write @property above it"
    if isinstance(declared, FunctionType) and not callable(value) and not isinstance(value, staticmethod | classmethod):
        return f"is a hook, and the class gives it the value {value!r}"
    if isinstance(declared, FunctionType) and isinstance(value, FunctionType):
        hook, given = inspect.signature(declared), inspect.signature(value)
        try:
            given.bind(*hook.parameters)
        except TypeError:
            return f"takes ({', '.join(given.parameters)}); a run calls it with ({', '.join(hook.parameters)})"
    return ""
