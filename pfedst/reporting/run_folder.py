"""The folder of a run: `config.yaml`, `identity.json`, `rounds.jsonl`, `summary.json`; `state/` and `sites/`."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pfedst.errors import ConfigurationError, StateError, nearest
from pfedst.state import json_bytes, write_atomically, writing

HELD_SECONDS = 8.0
"""How long to wait for another process: loaders of one that was killed end within 5 s."""


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

        A run of that name that has no finished round is removed.

        Raises:
            ConfigurationError: the name is taken or unusable, or the folder cannot be written.
        """
        cls.check_new(runs_dir, name)
        try:
            runs_dir.mkdir(parents=True, exist_ok=True)
            if name is not None:
                made = cls(runs_dir / name)
                made.path.mkdir(exist_ok=True)
                with made.held():
                    made._remove_unfinished()
                return made
            for number in itertools.count(1):
                path = runs_dir / (default_name + ("" if number == 1 else f"-{number}"))
                with suppress(FileExistsError):
                    path.mkdir()
                    return cls(path)
        except OSError as error:
            raise ConfigurationError(f"--runs_dir {runs_dir} cannot be written: {error}") from error
        raise AssertionError("numbers do not end")

    @classmethod
    def check_new(cls, runs_dir: Path, name: str | None) -> None:
        """Check that a new run of this name can be written, and write nothing.

        Raises:
            ConfigurationError: the name is taken or unusable, or the folder cannot be written.
        """
        if name is not None and not re.fullmatch(r"[\w][\w.\-]*", name):
            raise ConfigurationError(f'--name "{name}": use letters, digits, "_", "-" and "." only')
        there = next(path for path in (runs_dir.absolute(), *runs_dir.absolute().parents) if path.exists())
        if not there.is_dir() or not os.access(there, os.W_OK):
            raise ConfigurationError(
                f"--runs_dir {runs_dir} cannot be written: {there} is not a folder in which you may write"
            )
        if name is not None and cls(runs_dir / name)._is_taken():
            raise ConfigurationError(
                f"{runs_dir / name} exists and a run is never overwritten: choose another --name, continue it with "
                f"--resume, or remove it"
            )

    def _is_taken(self) -> bool:
        """Return True for anything but an empty folder, or a run without a finished round."""
        if not self.path.exists():
            return False
        if not self.path.is_dir():
            return True
        if not (self.path / "config.yaml").is_file():
            return any(path.suffix != ".part" for path in self.path.iterdir())
        return (self.path / "summary.json").exists() or self._has_finished_round()

    def _has_finished_round(self) -> bool:
        """Return True if a round after the first evaluation is recorded, or if the records are damaged."""
        try:
            records = [json.loads(line) for line in self.records_file.read_bytes().splitlines()]
            return any(record["round"] != 0 for record in records)
        except FileNotFoundError:
            return False
        except (ValueError, TypeError, KeyError, RecursionError):
            return True

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep other processes out of the folder within this block.

        Raises:
            ConfigurationError: another process is in it.
        """
        try:
            import fcntl
        except ImportError:  # not a Unix
            yield
            return
        descriptor = os.open(self.path, os.O_RDONLY)
        try:
            deadline = time.monotonic() + HELD_SECONDS
            while True:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError as error:
                    if time.monotonic() > deadline:
                        raise ConfigurationError(
                            f"{self.path}: another process writes this run; wait for it, or choose another --name"
                        ) from error
                    time.sleep(0.1)
                except OSError:  # a file system without locks
                    break
            yield
        finally:
            os.close(descriptor)

    def _remove_unfinished(self) -> None:
        """Remove what a run without a finished round has left; other files stay."""
        for name in ("config.yaml", "identity.json", "rounds.jsonl"):
            (self.path / name).unlink(missing_ok=True)
        for name in ("state", "sites"):
            shutil.rmtree(self.path / name, ignore_errors=True)

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

    def finished(self) -> dict[str, Any]:
        """Return the content of `summary.json` of a run that must be finished.

        Raises:
            ConfigurationError: there is no such folder, or no run in it.
            StateError: the run is not finished, or the file is damaged.
        """
        path = self.path
        if not path.is_dir():
            there = [other.name for other in path.parent.iterdir() if other.is_dir()] if path.parent.is_dir() else []
            raise ConfigurationError(f"{path}: no folder.{nearest(path.name, there)} Give the folder of a finished run")
        found = self.summary()
        if found is None and not (path / "config.yaml").is_file():
            raise ConfigurationError(f"{path} holds no summary.json: it is not a run; give a folder such as runs/NAME")
        if found is None:
            raise StateError(
                f"{path} holds no summary.json: the run is not finished; continue it with --name "
                f"{path.resolve().name} --resume"
            )
        return found

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
                f"{file} is missing or damaged ({error!r}): restore a copy of it, or start a new one"
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
            f"{self.records_file} was changed after it was written, and the saved rounds do not match it: restore "
            f"the original file, or start a new run"
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
