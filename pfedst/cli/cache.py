"""`pfedst cache build | info | clear`: fill the tap cache before a run, list its content, remove it."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from pfedst.cli.federated import PFedSTCLI, run_command
from pfedst.client.module import FederatedClient
from pfedst.client.training import LocalTrainer
from pfedst.data import FederatedDataModule
from pfedst.data.audit.memory import forget
from pfedst.data.taps.cache import default_folder, remove_store, stores_in
from pfedst.data.taps.store import TapStore
from pfedst.errors import ConfigurationError, DataError, nearest
from pfedst.reporting import bytes_text, console_of
from pfedst.simulation import make_client

USAGE = """\
usage: pfedst cache build OPTIONS OF FIT     fill the cache for a run with these options, and stop
       pfedst cache info [--folder FOLDER] [--verify]
       pfedst cache clear [NAME ...] [--all] [--folder FOLDER]
"""


def run_cache(arguments: Sequence[str]) -> int:
    """Run one of the cache commands. Return the exit code."""
    command, rest = (arguments[0] if arguments else "--help"), list(arguments[1:])
    if command == "build":
        return run_command(["fit", *rest], BuildCLI)
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


class BuildCLI(PFedSTCLI):
    """`pfedst fit`, but it ends when the cache is complete."""

    def fit(self, model: FederatedClient, datamodule: FederatedDataModule, **_: Any) -> None:
        """Complete the cache and print its location."""
        if datamodule.cache.kind == "none":
            raise ConfigurationError("--data.cache none: nothing to build; give --data.cache auto")
        method = self._get(self.config_init, "method")
        client = make_client(model, datamodule, method, self._seed(), LocalTrainer(self.trainer), sites=None)
        if datamodule.store is None:
            raise ConfigurationError(
                f"nothing was cached: method {type(method).__name__} needs {client.model.adapter.needs} of the "
                f"encoder, or the cache would pass --data.cache_max_bytes {datamodule.cache.max_bytes}"
            )
        print(f"{datamodule.store.folder}: {_size(datamodule.store)}")


def _info(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="pfedst cache info", description="List the content of the tap cache.")
    parser.add_argument("--folder", type=Path, default=default_folder(), help="default: %(default)s")
    parser.add_argument("--verify", action="store_true", help="read every row and compare it with its checksum")
    given = parser.parse_args(arguments)
    stores, console = stores_in(given.folder), console_of(200)
    table = Table(title=f"Tap cache in {given.folder}")
    for heading in ("name", "images", "a row", "total", *(("damaged rows",) if given.verify else ())):
        table.add_column(heading, justify="left" if heading == "name" else "right", overflow="fold")
    damaged = {name: store.damaged() for name, store in stores.items()} if given.verify else {}
    for name, store in stores.items():
        row = [name, f"{len(store):,}", bytes_text(store.layout.row_bytes), bytes_text(store.bytes)]
        table.add_row(*row, *((str(len(damaged[name])),) if given.verify else ()))
    console.print(table, highlight=False)
    if bad := [name for name, rows in damaged.items() if rows]:
        raise DataError(f"damaged: {', '.join(bad)}; remove with pfedst cache clear NAME, and build again")
    return 0


def _clear(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="pfedst cache clear", description="Remove stores of the tap cache.")
    parser.add_argument("name", nargs="*", help="as listed by pfedst cache info")
    parser.add_argument(
        "--all", action="store_true", help="every store in the folder, and the saved results of image scans"
    )
    parser.add_argument("--folder", type=Path, default=default_folder(), help="default: %(default)s")
    given = parser.parse_args(arguments)
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
            raise ConfigurationError(f"{error}; nothing was removed of it") from error
        print(f"removed {name}, {_size(stores[name])}")
    if given.all:
        forget(given.folder)
    return 0


def _size(store: TapStore) -> str:
    return f"{len(store):,} images, {bytes_text(store.bytes)}"
