"""A command line as options with dotted keys, and the order in which a parser can take them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

CONFIG = "config"


@dataclass(frozen=True)
class GivenOption:
    """An option as it was given.

    Attributes:
        key: its plain key; that of an option which appends ends with `+`.
        words: of the command line: `--key=value`, or `--key` and its values. What comes before the first option is one
            without a key.
    """

    key: str
    words: tuple[str, ...]


def plain(key: str) -> str:
    """Return a dotted key as people write it, in place of the one of a file: `method.rank`, `method` for a class."""
    return key.replace(".init_args", "").removesuffix(".class_path")


def options_of(arguments: Sequence[str]) -> list[GivenOption]:
    """Return the options of a command line, in its order."""
    found: list[list[str]] = []
    for word in arguments:
        if word.startswith("--") or not found:
            found.append([])
        found[-1].append(word)
    return [GivenOption(plain(words[0].partition("=")[0].removeprefix("--")), tuple(words)) for words in found]


def classes_first(arguments: Sequence[str]) -> list[str]:
    """Return a command line with each class before its options, `--method=FedProx` before `--method.mu=1`.

    A parser would otherwise discard, without an error, an option that the class after it does not take. A class that is
    appended to a list stays where it is, and so does one that is given again: it replaces the first one, with its
    options. No option passes a configuration file.
    """
    found: list[GivenOption] = []
    since = 0  # the options after the last configuration file
    for option in options_of(arguments):
        if option.key == CONFIG:
            since = len(found) + 1
        own = (
            place for place, before in enumerate(found) if before.key.startswith(f"{option.key}.") and place >= since
        )
        is_first = all(before.key != option.key for before in found[since:])
        found.insert(next(own, len(found)) if is_first else len(found), option)
    return [word for option in found for word in option.words]
