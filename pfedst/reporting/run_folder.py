"""The folder of a run: `config.yaml`, `rounds.jsonl`, `state/`, `summary.json`."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pfedst.errors import ConfigurationError, StateError
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

    def summary(self) -> dict[str, Any] | None:
        """What `summary.json` holds; None of a run that is not finished.

        Raises:
            StateError: the file is damaged.
        """
        file = self.path / "summary.json"
        try:
            found: dict[str, Any] = json.loads(file.read_text())
            return found
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise StateError(f"{file} is damaged ({error}); remove it, and the run goes on without it") from error

    def identify(self, identity: Mapping[str, Any], resume: bool) -> None:
        """Keep what a run is made of beside its configuration, or compare it with what was kept.

        Raises:
            StateError: going on would mix two runs; the keys that differ are named.
        """
        file = self.path / "identity.json"
        if not resume or not (file.is_file() or self.records()):  # killed before its first round
            write_json(file, identity)
            return
        try:
            kept = json.loads(file.read_text())
            differing = {key: (kept.get(key), value) for key, value in identity.items() if kept.get(key) != value}
        except (OSError, ValueError, AttributeError) as error:
            raise StateError(
                f"{file} is missing or damaged ({error!r}): the run cannot go on; start a new one"
            ) from error
        if differing:
            told = "; ".join(f"{key} was {old}, is {new}" for key, (old, new) in differing.items())
            raise StateError(f"{self.path} cannot go on, as it was made of something else: {told}; start a new run")

    def records(self) -> list[dict[str, Any]]:
        """The whole lines of `rounds.jsonl`: not one that a killed process left half-written, nor what follows it."""
        found: list[dict[str, Any]] = []
        file = self.path / "rounds.jsonl"
        for line in file.read_text(encoding="utf-8").split("\n") if file.is_file() else []:
            try:
                found.append(json.loads(line))
            except ValueError:
                break
        return found

    def keep_records(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Leave these lines alone in `rounds.jsonl`."""
        text = "".join(json.dumps(record, allow_nan=False) + "\n" for record in records)
        write_atomically(self.path / "rounds.jsonl", text.encode())

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
