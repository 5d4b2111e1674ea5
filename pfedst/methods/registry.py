"""Methods by name, found over the entry-point group `pfedst.methods`: ours and those of other wheels alike."""

from __future__ import annotations

import logging
from importlib.metadata import EntryPoint, entry_points

from pfedst.errors import ConfigurationError
from pfedst.methods.interface import FederatedMethod

GROUP = "pfedst.methods"


def registered_methods() -> dict[str, type[FederatedMethod]]:
    """Every registered method, by entry-point name, sorted.

    A method that cannot be imported is reported as a warning and left out: a broken wheel of a stranger must not
    stop the others.

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
    methods = {name: _load(point) for name, point in sorted(points.items())}
    return {name: method for name, method in methods.items() if method is not None}


def _load(point: EntryPoint) -> type[FederatedMethod] | None:
    try:
        found = point.load()
    except Exception as error:
        logging.getLogger("pfedst").warning(
            "method %s (%s) cannot be imported and is left out: %r", point.name, point.value, error
        )
        return None
    if not (isinstance(found, type) and issubclass(found, FederatedMethod)) or found.__name__ != point.name:
        raise ConfigurationError(
            f'entry point "{point.name} = {point.value}" in group {GROUP} must name a subclass of '
            f"pfedst.methods.interface.FederatedMethod that is called {point.name}"
        )
    return found
