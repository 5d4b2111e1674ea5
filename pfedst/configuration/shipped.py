"""Configurations that come with pfedst, found by name: `demo` of `pfedst fit`, `compare/demo` of a comparison."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pfedst.configuration.command_line import FILE_FLAGS
from pfedst.errors import ConfigurationError, nearest

COMPARE = "compare"
"""Folder of the configurations of `pfedst compare`."""
HERE = Path(__file__).parents[1]
"""The package. An installed wheel has the folder `configs` within it, a clone beside it."""


def folder() -> Path:
    """Return the folder of the shipped configurations."""
    within = HERE / "configs"
    return within if within.is_dir() else HERE.parent / "configs"


def shipped() -> dict[str, Path]:
    """Return the file of each shipped configuration by its name: its path without `.yaml`."""
    root = folder()
    files = sorted(root.rglob("*.yaml"), key=lambda file: (len(file.relative_to(root).parts), file))
    return {file.relative_to(root).with_suffix("").as_posix(): file for file in files}


def configuration_file(name: str | Path, of: str = "") -> Path:
    """Return the file that a user means: a path, or else the shipped configuration of that name.

    Args:
        name: a path, or a name such as `demo`.
        of: folder of the names; empty for `pfedst fit`.

    Raises:
        ConfigurationError: a name, and there is neither such a file nor such a configuration.
    """
    path = Path(name)
    if path.is_file():
        return path
    names = {key.removeprefix(f"{of}/"): file for key, file in shipped().items() if _belongs(key, of)}
    if str(name) in names:
        return names[str(name)]
    if path.suffix or len(path.parts) != 1 or path.exists():
        return path  # whoever reads it reports what is wrong with it
    raise ConfigurationError(
        f"--config {name}: neither a file nor a shipped configuration.{nearest(str(name), names)} Shipped are: "
        f"{', '.join(names)}"
    )


def with_files(arguments: Sequence[str]) -> list[str]:
    """Return arguments of `pfedst fit` in which the files of shipped configurations replace their names.

    Raises:
        ConfigurationError: as in `configuration_file`.
    """
    found: list[str] = []
    for argument in arguments:
        flag, equals, value = argument.partition("=")
        if equals and flag in FILE_FLAGS and "\n" not in value:
            argument = f"{flag}={configuration_file(value)}"
        elif found and found[-1] in FILE_FLAGS and "\n" not in argument:
            argument = str(configuration_file(argument))
        found.append(argument)
    return found


def _belongs(key: str, of: str) -> bool:
    return key.startswith(f"{of}/") if of else "/" not in key
