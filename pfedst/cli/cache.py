"""`pfedst cache build | info | clear`: fill the cache before a run, list its content, remove it.

What needs torch is imported after the options are parsed.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from pfedst.cli.command_parser import CommandParser
from pfedst.data.cache.place import default_folder
from pfedst.errors import ConfigurationError, DataError, counted, nearest
from pfedst.reporting import bytes_text, console_of

USAGE = """\
usage: pfedst cache build OPTIONS OF FIT     fill the cache for a run with these options, and stop
       pfedst cache info [--folder FOLDER] [--verify]
       pfedst cache clear [NAME ...] [--all] [--folder FOLDER]
"""


def run_cache(arguments: Sequence[str]) -> int:
    """Run one of the cache commands. Return the exit code."""
    command, rest = (arguments[0] if arguments else "--help"), list(arguments[1:])
    if command == "build":
        return _build(rest)
    if command == "info":
        return _info(rest)
    if command == "clear":
        return _clear(rest)
    if command in ("--help", "-h", "help"):
        print(USAGE, end="")
        return 0
    raise ConfigurationError(
        f'pfedst cache: there is no command "{command}".{nearest(command, ("build", "info", "clear"))}\n{USAGE}'
    )


def _build(arguments: Sequence[str]) -> int:
    if {"--help", "-h"} & set(arguments):
        print(f"{USAGE}\nOptions of build: those of pfedst fit, see pfedst fit --help.")
        return 0
    from pfedst.cli.cache_build import BuildCLI
    from pfedst.cli.start import run_command

    return run_command(["fit", *arguments], BuildCLI)


def _info(arguments: Sequence[str]) -> int:
    parser = CommandParser(prog="pfedst cache info", description="List the content of the cache.")
    parser.add_argument("--folder", type=Path, default=default_folder(), help="default: %(default)s")
    parser.add_argument("--verify", action="store_true", help="read every row and compare it with its checksum")
    given = parser.parse_args(arguments)
    from pfedst.data.cache.cache import stores_in

    stores, console = stores_in(given.folder), console_of(200)
    table = Table(title=f"Cache in {given.folder}")
    for heading in ("name", "images", "an image", "total", *(("damaged rows",) if given.verify else ())):
        table.add_column(heading, justify="left" if heading == "name" else "right", overflow="fold")
    damaged = {name: store.damaged() for name, store in stores.items()} if given.verify else {}
    for name, store in stores.items():
        images = store.images
        row = [name, f"{images:,}", bytes_text(store.bytes / max(images, 1)), bytes_text(store.bytes)]
        table.add_row(*row, *((str(len(damaged[name])),) if given.verify else ()))
    console.print(table, highlight=False)
    if bad := [name for name, rows in damaged.items() if rows]:
        raise DataError(f"damaged: {', '.join(bad)}; remove with pfedst cache clear NAME, and build again")
    return 0


def _clear(arguments: Sequence[str]) -> int:
    parser = CommandParser(prog="pfedst cache clear", description="Remove stores of the cache.")
    parser.add_argument("name", nargs="*", help="name of a store, from pfedst cache info")
    parser.add_argument(
        "--all", action="store_true", help="remove all stores in the folder, and the saved results of image scans"
    )
    parser.add_argument("--folder", type=Path, default=default_folder(), help="default: %(default)s")
    given = parser.parse_args(arguments)
    from pfedst.data.audit.memory import forget
    from pfedst.data.cache.cache import remove_store, stores_in

    stores = stores_in(given.folder)
    if bool(given.name) == given.all:
        raise ConfigurationError(f"pfedst cache clear: give names, or --all; there are: {', '.join(stores) or 'none'}")
    for name in given.name:
        if name not in stores:
            raise ConfigurationError(
                f'{given.folder} holds no store "{name}".{nearest(name, stores)} There are: {", ".join(stores)}'
            )
    for name in given.name or stores:
        try:
            remove_store(stores[name])
        except TimeoutError as error:
            raise ConfigurationError(f"{error}; the store was not removed") from error
        print(f"removed {name}, {counted(len(stores[name]), 'image')}, {bytes_text(stores[name].bytes)}")
    if given.all:
        forget(given.folder)
    return 0
