"""Reads what W&B keeps of a run on disk; its own client has no reader in Python any more.

A `.wandb` file is a log in LevelDB's framing: blocks of 32 KiB, in them records that are whole or in parts. A record is
a `wandb.proto` Record.
"""

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wandb.proto import wandb_internal_pb2 as protocol

BLOCK = 32768
HEADER = struct.Struct("<4sHB")
PART = struct.Struct("<IHB")  # checksum, length, kind
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4


@dataclass
class RecordedRun:
    """What a file holds of its run."""

    run: Any = None
    history: list[dict[str, Any]] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    steps: dict[str, str] = field(default_factory=dict)
    artifacts: list[Any] = field(default_factory=list)
    exit_code: int | None = None

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The history without what W&B adds to every row."""
        return [{key: value for key, value in row.items() if not key.startswith("_")} for row in self.history]


def files_of(folder: Path) -> list[Path]:
    """Every run that is kept below a folder, in the order of their start."""
    return sorted(folder.rglob("run-*.wandb"), key=lambda file: file.stat().st_mtime_ns)


def read(file: Path) -> RecordedRun:
    """The run that a file is of."""
    found = RecordedRun()
    for record in _records(file.read_bytes()):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            found.run = record.run
            found.config |= _values(record.run.config.update)
        elif kind == "config":
            found.config |= _values(record.config.update)
        elif kind == "summary":
            found.summary |= _values(record.summary.update)
        elif kind == "history":
            found.history.append(_values(record.history.item))
        elif kind == "metric":
            found.steps[record.metric.glob_name or record.metric.name] = record.metric.step_metric
        elif kind == "artifact":
            found.artifacts.append(record.artifact)
        elif kind == "exit":
            found.exit_code = record.exit.exit_code
    return found


def _records(content: bytes) -> Iterator[Any]:
    magic, number, version = HEADER.unpack_from(content)
    assert (magic, number, version) == (b":W&B", 0xBEE1, 0)
    place, whole = HEADER.size, b""
    while place + PART.size <= len(content):
        left = BLOCK - place % BLOCK
        if left < PART.size:  # too little for a part: filled with zeros
            place += left
            continue
        _, length, kind = PART.unpack_from(content, place)
        if kind == 0:
            return
        part = content[place + PART.size : place + PART.size + length]
        place += PART.size + length
        whole = part if kind in (FULL, FIRST) else whole + part
        if kind in (FULL, LAST):
            record = protocol.Record()
            record.ParseFromString(whole)
            yield record


def _values(items: Any) -> dict[str, Any]:
    return {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in items}
