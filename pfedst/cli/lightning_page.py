"""The page `docs/lightning.md`: what a federated run does with Lightning's options. Run this module to print it."""

from __future__ import annotations

from collections.abc import Mapping

from pfedst.client.lightning_options import CALLBACKS, OPTIONS, Option
from pfedst.tracking.round_hooks import CALLED_HOOKS

HEAD = """\
# Options of Lightning

The Trainer runs the local fits of every client, one after another: `--trainer.max_epochs` is the number of local epochs
a round. Callbacks and loggers see rounds. Hence some options of Lightning have another meaning here, and others have
none. A run that sets an option which it cannot honour ends before its first round, with an error that names the option
and what to use instead.

This page is written from the tables that the checks use (`pfedst/client/lightning_options.py`) by `make docs`.
"""
CALLBACKS_HEAD = """\
## Callbacks

An epoch of a callback is a round. A run calls these hooks: {hooks}. A callback with any other hook is refused, because
that hook would never be called. The module that a callback sees holds the generic model; changes of it have no effect.
A subclass counts as the class that it derives from.
"""


def page() -> str:
    """Return the page."""
    hooks = ", ".join(f"`{name}`" for name in CALLED_HOOKS)
    callbacks = {kind.__name__: option for kind, option in CALLBACKS.items()}
    parts = (
        HEAD,
        "## Options of the Trainer\n",
        _table(OPTIONS),
        CALLBACKS_HEAD.format(hooks=hooks),
        _table(callbacks),
    )
    return "\n".join(parts)


def _table(options: Mapping[str, Option]) -> str:
    """Return a table in Markdown: honoured options first, each group by name."""
    lines = ["| | in a federated run | instead of what is refused |", "|---|---|---|"]
    for name, option in sorted(options.items(), key=lambda item: (not item[1].does, item[0])):
        lines.append(f"| `{name}` | {option.does or 'refused'} | {option.instead} |")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    print(page(), end="")
