"""Errors that a user can act on: each names the file, key or row, and what to do about it.

The command line prints them as one line without a traceback and exits with `exit_code`; anything else that is
raised is a defect of pfedst and keeps its traceback.
"""

import difflib
from collections.abc import Iterable, Sequence


def nearest(word: str, names: Iterable[str]) -> str:
    """` Did you mean "name"?`, or nothing: the end of a message about an unknown name."""
    found = difflib.get_close_matches(word, list(names), 1, 0.6)
    return f' Did you mean "{found[0]}"?' if found else ""


def listed(items: Sequence[object], separator: str = ", ", most: int = 10) -> str:
    """The first ones, and how many more there are."""
    more = f"{separator}and {len(items) - most} more" if len(items) > most else ""
    return separator.join(str(item) for item in items[:most]) + more


def counted(number: int, what: str) -> str:
    """Return a number with its noun: `1 round`, `2,000 rounds`."""
    return f"{number:,} {what}{'s'[: number != 1]}"


class PfedstError(Exception):
    """Base of every error with a remedy."""

    exit_code = 1


class ConfigurationError(PfedstError):
    """An option, or a combination of options, that cannot work."""

    exit_code = 2


class DataError(PfedstError):
    """Images, labels, manifests or folders that cannot be used as they are."""

    exit_code = 3


class WeightsError(PfedstError):
    """Encoder weights that are missing, out of reach, or do not fit the model."""

    exit_code = 4


class StateError(PfedstError):
    """A saved run, or a message between client and server, that is damaged or does not fit."""

    exit_code = 5


class NotFiniteError(StateError):
    """NaN or infinite numbers in a loss, in gradients, in a message or in what a client keeps."""


class TooFewClientsError(PfedstError):
    """A round in which fewer clients reported than a run demands."""

    exit_code = 6


class NoEvaluationError(PfedstError):
    """An evaluation in which no site could be evaluated."""

    exit_code = 6


class NoAnswerError(PfedstError):
    """A client that did not answer in time, or whose process ended."""


class InterruptedRunError(PfedstError):
    """A run that was asked to end before it was done."""

    exit_code = 130
