"""Helpers for tests of whole runs: continue a run, and compare what two runs left."""

import json

import torch
from safetensors.torch import load_file

from pfedst import simulation
from pfedst.client.state import SiteState
from pfedst.reporting import RunFolder
from pfedst.server.coordinator import FederatedCoordinator
from pfedst.testing.small import data, template, trainer

TIMES = ("fit_seconds", "total_seconds", "peak_memory_bytes", "resumed_after_round")
"""Keys of numbers that differ between two runs with the same results."""


def go_on(folder, method, sites=None, seed=0, callbacks=(), model=None, **coordinator):
    """Continue the run in `folder/run`; return its summary."""
    run = RunFolder(folder / "run")
    options = {"max_epochs": method.fewest_local_epochs, "callbacks": list(callbacks)}
    rounds = FederatedCoordinator(**({"rounds": 4} | coordinator))
    template_, sites = model or template(method), sites or data()
    return simulation.fit(rounds, template_, sites, method, trainer(**options), run, seed, resume=True)


def without_times(value):
    if isinstance(value, dict):
        return {key: without_times(part) for key, part in value.items() if key not in TIMES}
    return [without_times(part) for part in value] if isinstance(value, list) else value


def merged_fits(folder):
    """Of the last round of a run: its folder, and the numbers of the fits that the server has merged, by client."""
    last = sorted((folder / "run/state").glob("round-*"))[-1]
    return last, json.loads((last / "manifest.json").read_text())["about"]["after"]


def left(folder):
    """What a run left: its records, the name of its last round, and all tensors of server and clients by file."""
    records = [json.loads(line) for line in (folder / "run/rounds.jsonl").read_text().splitlines()]
    last, after = merged_fits(folder)
    tensors = {file.name: load_file(file) for file in sorted(last.glob("*.safetensors"))}
    for name, number in after.items():
        snapshot = SiteState(folder / "run/sites", name).path(number)
        files = sorted(snapshot.glob("*.safetensors")) if number else []
        assert not number or files, f"{snapshot} is gone"
        tensors |= {f"{name}/{snapshot.name}/{file.name}": load_file(file) for file in files}
    return without_times(records), last.name, tensors


def same(one, other) -> None:
    """Two results of `left` are equal, bit for bit."""
    assert one[:2] == other[:2]
    assert one[2].keys() == other[2].keys()
    for name, tensors in one[2].items():
        assert tensors.keys() == other[2][name].keys()
        for key, tensor in tensors.items():
            assert torch.equal(tensor, other[2][name][key]), (name, key)
