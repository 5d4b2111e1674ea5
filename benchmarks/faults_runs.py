"""Runs for `faults.py`, with a nano encoder with RANDOM WEIGHTS on SYNTHETIC images, and the files that they leave."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Callback
from safetensors.torch import load_file
from torch import Tensor

from pfedst.data import FederatedDataModule
from pfedst.methods.interface import FederatedMethod
from pfedst.reporting import RunFolder
from pfedst.server.coordinator import FederatedCoordinator
from pfedst.testing.small import data, template, trainer

TIMES = ("fit_seconds", "total_seconds", "peak_memory_bytes", "resumed_after_round")
"""Keys of summary and records that may differ between runs; all others must be equal."""


class Left(NamedTuple):
    """The results of a run, without times."""

    summary: Any
    records: Any
    last_round: str
    tensors: dict[str, dict[str, Tensor]]


def start_or_go_on(
    folder: Path,
    method: FederatedMethod,
    sites: FederatedDataModule | None = None,
    seed: int = 0,
    callbacks: Sequence[Callback] = (),
    **coordinator: Any,
) -> dict[str, Any]:
    """Start a run in `folder/run`, or resume it if it exists. Return its summary."""
    place = folder / "run"
    resume = place.is_dir()
    run = RunFolder(place) if resume else RunFolder.create(folder, place.name, "run")
    local = trainer(max_epochs=method.fewest_local_epochs, callbacks=list(callbacks))
    return FederatedCoordinator(**coordinator).fit(template(), sites or data(), method, local, run, seed, resume)


def left_by(folder: Path) -> Left:
    """Return the results of a finished run."""
    run = folder / "run"
    last = sorted((run / "state").glob("round-*"))[-1]
    return Left(
        without_times(json.loads((run / "summary.json").read_text())),
        without_times([json.loads(line) for line in (run / "rounds.jsonl").read_text().splitlines()]),
        last.name,
        {file.name: load_file(file) for file in sorted(last.glob("*.safetensors"))},
    )


def without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_times(part) for key, part in value.items() if key not in TIMES}
    return [without_times(part) for part in value] if isinstance(value, list) else value


def differences(one: Left, other: Left) -> list[str]:
    """Return the parts in which two runs differ in any bit; empty if they are equal."""
    found = [name for name in ("summary", "records", "last_round") if getattr(one, name) != getattr(other, name)]
    if one.tensors.keys() != other.tensors.keys():
        return [*found, "files"]
    for file, tensors in one.tensors.items():
        others = other.tensors[file]
        if tensors.keys() != others.keys() or not all(torch.equal(tensors[key], others[key]) for key in tensors):
            found.append(file)
    return found


@contextmanager
def recorded_warnings() -> Iterator[list[str]]:
    """Record the warnings of the package within the block instead of printing them."""
    warned: list[str] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            warned.append(record.getMessage())

    logger, handler = logging.getLogger("pfedst"), Handler(logging.WARNING)
    propagate, logger.propagate = logger.propagate, False
    logger.addHandler(handler)
    try:
        yield warned
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagate
