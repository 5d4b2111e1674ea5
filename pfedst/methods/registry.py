"""Methods by name, found over the entry-point group `pfedst.methods`: ours and those of other wheels alike."""

from __future__ import annotations

import logging
from importlib.metadata import EntryPoint, entry_points

from pfedst.configuration.imports import import_class
from pfedst.errors import ConfigurationError, nearest
from pfedst.methods.interface import FederatedMethod

GROUP = "pfedst.methods"


def registered_methods() -> dict[str, type[FederatedMethod]]:
    """Every registered method, by entry-point name, sorted.

    Methods that cannot be imported are left out, and one warning names them all with the reason: a broken or missing
    package of methods must not stop the others.

    Raises:
        ConfigurationError: two distributions register the same name, or an entry is no FederatedMethod, or its
            name is not its class name (which is what a configuration says).
    """
    points: dict[str, EntryPoint] = {}
    for point in entry_points(group=GROUP):
        other = points.setdefault(point.name, point)
        if other.value != point.value:
            raise ConfigurationError(
                f'two installed packages register a method "{point.name}": {other.value} and {point.value}; '
                f"uninstall one of them"
            )
    methods: dict[str, type[FederatedMethod]] = {}
    left_out: dict[str, list[str]] = {}
    for name, point in sorted(points.items()):
        try:
            found = point.load()
        except Exception as error:
            left_out.setdefault(repr(error), []).append(name)
        else:
            methods[name] = _checked(point, found)
    if left_out:
        # one message for all: a missing package takes every method of it along
        reasons = (f"{', '.join(names)} ({error})" for error, names in left_out.items())
        logging.getLogger("pfedst").warning("methods that cannot be imported are left out: %s", "; ".join(reasons))
    return methods


def list_methods() -> list[str]:
    """Return the names of all installed methods, sorted."""
    return list(registered_methods())


def get_method(name: str) -> type[FederatedMethod]:
    """Return the class of an installed method by its name, or of any method by its import path.

    Raises:
        ConfigurationError: there is no such method.
    """
    if "." in name:
        found = import_class(name)
        if not issubclass(found, FederatedMethod):
            raise ConfigurationError(f"{name} is no method: derive it from pfedst.FederatedMethod")
        return found
    methods = registered_methods()
    if name not in methods:
        raise ConfigurationError(
            f'there is no method "{name}".{nearest(name, methods)} There are: {", ".join(methods)}'
        )
    return methods[name]


def _checked(point: EntryPoint, found: object) -> type[FederatedMethod]:
    """What an entry point names, if it is a method of that name.

    Raises:
        ConfigurationError: the object is no FederatedMethod, or has another name.
    """
    if not (isinstance(found, type) and issubclass(found, FederatedMethod)) or found.__name__ != point.name:
        raise ConfigurationError(
            f'entry point "{point.name} = {point.value}" in group {GROUP} must name a subclass of '
            f"pfedst.methods.interface.FederatedMethod that is called {point.name}"
        )
    return found
