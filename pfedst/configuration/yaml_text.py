"""Check the YAML of a user before a parser expands it beyond the memory.

A few lines of YAML may represent billions of values, since a name (`&a`) can be repeated (`*a`) within the value of
another name. In addition, a parser recurses for every level of nesting.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import get_loader, set_loader

from pfedst.configuration.command_line import CONFIG, options_of
from pfedst.configuration.renamed_options import with_present_names
from pfedst.errors import ConfigurationError

CHECKED_YAML = "checked_yaml"
"""The `parser_mode` of a parser that refuses such YAML from any source."""
MOST_BYTES = 1 << 20
MOST_VALUES = 50_000
DEEPEST = 100
REMEDY = "give a configuration as pfedst fit --print_config prints it"

_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def load_yaml(text: str, name: str) -> Any:
    """Return the values of a text.

    Args:
        text: YAML, or JSON.
        name: name of the text, for the error.

    Raises:
        ConfigurationError: If the text is too long, nested too deeply, or represents too many values.
        yaml.YAMLError: If the text is not YAML.
    """
    _check(text, name)
    return _made(lambda: yaml.load(text, Loader=_Loader))


def read_yaml(file: Path) -> Any:
    """Return the values of a file.

    Raises:
        ConfigurationError, yaml.YAMLError: As in `load_yaml`.
        OSError, ValueError: If the file cannot be read, or is not text.
    """
    if not file.is_file():  # a device or a pipe may never end
        raise FileNotFoundError("no such file")
    _check_size(file)
    return load_yaml(file.read_text(), str(file))


def check_configurations(arguments: Sequence[str], environment: str) -> None:
    """Check every configuration file before a parser reads it. The parser reports all other errors.

    Args:
        arguments: arguments of the command line.
        environment: prefix of the environment variables with options.

    Raises:
        ConfigurationError: If a file is too large, not text, nested too deeply, represents too many values, or is a
            comparison.
    """
    given = [value for name, value in os.environ.items() if re.fullmatch(rf"{environment}_(\w+__)?CONFIG", name)]
    given += [option.value for option in options_of(arguments) if option.key == CONFIG]
    for value in given:
        if "\n" in value or not Path(value).is_file():  # a variable may hold the YAML; a pipe can be read only once
            continue
        try:
            _check_size(Path(value))
            content = load_yaml(Path(value).read_text(encoding="utf-8"), value)
        except (OSError, yaml.YAMLError):  # such as missing rights; the parser reports wrong YAML with its place
            continue
        except UnicodeDecodeError as error:
            raise ConfigurationError(f"{value}: not UTF-8 text ({error}): {REMEDY}") from error
        if isinstance(content, dict) and {"base", "rows"} <= content.keys():
            raise ConfigurationError(
                f"{value}: a comparison, not the configuration of one run: pfedst compare --config {value}"
            )


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
        return  # the parser reports the error with its place
    if values > MOST_VALUES:
        raise ConfigurationError(f"{name}: stands for more than {MOST_VALUES:,} values: {REMEDY}")


def _values(text: str, name: str) -> int:
    """Return the number of values after expanding every alias. Counting stops once there are too many."""
    sizes: dict[str, int] = {}
    # for every open collection: its anchor, and the number of values before it
    opened: list[tuple[str | None, int]] = []
    values = 0
    for event in yaml.parse(text, Loader=_Loader):
        if isinstance(event, yaml.AliasEvent):
            if any(event.anchor == anchor for anchor, _ in opened):
                raise ConfigurationError(f"{name}: *{event.anchor} contains itself: {REMEDY}")
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
    """Check YAML and parse it with the YAML loader of jsonargparse. `None`, as W&B sweeps write null, is null."""
    if text == "None":
        return None
    _check(text, "the configuration")
    return with_present_names(_made(lambda: get_loader("yaml")(text)))


def _made(make: Callable[[], Any]) -> Any:
    """Return the parsed YAML. Values that cannot be built (`!!int ""`, the 45th of a month) raise a YAML error."""
    try:
        made = make()
        repr(made)  # a hexadecimal number of any length can be read, but not shown in a message
        return made
    except yaml.YAMLError:
        raise
    except Exception as error:  # int(), datetime and the loader's look-ups raise many kinds
        raise yaml.YAMLError(" ".join(str(error).split()) or type(error).__name__) from error


set_loader(CHECKED_YAML, _load, (yaml.YAMLError,))
