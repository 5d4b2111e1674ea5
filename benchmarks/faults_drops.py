"""Clients that fail at random in every way, for `faults.py`."""

from __future__ import annotations

import json
import random
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from faults_runs import recorded_warnings, start_or_go_on

from pfedst.data import FederatedDataModule
from pfedst.errors import PfedstError
from pfedst.messages.payload import NET, Payload
from pfedst.methods.interface import Batch, LocalModel
from pfedst.methods.pfedst import PFedST
from pfedst.testing.small import data, encoder

SITES, IMAGES, TEST_IMAGES, EVALUATE_EVERY = 6, 24, 120, 10
WAYS = ("raises", "NaN loss", "NaN message", "wrong keys", "absurd norm")
WITHOUT_NORM = WAYS[:-1]
RATES = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9)
HANGING = {("site_b", 2), ("site_e", 5), ("site_b", 8)}
HANG_ROUNDS, WORKERS, TIMEOUT_SECONDS = 10, 2, 5.0


class Unreliable(PFedST):
    """pFedST whose clients fail at random, drawn again in each round.

    Args:
        rate: probability that a client fails in a round.
        ways: kinds of failure from which one is drawn, keys of WAYS.
        draw: seed of the draws.
        options: options of PFedST.
    """

    def __init__(self, rate: float = 0.0, ways: Sequence[str] = WAYS, draw: int = 0, **options: Any) -> None:
        super().__init__(**options)
        self.rate, self.ways, self.draw = rate, list(ways), draw

    def fault(self, name: str, round_number: int) -> str | None:
        drawn = random.Random(f"{self.draw} {name} {round_number}")
        return drawn.choice(self.ways) if drawn.random() < self.rate else None

    def loss(self, client: LocalModel, batch: Batch) -> torch.Tensor:
        fault = self.fault(client.name, client.round)
        if fault == "raises":
            raise ZeroDivisionError
        return super().loss(client, batch) * (float("nan") if fault == "NaN loss" else 1.0)

    def upload(self, client: LocalModel) -> Payload:
        message, fault = super().upload(client), self.fault(client.name, client.round)
        net = dict(message[NET])
        if fault == "wrong keys":
            net["x"] = net.pop(next(iter(net)))
        factor = {"NaN message": float("nan"), "absurd norm": 1e9}.get(fault or "", 1.0)
        return {NET: {key: tensor * factor for key, tensor in net.items()}}


class Hanging(PFedST):
    """pFedST in which some clients never finish some rounds."""

    def loss(self, client: LocalModel, batch: Batch) -> torch.Tensor:
        if (client.name, client.round) in HANGING:
            time.sleep(10**6)
        return super().loss(client, batch)


def sites_of(folder: Path) -> FederatedDataModule:
    sizes = {"samples_per_site": [IMAGES] * SITES, "test_samples_per_site": [TEST_IMAGES] * SITES}
    return data(sites=SITES, cache="taps", cache_folder=folder, **sizes)


def one_run(method: PFedST, rounds: int, cache: Path, **options: Any) -> dict[str, Any]:
    """Return how a run ended, and which clients reported."""
    started = time.perf_counter()
    chosen = {"rounds": rounds, "evaluate_every": EVALUATE_EVERY, "min_clients": 0} | options
    with tempfile.TemporaryDirectory() as folder, recorded_warnings() as warned:
        try:
            summary = start_or_go_on(Path(folder), method, sites_of(cache), **chosen)
        except PfedstError as error:
            return {"error": f"{type(error).__name__}: {error}", "seconds": time.perf_counter() - started}
        lines = (Path(folder) / "run/rounds.jsonl").read_text().splitlines()
        records = [record for record in map(json.loads, lines) if record["round"]]
    return {
        "seconds": time.perf_counter() - started,
        "reported": sum(record["participated"] for record in records) / rounds,
        "rounds_without_any": rounds - len({record["round"] for record in records if record["participated"]}),
        "left_out": dict(Counter(record["left_out"] for record in records if "left_out" in record)),
        "warnings": len(warned),
        "accuracy": {model: summary[model]["mean"]["balanced_accuracy"] for model in ("personal", "generic")},
    }


def drops(rounds: int = 50) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return protocol and result."""
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as place:
        cache = Path(place)
        for ways in (WAYS, WITHOUT_NORM):
            for rate in RATES[ways is WITHOUT_NORM :]:
                rows.append({"ways": ways, "rate": rate} | one_run(Unreliable(rate, ways), rounds, cache))
                rows[-1]["failing"] = failing_a_round(Unreliable(rate, ways), rounds)
                print(rows[-1], flush=True)
        parallel = {"transport": "processes", "workers": WORKERS, "threads": 1, "timeout_seconds": TIMEOUT_SECONDS}
        hanging = one_run(Hanging(), HANG_ROUNDS, cache, **parallel)
        label = sites_of(cache).label
    protocol = {
        "encoder": encoder().label,
        "data": label,
        "sites": SITES,
        "train_images_a_site": IMAGES,
        "test_images_a_site": TEST_IMAGES,
        "rounds": rounds,
        "evaluate_every": EVALUATE_EVERY,
        "min_clients": 0,
        "hanging": sorted(HANGING),
        "hang_rounds": HANG_ROUNDS,
        "workers": WORKERS,
        "timeout_seconds": TIMEOUT_SECONDS,
        "threads": 1,
        "seed": 0,
    }
    return protocol, {"rows": rows, "hanging": hanging}


def failing_a_round(method: Unreliable, rounds: int) -> float:
    """Return the mean number of clients that fail, computed from the draws alone."""
    names = [f"site_{letter}" for letter in "abcdef"[:SITES]]
    drawn = [method.fault(name, number) for number in range(1, rounds + 1) for name in names]
    return sum(fault is not None for fault in drawn) / rounds


def table(protocol: dict[str, Any], result: dict[str, Any]) -> None:
    print(
        "| ways to fail | rate | failed a round | reported a round | rounds without any | left out | personal "
        "| generic | seconds |\n|" + "---|" * 9
    )
    for row in result["rows"]:
        all_ways = "absurd norm" in row["ways"]
        cells = ["all five" if all_ways else "all but absurd norm", row["rate"], f"{row['failing']:.2f}"]
        print(f"| {' | '.join(map(str, cells))} | {cells_of(row)} |")
    hanging = result["hanging"]
    print(f"| hang, with processes | {len(protocol['hanging'])} fits | - | {cells_of(hanging)} |")
    print(
        f"\n{protocol['encoder']}; {protocol['data']}: {protocol['sites']} sites of {protocol['train_images_a_site']} "
        f"training and {protocol['test_images_a_site']} test images; pFedST, {protocol['rounds']} rounds, min_clients "
        f"{protocol['min_clients']}, evaluated every {protocol['evaluate_every']} rounds, one seed. A client fails in "
        f"a round at that rate, in a way drawn from: {', '.join(result['rows'][0]['ways'])} (1e9 times what it should "
        "send). Balanced accuracy on test, in per cent, mean over clients; "
        f"chance is {100 / 3:.1f}. Hanging: {protocol['hang_rounds']} rounds with {protocol['workers']} workers, "
        f"{protocol['timeout_seconds']:g} s for a fit; each worker that is ended is started anew, with its imports."
    )


def cells_of(row: dict[str, Any]) -> str:
    if "error" in row:
        return f"{row['error'].split(':')[0]} {'| ' * 5}| {row['seconds']:.1f}"
    cells = [f"{row['reported']:.2f}", row["rounds_without_any"]]
    cells.append(", ".join(f"{kind} {count}" for kind, count in sorted(row["left_out"].items())) or "-")
    cells += [f"{100 * row['accuracy'][model]:.1f}" for model in ("personal", "generic")]
    return " | ".join(map(str, [*cells, f"{row['seconds']:.1f}"]))
