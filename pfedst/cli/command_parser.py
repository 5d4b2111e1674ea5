"""The parsers of the commands that are no runs. An unknown option is one clear error that names the nearest one."""

from __future__ import annotations

import argparse
import re
from typing import Any, NoReturn

from pfedst.errors import ConfigurationError, nearest

UNKNOWN = re.compile(r"unrecognized arguments: (.*)", re.IGNORECASE)


def option_error(parser: argparse.ArgumentParser, message: str) -> ConfigurationError:
    """Return the error for a message of a parser, with the nearest name of each option that is unknown."""
    hints = ""
    if unknown := UNKNOWN.search(message):
        options = [word.split("=")[0] for word in unknown[1].split() if word.startswith("-")]
        hints = "".join(nearest(option, parser._option_string_actions) for option in options)
    return ConfigurationError(f"{parser.prog}: {message.strip().rstrip('.')}.{hints} See {parser.prog} --help")


class CommandParser(argparse.ArgumentParser):
    """A parser that takes no abbreviation of an option, so that an option that is added later changes no command."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        """Raise one error in place of the usage text of argparse."""
        raise option_error(self, message)
