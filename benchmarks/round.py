"""The cost of a round over a bare PyTorch loop of the same steps: ratios, bits, memory and open files.

    python benchmarks/round.py run [--rounds 48] [--fits 1000] [--profile]
    python benchmarks/round.py table

Both run pFedST on cached taps in one thread, and take turns, so that other work of the machine affects both. A round of
pfedst is all that `pfedst fit` does between two evaluations: message out, local fits by the Trainer, messages in,
merge, records, state on disk; with and without a save after each fit. The bare loop loads the merged weights, steps
AdamW over the same batches, and takes the same mean; its milliseconds are the floor. Writes
benchmarks/results/round.json.

On a busy machine, `ratio` (median of blocks side by side) is the cost of a round there; `fastest` (of all blocks of
each) is closest to the cost on an idle machine.
"""

from __future__ import annotations

import argparse
import cProfile
import gc
import json
import os
import pstats
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning
import torch
import torch.nn.functional as F
from environment import environment
from torch import Tensor
from torch.optim import AdamW

from pfedst.client.module import FederatedClient
from pfedst.client.training import LocalTrainer
from pfedst.data import FederatedDataModule, SyntheticSites
from pfedst.messages.payload import NET
from pfedst.methods.pfedst import PFedST
from pfedst.reporting import RunFolder, RunSummary, describe
from pfedst.seeds import derive_seed
from pfedst.server.coordinator import FederatedCoordinator, build_federation
from pfedst.server.rounds import RoundLoop
from pfedst.server.server import Federation
from pfedst.testing.small import template, trainer

RESULTS = Path(__file__).resolve().parent / "results/round.json"
SITES = 2
NEVER = 10**6
BLOCK = 3
"""Rounds per turn: the last round of a block waits for its state to be saved, the others save during the next round."""
SETTINGS = ((10, 10.0, 1.10), (50, 5.0, 1.10), (10, 5.0, 1.15))
"""(steps per fit, milliseconds per bare step, largest ratio)."""


def sites_of(folder: Path, batch_size: int, steps: int) -> FederatedDataModule:
    """Return sites with exactly `steps` batches each and cached taps."""
    images = [batch_size * steps] * SITES
    options: dict[str, Any] = {"batch_size": batch_size, "validation_fraction": 0.0, "verify_images": False}
    options |= {"cache": "taps", "cache_folder": folder / "taps"}
    return SyntheticSites(SITES, 3, 32, images, [6] * SITES, **options)


def federation_of(data: FederatedDataModule) -> Federation:
    """Return pFedST on the nano encoder, ready for the first round."""
    made = build_federation(template(), data, PFedST(), 0)
    made.gather_prototypes(lambda name: data.evaluation_loader(name, "train", need="pooled"), torch.device("cpu"))
    made.start()
    return made


class OurRounds:
    """Rounds without evaluation, run as the coordinator does, with or without saving each fit."""

    def __init__(self, federation: Federation, data: FederatedDataModule, folder: Path, save_fits: bool) -> None:
        self.federation = federation
        local = LocalTrainer(trainer())
        summary = RunSummary(describe(federation, data, local.epochs, 1.0, NEVER))
        options = FederatedCoordinator(rounds=1, evaluate_every=NEVER, save_fits=save_fits).options
        with local.detached() as hooks:
            run = RunFolder.create(folder, None, "run")
            self.loop = RoundLoop(options, federation, data, local, hooks, run, summary)
        self.loop.rounds = NEVER  # no round is the last, which would be evaluated

    def round(self, number: int) -> None:
        self.loop.hooks.before_round(self.federation.generic, number)
        self.loop._end_round(number, self.loop._train_round(number))

    def wait(self) -> None:
        self.loop.saver.wait()

    def shared(self) -> dict[str, Tensor]:
        return self.federation.server[NET]


class BareRounds:
    """The same steps in plain PyTorch, on copies of the same clients."""

    def __init__(self, federation: Federation, data: FederatedDataModule) -> None:
        self.data = data
        self.clients = {name: client.copy_as(name).train() for name, client in federation.clients.items()}
        self.groups = {name: groups_of(client) for name, client in self.clients.items()}
        self.weights = [federation.weights[name] / sum(federation.weights.values()) for name in self.clients]
        self.net = next(iter(self.clients.values())).shared_state()

    def round(self, number: int) -> None:
        states = [self.fit(name, number) for name in self.clients]
        for key in self.net:
            mean = torch.zeros(self.net[key].shape, dtype=torch.float64)
            for state, weight in zip(states, self.weights, strict=True):
                mean.add_(state[key].double(), alpha=weight)
            self.net[key] = mean.to(self.net[key].dtype)

    def fit(self, name: str, number: int) -> dict[str, Tensor]:
        adapter = self.clients[name].adapter
        adapter.load_state_dict(self.net, strict=False)
        optimizer = AdamW([dict(group) for group in self.groups[name]])
        for inputs, targets in self.data.train_loader(name, derive_seed(0, "fit batches", name, number)):
            optimizer.zero_grad()
            F.cross_entropy(adapter(inputs.decode()), targets).backward()
            optimizer.step()
        state = adapter.state_dict()
        return {key: state[key].clone() for key in self.net}

    def wait(self) -> None:
        """Do nothing: no work is pending."""

    def shared(self) -> dict[str, Tensor]:
        return self.net


def groups_of(client: FederatedClient) -> list[dict[str, Any]]:
    """Return the parameter groups of the optimiser: parameters, learning rate, weight decay."""
    groups = client.configure_optimizers().param_groups
    return [{key: group[key] for key in ("params", "lr", "weight_decay")} for group in groups]


def batch_size_for(milliseconds: float, folder: Path) -> int:
    """Return the smallest multiple of 4 for which a bare step takes this time on this machine."""
    data = sites_of(folder, 160, 1)
    client = federation_of(data).clients["site_a"].train()
    optimizer = AdamW(groups_of(client))
    whole, targets = next(iter(data.train_loader("site_a", 0)))
    for batch_size in range(4, 160, 4):
        taken = []
        for _ in range(40 if batch_size == 4 else 15):
            started = time.process_time()  # processor time: other work of the machine must not make the batches small
            rows = torch.arange(batch_size)
            inputs = type(whole)(whole.kind, tuple(tensor[rows] for tensor in whole.tensors))
            optimizer.zero_grad()
            F.cross_entropy(client.adapter(inputs.decode()), targets[rows]).backward()
            optimizer.step()
            taken.append(time.process_time() - started)
        if 1000 * statistics.median(taken) >= milliseconds:
            return batch_size
    return 160


def taken(side: OurRounds | BareRounds, numbers: range) -> tuple[float, float]:
    """Return milliseconds per round: wall time and processor time."""
    wall, cpu = time.perf_counter(), time.process_time()
    for number in numbers:
        side.round(number)
    side.wait()  # pending saves must not slow down the other side
    return 1000 * (time.perf_counter() - wall) / len(numbers), 1000 * (time.process_time() - cpu) / len(numbers)


def measure(steps: int, batch_size: int, rounds: int, folder: Path) -> dict[str, Any]:
    """Measure one setting: medians over the blocks of rounds."""
    data = sites_of(folder, batch_size, steps)
    federation = federation_of(data)
    bare, ours = BareRounds(federation, data), OurRounds(federation, data, folder, save_fits=False)
    saving = OurRounds(federation_of(data), data, folder, save_fits=True)
    seen: dict[str, list[tuple[float, float]]] = {"bare": [], "ours": [], "saving": []}
    for block in range(rounds // BLOCK + 1):
        sides = [("saving", saving), ("bare", bare), ("ours", ours)]
        for name, side in sides if block % 2 else reversed(sides):
            seen[name].append(taken(side, range(block * BLOCK + 1, block * BLOCK + BLOCK + 1)))
    equal = all(torch.equal(value, bare.shared()[key]) for key, value in ours.shared().items())
    wall, cpu = ({name: [pair[clock] for pair in seen[name][1:]] for name in seen} for clock in (0, 1))
    return {
        "steps": steps,
        "batch_size": batch_size,
        "bare_step_ms": statistics.median(wall["bare"]) / SITES / steps,
        "bare_fit_ms": statistics.median(wall["bare"]) / SITES,
        "our_fit_ms": statistics.median(wall["ours"]) / SITES,
        "ratio": median_ratio(wall),
        "ratio_cpu": median_ratio(cpu),
        "ratio_saving_fits": median_ratio(wall, "saving"),
        "ratio_fastest": min(wall["ours"]) / min(wall["bare"]),
        "rounds": rounds,
        "bits_equal": equal,
    }


def median_ratio(clock: dict[str, list[float]], side: str = "ours") -> float:
    """Return the median ratio of a pfedst block to the bare block beside it, measured under the same load."""
    return statistics.median(ours / bare for ours, bare in zip(clock[side], clock["bare"], strict=True))


def resources() -> dict[str, float]:
    """Return resident memory in MiB and the number of open file descriptors."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return {
        "rss_mib": pages * os.sysconf("SC_PAGE_SIZE") / 2**20,
        "open_files": len(list(Path("/proc/self/fd").iterdir())),
    }


def _saving_ms(rows: Sequence[dict[str, Any]]) -> float:
    return statistics.median((row["ratio_saving_fits"] - row["ratio"]) * row["bare_fit_ms"] for row in rows)


def endure(fits: int, folder: Path) -> dict[str, Any]:
    """Return memory and open files after a fifth of many short fits, and at their end."""
    data = sites_of(folder, 8, 1)
    ours = OurRounds(federation_of(data), data, folder, save_fits=True)
    points = []
    for number in range(1, fits // SITES + 1):
        ours.round(number)
        if number % max(1, fits // SITES // 5) == 0:
            ours.wait()
            points.append({"fits": number * SITES, **resources()})
    return {
        "fits": fits,
        "points": points,
        "rss_growth_mib": points[-1]["rss_mib"] - points[0]["rss_mib"],
        "open_files_growth": points[-1]["open_files"] - points[0]["open_files"],
    }


def profile(steps: int, batch_size: int, folder: Path) -> None:
    """Print where the time of the pfedst rounds is spent."""
    data = sites_of(folder, batch_size, steps)
    ours = OurRounds(federation_of(data), data, folder, save_fits=True)
    ours.round(1)
    profiler = cProfile.Profile()
    profiler.enable()
    for number in range(2, 8):
        ours.round(number)
    ours.wait()
    profiler.disable()
    for order in ("tottime", "cumulative"):
        pstats.Stats(profiler).sort_stats(order).print_stats(70)


def run(rounds: int, fits: int, only_profile: bool) -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        sizes = {target: batch_size_for(target, folder) for _, target, _ in SETTINGS}
        if only_profile:
            return profile(50, sizes[5.0], folder)
        endurance = endure(fits, folder) if fits else None  # first, while the process holds little memory
        rows = [
            {"target_step_ms": target, "bound": bound} | measure(steps, sizes[target], rounds, folder)
            for steps, target, bound in SETTINGS
        ]
    measured = environment() | {"lightning": lightning.__version__}
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps({"environment": measured, "rounds": rows, "endurance": endurance}, indent=2) + "\n")
    return None


def table() -> None:
    result = json.loads(RESULTS.read_text())
    rows, endurance = result["rounds"], result["endurance"]
    print(
        "| steps | bare step, ms | bare fit, ms | our fit, ms | ratio | of CPU | of fastest | bound | saving fits "
        "| same bits |"
    )
    print("|" + "---|" * 10)
    for row in rows:
        cells = [row["steps"], f"{row['bare_step_ms']:.2f}", f"{row['bare_fit_ms']:.1f}", f"{row['our_fit_ms']:.1f}"]
        cells += [f"{row[ratio]:.3f}" for ratio in ("ratio", "ratio_cpu", "ratio_fastest")]
        cells += [row["bound"], f"{row['ratio_saving_fits']:.3f}", row["bits_equal"]]
        print(f"| {' | '.join(map(str, cells))} |")
    print(
        f"\nA nano encoder with RANDOM WEIGHTS, SYNTHETIC images, {SITES} sites, taps from a cache, 1 thread; "
        f"medians of {rows[0]['rounds']} rounds that take turns with the bare loop. `saving fits` is the ratio where "
        f"each fit is saved as it ends (the default): about {_saving_ms(rows):.1f} ms a fit."
    )
    if endurance:
        print(
            f"{endurance['fits']} fits: resident memory {endurance['rss_growth_mib']:+.1f} MiB, open files "
            f"{endurance['open_files_growth']:+.0f}, between a fifth of the fits and the end."
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    runs = commands.add_parser("run")
    runs.add_argument("--rounds", type=int, default=48)
    runs.add_argument("--fits", type=int, default=1000)
    runs.add_argument("--profile", action="store_true")
    commands.add_parser("table")
    given = parser.parse_args()
    if given.command == "run":
        run(given.rounds, given.fits, given.profile)
        if given.profile:
            return
    table()


if __name__ == "__main__":
    main()
