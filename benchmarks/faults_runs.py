"""Runs for `faults.py`, of a nano encoder with RANDOM WEIGHTS on SYNTHETIC images, and what they leave on disk."""

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

from pfedst import simulation
from pfedst.client.state import SiteState
from pfedst.data import FederatedDataModule
from pfedst.methods.interface import FederatedMethod
from pfedst.reporting import RunFolder
from pfedst.server.coordinator import FederatedCoordinator
from pfedst.state.run_state import RunState
from pfedst.state.snapshot import flatten
from pfedst.testing.small import data, template, trainer

TIMES = ("fit_seconds", "total_seconds", "peak_memory_bytes", "resumed_after_round", "environment")
"""Keys of summary and records that differ from run to run; all others must not."""


class Left(NamedTuple):
    """What a run leaves on disk, without times.

    Attributes:
        summary: content of `summary.json`.
        records: lines of `rounds.jsonl`.
        merged: name of the newest round, and which fits the server has merged.
        tensors: of the newest round of the server; of the last merged fit of each site; of its predictions.
    """

    summary: Any
    records: Any
    merged: Any
    tensors: dict[str, dict[str, Tensor]]


def start_or_go_on(
    folder: Path,
    method: FederatedMethod,
    sites: FederatedDataModule | None = None,
    seed: int = 0,
    callbacks: Sequence[Callback] = (),
    **coordinator: Any,
) -> dict[str, Any]:
    """Start the run in `folder/run`, or continue it if it exists; return its summary."""
    place = folder / "run"
    resume = place.is_dir()
    run = RunFolder(place) if resume else RunFolder.create(folder, place.name, "run")
    local = trainer(max_epochs=method.fewest_local_epochs, callbacks=list(callbacks))
    rounds = FederatedCoordinator(**coordinator)
    return simulation.fit(rounds, template(), sites or data(), method, local, run, seed, resume)


def left_by(folder: Path) -> Left:
    """Read what a finished run has left."""
    run = folder / "run"
    last = RunState(run / "state").last_round()
    tensors = {"server": flatten(last.parts["server"])}
    for name, number in last.about["after"].items():
        site = SiteState(run / simulation.SITES, name)
        if number:
            tensors |= {f"{name}, {part}": flatten(tree) for part, tree in site.read(number).parts.items()}
        files = sorted((site.folder / "predictions").glob("*.safetensors"))
        tensors |= {f"{name}, {file.name}": load_file(file) for file in files}
    return Left(
        without_times(json.loads((run / "summary.json").read_text())),
        without_times([json.loads(line) for line in (run / "rounds.jsonl").read_text().splitlines()]),
        {"round": last.name} | {key: last.about[key] for key in ("after", "best", "kept")},
        tensors,
    )


def without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_times(part) for key, part in value.items() if key not in TIMES}
    return [without_times(part) for part in value] if isinstance(value, list) else value


def differences(one: Left, other: Left) -> list[str]:
    """Return the names of what is not bit-identical in two runs."""
    found = [name for name in ("summary", "records", "merged") if getattr(one, name) != getattr(other, name)]
    if one.tensors.keys() != other.tensors.keys():
        return [*found, "files"]
    for file, tensors in one.tensors.items():
        others = other.tensors[file]
        if tensors.keys() != others.keys() or not all(torch.equal(tensors[key], others[key]) for key in tensors):
            found.append(file)
    return found


@contextmanager
def recorded_warnings() -> Iterator[list[str]]:
    """Collect the warnings of the package within a block; they are not printed."""
    told: list[str] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            told.append(record.getMessage())

    logger, handler = logging.getLogger("pfedst"), Handler(logging.WARNING)
    propagate, logger.propagate = logger.propagate, False
    logger.addHandler(handler)
    try:
        yield told
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagate
