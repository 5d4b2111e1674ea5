"""What the server knows of the state of its clients: which of their fits it has merged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pfedst.errors import StateError, listed


@dataclass
class Merged:
    """Which fits the server has merged: all that it must know of the state of its clients.

    Attributes:
        after: number of the last merged fit of each client; 0 before the first.
        best_round: the round with the best validation so far; None before the first evaluation.
        best_after: `after` at that round.
        kept: `after` at each round that is kept on disk, the newest last: the server may resume any of them.
    """

    after: dict[str, int]
    best_round: int | None
    best_after: dict[str, int]
    kept: list[dict[str, int]]

    @classmethod
    def none_of(cls, names: Sequence[str]) -> Merged:
        """No fit is merged yet."""
        return cls(dict.fromkeys(names, 0), None, {}, [])

    @property
    def any(self) -> bool:
        """True if the fit of any client is merged."""
        return any(self.after.values())

    def pinned(self, name: str) -> tuple[int, ...]:
        """Return the numbers of the fits of a client that must not be lost."""
        found = {self.best_after.get(name, 0), *(after.get(name, 0) for after in self.kept)}
        return tuple(sorted(found - {0}))

    def about(self) -> dict[str, Any]:
        """Return what is saved with a round."""
        return {"after": self.after, "best": {"round": self.best_round, "after": self.best_after}, "kept": self.kept}

    @classmethod
    def from_about(cls, about: Mapping[str, Any], names: Sequence[str] | None = None) -> Merged:
        """The inverse of `about`.

        Args:
            about: as it was saved.
            names: of the clients that it must be of; None for any.

        Raises:
            StateError: the saved values are not what a server saves.
        """
        try:
            after, best, kept = about["after"], about["best"], about["kept"]
            tables = [after, best["after"], *kept]
            number = best["round"]
            whole = all(isinstance(n, int) and n >= 0 for table in tables for n in table.values())
            if names is not None and (others := sorted(set(after) ^ set(names))):
                raise StateError(f"the saved round is of other clients than this run: they differ in {listed(others)}")
            if whole and (number is None or isinstance(number, int)):
                return cls(dict(after), number, dict(best["after"]), [dict(table) for table in kept])
        except (KeyError, TypeError, AttributeError):
            pass
        raise StateError("the saved round does not say which fits are merged")
