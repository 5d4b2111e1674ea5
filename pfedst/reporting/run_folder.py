"""The folder of a run: `config.yaml`, `rounds.jsonl`, `state/`, `summary.json`."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pfedst.errors import ConfigurationError
from pfedst.state import write_atomically, write_json


class RunFolder:
    """Where one run writes; an existing run is never overwritten.

    Args:
        path: the folder, made by `create`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.state = path / "state"

    @classmethod
    def create(cls, runs_dir: Path, name: str | None, default_name: str) -> RunFolder:
        """Make the folder `runs_dir/name`, or with no name given `runs_dir/default_name`, numbered if taken.

        Raises:
            ConfigurationError: the name is taken or unusable, or the folder cannot be written.
        """
        if name is not None and not re.fullmatch(r"[\w][\w.\-]*", name):
            raise ConfigurationError(f'--name "{name}": use letters, digits, "_", "-" and "." only')
        try:
            runs_dir.mkdir(parents=True, exist_ok=True)
            number = 1
            while True:
                path = runs_dir / (name or default_name + ("" if number == 1 else f"-{number}"))
                try:
                    path.mkdir()
                    return cls(path)
                except FileExistsError:
                    if name is not None:
                        raise ConfigurationError(
                            f"{path} exists and a run is never overwritten: choose another --name, or remove it"
                        ) from None
                    number += 1
        except OSError as error:
            raise ConfigurationError(f"--runs_dir {runs_dir} cannot be written: {error}") from error

    def write_config(self, text: str) -> None:
        """Keep the resolved configuration; it runs this run again."""
        write_atomically(self.path / "config.yaml", text.encode())

    def add_record(self, record: Mapping[str, Any]) -> None:
        """Append one line to `rounds.jsonl`: one client in one round."""
        with (self.path / "rounds.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(record, allow_nan=False) + "\n")

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write `summary.json`."""
        write_json(self.path / "summary.json", summary)
