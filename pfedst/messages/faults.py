"""Faults: why a client is excluded from a round."""

from __future__ import annotations

import traceback
from dataclasses import dataclass
from typing import NoReturn

from pfedst.errors import ConfigurationError, PfedstError


@dataclass(frozen=True)
class Fault:
    """The reason for which a request has no reply. Faults travel between the processes of one machine.

    Attributes:
        kind: class name of the error. Records keep the kind, because it says nothing about images or patients.
        text: the text for the person at this machine: the message of the error, or the traceback of a defect.
        error: the error, if it has a remedy.
    """

    kind: str
    text: str
    error: PfedstError | None = None

    @classmethod
    def of(cls, error: Exception) -> Fault:
        """Return the fault that an error is.

        Raises:
            ConfigurationError: an option that cannot work. It is no client's fault and would fail at every client.
        """
        if isinstance(error, ConfigurationError):
            raise error
        if isinstance(error, PfedstError):
            return cls(type(error).__name__, str(error), error)
        return cls(type(error).__name__, "".join(traceback.format_exception(error)).rstrip())

    def stop(self) -> NoReturn:
        """End the run with this fault, if it concerns no single client."""
        raise self.error or RuntimeError(self.text)


class FaultTexts:
    """The texts of faults in the log of a run: a text once, then its kind and the client that had it first."""

    def __init__(self) -> None:
        self._first: dict[tuple[str, str], str] = {}
        self._logged: set[tuple[str, str]] = set()

    def text(self, name: str, fault: Fault) -> str:
        """Return what the log says of a fault of a client."""
        is_known = (name, fault.kind) in self._logged
        self._logged.add((name, fault.kind))
        # a mistake in a method fails at every client alike
        first = self._first.setdefault((fault.kind, fault.text.replace(f"client {name}", "")), name)
        if is_known:
            return f"{fault.kind}, as before"
        return fault.text if first == name else f"{fault.kind}, as at client {first}"
