"""YAML that a user gives, refused before a parser makes more of it than memory holds.

A few lines of YAML may stand for billions of values, as a name (`&a`) can be repeated (`*a`) within what another name
stands for; and a parser calls itself for every level of nesting.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import get_loader, set_loader

from pfedst.cli.renamed_options import with_present_names
from pfedst.errors import ConfigurationError

CHECKED_YAML = "checked_yaml"
"""The `parser_mode` of a parser that refuses such YAML, wherever it comes from."""
MOST_BYTES = 1 << 20
MOST_VALUES = 50_000
DEEPEST = 100
REMEDY = "give a configuration as pfedst fit --print_config prints it"

_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def load_yaml(text: str, name: str) -> Any:
    """The values.

    Args:
        text: YAML, or JSON.
        name: of the text, for the error.

    Raises:
        ConfigurationError: it is too long, nested too deeply, or stands for too many values.
        yaml.YAMLError: it is no YAML.
    """
    _check(text, name)
    return _made(lambda: yaml.load(text, Loader=_Loader))


def read_yaml(file: Path) -> Any:
    """The values of a file.

    Raises:
        ConfigurationError, yaml.YAMLError: as of its text.
        OSError, ValueError: it cannot be read, or is no text.
    """
    if not file.is_file():  # a device or a pipe may never end
        raise FileNotFoundError(f"{file}: no file")
    _check_size(file)
    return load_yaml(file.read_text(), str(file))


def check_configurations(arguments: Sequence[str], environment: str) -> None:
    """Look at every configuration file before a parser reads it as a whole; what else is wrong, the parser says.

    Args:
        arguments: of the command line.
        environment: what the variables that give options begin with.

    Raises:
        ConfigurationError: a file that is too large, no text, nested too deeply, or stands for too many values.
    """
    given = [value for name, value in os.environ.items() if re.fullmatch(rf"{environment}_(\w+__)?CONFIG", name)]
    for argument, following in zip(arguments, [*arguments[1:], ""], strict=True):
        name, _, value = argument.partition("=")
        if name in ("--config", "-c"):
            given.append(value or following)
    for value in given:
        if "\n" in value or not Path(value).is_file():  # a variable may hold the YAML itself; a pipe is read but once
            continue
        try:
            _check_size(Path(value))
            _check(Path(value).read_text(encoding="utf-8"), value)
        except OSError:  # such as missing rights
            continue
        except UnicodeDecodeError as error:
            raise ConfigurationError(f"{value}: no text in UTF-8 ({error}): {REMEDY}") from error


def _check_size(file: Path) -> None:
    if (size := file.stat().st_size) > MOST_BYTES:
        raise ConfigurationError(f"{file}: {size:,} bytes; a configuration has at most {MOST_BYTES:,}: {REMEDY}")


def _check(text: str, name: str) -> None:
    if len(text) > MOST_BYTES:
        raise ConfigurationError(
            f"{name}: {len(text):,} characters; a configuration has at most {MOST_BYTES:,}: {REMEDY}"
        )
    try:
        values = _values(text, name)
    except yaml.YAMLError:
        return  # the parser tells it with its place
    if values > MOST_VALUES:
        raise ConfigurationError(f"{name}: stands for more than {MOST_VALUES:,} values: {REMEDY}")


def _values(text: str, name: str) -> int:
    """How many values the text stands for once every alias is written out; stops where there are too many."""
    sizes: dict[str, int] = {}
    # of every collection that is open: its anchor, and the values before it
    opened: list[tuple[str | None, int]] = []
    values = 0
    for event in yaml.parse(text, Loader=_Loader):
        if isinstance(event, yaml.AliasEvent):
            if any(event.anchor == anchor for anchor, _ in opened):
                raise ConfigurationError(f"{name}: *{event.anchor} stands within itself: {REMEDY}")
            values += sizes.get(str(event.anchor), 1)
        elif isinstance(event, yaml.ScalarEvent):
            values += 1
            if event.anchor:
                sizes[event.anchor] = 1
        elif isinstance(event, yaml.CollectionStartEvent):
            opened.append((event.anchor, values))
            values += 1
            if len(opened) > DEEPEST:
                raise ConfigurationError(f"{name}: nested more than {DEEPEST} deep: {REMEDY}")
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = opened.pop()
            if anchor:
                sizes[anchor] = values - before
        if values > MOST_VALUES:
            break
    return values


def _load(text: str) -> Any:
    """What the parser does with YAML, once it is checked; `None`, as a sweep of W&B writes null, is null."""
    if text == "None":
        return None
    _check(text, "the configuration")
    return with_present_names(_made(lambda: get_loader("yaml")(text)))


def _made(make: Callable[[], Any]) -> Any:
    """What is made of YAML; a value that cannot be made (`!!int ""`, the 45th of a month) is an error of YAML too."""
    try:
        made = make()
        repr(made)  # a hexadecimal number of any length is read, but no message could show it
        return made
    except yaml.YAMLError:
        raise
    except Exception as error:  # whatever int(), datetime and the loader's own look-ups raise
        raise yaml.YAMLError(" ".join(str(error).split()) or type(error).__name__) from error


set_loader(CHECKED_YAML, _load, (yaml.YAMLError,))
