"""Why a client is left out of a round."""

from __future__ import annotations

import traceback
from dataclasses import dataclass
from typing import NoReturn

from pfedst.errors import ConfigurationError, PfedstError


@dataclass(frozen=True)
class Fault:
    """What went wrong in a client's task; it travels between processes.

    Attributes:
        kind: the class of the error. It goes into the records, and so says nothing of images or patients.
        told: what a person at this machine is told: the message, or for a defect its trace.
        error: the error, where it is one with a remedy.
    """

    kind: str
    told: str
    error: PfedstError | None = None

    @classmethod
    def of(cls, error: Exception) -> Fault:
        """The fault that an error is.

        Raises:
            ConfigurationError: an option that cannot work, which is nobody's fault and would fail on each client.
        """
        if isinstance(error, ConfigurationError):
            raise error
        if isinstance(error, PfedstError):
            return cls(type(error).__name__, str(error), error)
        return cls(type(error).__name__, "".join(traceback.format_exception(error)).rstrip())

    def stop(self) -> NoReturn:
        """End the run with it, where it concerns no single client."""
        raise self.error or RuntimeError(self.told)
