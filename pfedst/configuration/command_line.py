"""A command line as options with dotted keys, and the order in which a parser can take them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

CONFIG = "config"
FILE_FLAGS = (f"--{CONFIG}", "-c")
"""Both names of the option for a configuration file."""


@dataclass(frozen=True)
class GivenOption:
    """An option as it was given.

    Attributes:
        key: its plain key; that of an option which appends ends with `+`. `config` for a file, under either name.
        words: of the command line: `--key=value`, or `--key` and its values. What comes before the first option is one
            with an empty key.
    """

    key: str
    words: tuple[str, ...]

    @property
    def value(self) -> str:
        """The first value; empty without one."""
        return self.words[0].partition("=")[2] or (self.words[1] if len(self.words) > 1 else "")


def plain(key: str) -> str:
    """Return a dotted key as people write it, in place of the one of a file: `method.rank`, `method` for a class."""
    return key.replace(".init_args", "").removesuffix(".class_path")


def options_of(arguments: Sequence[str]) -> list[GivenOption]:
    """Return the options of a command line, in its order."""
    found: list[list[str]] = []
    for word in arguments:
        if word.startswith("--") or word.partition("=")[0] in FILE_FLAGS or not found:
            found.append([])
        found[-1].append(word)
    return [GivenOption(_key(words[0]), tuple(words)) for words in found]


def classes_first(arguments: Sequence[str]) -> list[str]:
    """Return a command line with each class before its options, `--method=FedProx` before `--method.mu=1`.

    A parser would otherwise discard, without an error, an option that the class after it does not take. A class that is
    appended to a list stays where it is, and so does one that is given again: it replaces the first one, with its
    options. No option passes a configuration file.
    """
    done: list[GivenOption] = []
    found: list[GivenOption] = []  # after the last configuration file
    for option in options_of(arguments):
        if option.key == CONFIG:
            done, found = [*done, *found, option], []
            continue
        keys = [before.key for before in found]
        own = (place for place, key in enumerate(keys) if key.startswith(f"{option.key}."))
        found.insert(len(keys) if option.key in keys else next(own, len(keys)), option)
    return [word for option in (*done, *found) for word in option.words]


def _key(word: str) -> str:
    name = word.partition("=")[0]
    if name in FILE_FLAGS:
        return CONFIG
    return plain(name.removeprefix("--")) if name.startswith("--") else ""
