"""YAML as plain data, whatever is in the file: no file may hang the program, fill the memory, or end in a traceback."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

MOST_BYTES = 1_000_000
MOST_VALUES = 100_000
DEEPEST = 50
"""A configuration is far from all three; a few lines of aliases stand for billions of values."""


def read_yaml(path: Path) -> Any:
    """What a YAML file holds.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no YAML, or far larger or deeper than a configuration; says why in one line.
    """
    with path.open("rb") as file:  # never all of it: a path may lead to an endless device
        content = file.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise ValueError(f"more than {MOST_BYTES:,} bytes")
    return parse_yaml(content.decode("utf-8-sig"))


def parse_yaml(text: str) -> Any:
    """Plain data of a text.

    Raises:
        ValueError: as of `read_yaml`.
    """
    try:
        _check_size(text)
        found = yaml.safe_load(text)
        repr(found)  # a hexadecimal number of any length is read, but no message could show it
        return found
    except Exception as error:  # PyYAML raises whatever int(), datetime and its own look-ups raise
        raise ValueError(" ".join(str(error).split()) or type(error).__name__) from error


def _check_size(text: str) -> None:
    """Count values before any is made; an alias counts as all that it stands for."""
    total, open_anchors = 0, []
    sizes: dict[str, int] = {}
    for event in yaml.parse(text, yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent):
            if event.anchor not in sizes:
                raise ValueError(f"the alias *{event.anchor} stands for nothing, or for what it is a part of")
            total += sizes[event.anchor]
        elif isinstance(event, yaml.ScalarEvent):
            total += 1
            if event.anchor:
                sizes[event.anchor] = 1
        elif isinstance(event, yaml.CollectionStartEvent):
            open_anchors.append((event.anchor, total))
            total += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = open_anchors.pop()
            if anchor:
                sizes[anchor] = total - before
        if total > MOST_VALUES:
            raise ValueError(f"more than {MOST_VALUES:,} values (aliases count as what they stand for)")
        if len(open_anchors) > DEEPEST:
            raise ValueError(f"more than {DEEPEST} levels of nesting")
