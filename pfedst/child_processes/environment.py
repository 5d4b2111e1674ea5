"""Environment variables of this process, compared with those that a child should have, and changed."""

from __future__ import annotations

import os
from collections.abc import Mapping

Changes = dict[str, str | None]
"""Variable -> its new value, or None to remove it."""


def changes_between(before: Mapping[str, str], after: Mapping[str, str]) -> Changes:
    """Return what turns one environment into another."""
    return {name: after.get(name) for name in {*before, *after} if before.get(name) != after.get(name)}


def apply_changes(changes: Changes) -> None:
    """Change the variables of this process."""
    for name, value in changes.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
