"""The log of a site: one line for every message that it has received or sent."""

from __future__ import annotations

import datetime
import json
from pathlib import Path

FILE = "messages.jsonl"


class MessageLog:
    """JSON lines for a data protection officer: when, which way, what kind, how many bytes, SHA-256.

    Args:
        folder: where `messages.jsonl` is appended to.
    """

    def __init__(self, folder: Path) -> None:
        self.file = folder / FILE

    def add(
        self, direction: str, kind: str, run: str, round_number: int, size_bytes: int, digest: str, parts: list[str]
    ) -> None:
        """Append a line.

        Args:
            direction: `received` or `sent`.
            kind: of the request; of a refusal or fault `KIND: NAME OF THE ERROR`.
            run: name of the run.
            round_number: the round, 0 before the first.
            size_bytes: of values and tensors.
            digest: their SHA-256.
            parts: names of the parts that hold tensors.
        """
        line = {
            "time": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            "direction": direction,
            "kind": kind,
            "run": run,
            "round": round_number,
            "bytes": size_bytes,
            "sha256": digest,
            "tensors_of": sorted(parts),
        }
        with self.file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
