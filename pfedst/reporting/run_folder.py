"""The folder of a run: `config.yaml`, `identity.json`, `rounds.jsonl`, `summary.json`; `state/` and `sites/`."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pfedst.errors import ConfigurationError, StateError
from pfedst.state import json_bytes, write_atomically, writing


class RunFolder:
    """The folder in which one run writes; an existing run is never overwritten.

    Args:
        path: the folder, made by `create`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.state = path / "state"
        self._bytes = 0
        self._digest = hashlib.sha256()

    @classmethod
    def create(cls, runs_dir: Path, name: str | None, default_name: str) -> RunFolder:
        """Make the folder `runs_dir/name`; without a name `runs_dir/default_name`, numbered if it exists.

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
        """Return the content of `summary.json`; None if the run is not finished.

        Raises:
            StateError: the file is damaged.
        """
        file = self.path / "summary.json"
        try:
            return _table(file)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, RecursionError) as error:
            raise StateError(f"{file} is damaged ({error}); remove it, and the run continues without it") from error

    def identity(self) -> dict[str, Any]:
        """Return what the run depends on besides its configuration.

        Raises:
            StateError: the file is missing or damaged.
        """
        file = self.path / "identity.json"
        try:
            return _table(file)
        except (OSError, ValueError, RecursionError) as error:
            raise StateError(
                f"{file} is missing or damaged ({error!r}): put back a copy of it, or start a new one"
            ) from error

    def identify(self, identity: Mapping[str, Any], resume: bool) -> None:
        """Save what a run depends on besides its configuration; with `resume` compare it with what was saved.

        Raises:
            StateError: continuing would mix two runs; the message names the keys that differ.
        """
        file = self.path / "identity.json"
        if not resume or not (file.is_file() or not self.is_empty):  # killed before its first round
            self._write(file, json_bytes(identity))
            return
        kept = self.identity()
        differing = {key: (kept.get(key), value) for key, value in identity.items() if kept.get(key) != value}
        if differing:
            changes = "; ".join(f"{key} was {old}, is {new}" for key, (old, new) in differing.items())
            raise StateError(f"{self.path} cannot be continued: {changes}; start a new run")

    @property
    def records_file(self) -> Path:
        """`rounds.jsonl`."""
        return self.path / "rounds.jsonl"

    @property
    def is_empty(self) -> bool:
        """Whether nothing is recorded."""
        return not self.records_file.is_file() or not self.records_file.stat().st_size

    @property
    def mark(self) -> dict[str, Any]:
        """Size and SHA-256 of the present records; saved with a state, so that the two stay together."""
        return {"bytes": self._bytes, "sha256": self._digest.hexdigest()}

    def records(self, mark: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Return the records up to a mark, whatever was written after it.

        Raises:
            StateError: they have been changed since.
        """
        try:
            content = self._read(mark["bytes"])
            if len(content) == mark["bytes"] and hashlib.sha256(content).hexdigest() == mark["sha256"]:
                return [json.loads(line) for line in content.decode().splitlines()]
        except (ValueError, KeyError, TypeError, RecursionError):  # the same, by someone who made the sums right again
            pass
        raise StateError(
            f"{self.records_file} was changed after it was written, and the state of its rounds does not go with it: "
            f"put back what it was, or start a new run"
        )

    def keep_records(self, mark: Mapping[str, Any] | None) -> None:
        """Drop the records after a mark; all records for None."""
        content = self._read(mark["bytes"]) if mark else b""
        self._write(self.records_file, content)
        self._bytes, self._digest = len(content), hashlib.sha256(content)

    def _read(self, size_bytes: int) -> bytes:
        try:
            with self.records_file.open("rb") as file:
                # a forged mark may claim more than memory holds
                return file.read(min(size_bytes, self.records_file.stat().st_size))
        except OSError:
            return b""

    def add_records(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Append to `rounds.jsonl`: one line a client in a round."""
        text = "".join(json.dumps(record, allow_nan=False) + "\n" for record in records)
        with writing(self.records_file), self.records_file.open("a", encoding="utf-8") as file:
            file.write(text)
        self._bytes += len(text.encode())
        self._digest.update(text.encode())

    def write_config(self, text: str) -> None:
        """Write the resolved configuration, which repeats this run."""
        self._write(self.path / "config.yaml", text.encode())

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write `summary.json`."""
        self._write(self.path / "summary.json", json_bytes(summary))

    def _write(self, file: Path, content: bytes) -> None:
        with writing(file):
            write_atomically(file, content)


def _table(file: Path) -> dict[str, Any]:
    found = json.loads(file.read_text())
    if not isinstance(found, dict):
        raise ValueError(f"a {type(found).__name__} in place of a table")
    return found
