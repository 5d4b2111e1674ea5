"""What the commands print beside results: messages of pfedst, and no notices of Lightning."""

from __future__ import annotations

import logging
import os
import sys
import warnings


class StandardError(logging.Handler):
    """Logs to the present standard error: a program that runs several commands may have changed it."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print one line."""
        print(self.format(record), file=sys.stderr)


def quieten() -> None:
    """Silence Lightning's tips and notices of each fit, hundreds a run, so that messages of pfedst are seen."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    logging.getLogger("lightning.fabric").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")


def show_messages() -> None:
    """Print the messages of pfedst to standard error; a program that uses pfedst decides on its own messages."""
    handler = StandardError()
    handler.setFormatter(logging.Formatter("%(name)s: %(levelname)s: %(message)s"))
    # at the root and not at `pfedst` alone: a library that finds no handler there adds one, and lines would be doubled
    root = logging.getLogger()
    if not any(isinstance(given, StandardError) for given in root.handlers):
        root.addHandler(handler)
