"""The cost of a round over a bare PyTorch loop of the same steps: ratios, bits, memory and open files.

    python benchmarks/round.py run [--rounds 48] [--fits 1000] [--profile]
    python benchmarks/round.py table

Both sides run pFedST on cached taps, on one thread. They take turns, so that other work on the machine slows both. A
round of pfedst is all that `pfedst fit` does between two evaluations: messages to clients, the state of each client
from disk, local fits by the Trainer, the state and the message of each client to disk, merge, records, the server's
state on disk. The bare loop loads the merged weights, steps AdamW over the same batches, and takes the same mean. Its
time is the floor. Writes benchmarks/results/round.json.

On a machine with other work `ratio` (median of neighbouring blocks) is the cost of a round there. `fastest` (fastest
block of each side) is closest to the cost on an idle machine.
"""

from __future__ import annotations

import copy
import cProfile
import gc
import json
import os
import pstats
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import lightning
import torch
import torch.nn.functional as F
from command_line import run_and_table
from environment import environment
from torch import Tensor
from torch.optim import AdamW

from pfedst.client.client import Client
from pfedst.client.module import FederatedClient
from pfedst.client.training import LocalTrainer
from pfedst.data import FederatedDataModule, SyntheticSites
from pfedst.messages.payload import NET
from pfedst.methods.pfedst import PFedST
from pfedst.reporting import RunFolder, RunSummary, describe
from pfedst.seeds import derive_seed
from pfedst.server.coordinator import FederatedCoordinator
from pfedst.server.rounds import RoundLoop
from pfedst.server.server import Server
from pfedst.simulation import SITES as SITES_FOLDER
from pfedst.simulation import make_client, make_hooks, start_maker
from pfedst.testing.small import template, trainer
from pfedst.transport.in_process import InProcess

RESULTS = Path(__file__).resolve().parent / "results/round.json"
SITES = 2
NEVER = 10**6
BLOCK = 3
"""Rounds in turn: the last of a block waits for its state to be on disk, the others save while the next one trains."""
SETTINGS = ((10, 10.0, 1.10), (50, 5.0, 1.10), (10, 5.0, 1.15))
"""(steps a fit, milliseconds a bare step, largest ratio)."""


def sites_of(folder: Path, batch_size: int, steps: int) -> FederatedDataModule:
    """Make sites of exactly `steps` batches each, whose taps are cached."""
    images = [batch_size * steps] * SITES
    options: dict[str, Any] = {"batch_size": batch_size, "validation_fraction": 0.0, "verify_images": False}
    options |= {"cache": "taps", "cache_folder": folder / "taps"}
    return SyntheticSites(SITES, 3, 32, images, [6] * SITES, **options)


def client_of(data: FederatedDataModule, sites: Path | None = None) -> Client:
    """Make the client of all sites: pFedST on the nano encoder."""
    return make_client(template(), data, PFedST(weighting="samples"), 0, LocalTrainer(trainer()), sites)


class OurRounds:
    """Rounds without evaluation, as the coordinator runs them."""

    def __init__(self, data: FederatedDataModule, folder: Path) -> None:
        run = RunFolder.create(folder, None, "run")
        client = client_of(data, run.path / SITES_FOLDER)
        options = FederatedCoordinator(rounds=1, optimizer_state="reset", evaluate_every=NEVER).options
        transport = InProcess(client, 1)
        sites = {name: reply.values for name, reply in transport.hello(run.path.name).items()}
        samples = {name: values["samples"]["train"] for name, values in sites.items()}
        self.server = Server(client.method, samples, start_maker(client.model), 0)
        summary = RunSummary(describe(client.method, self.server.start, sites, 0, (), NEVER, 1.0, False), {})
        self.loop = RoundLoop(options, self.server, transport, make_hooks(trainer(), client.module), run, summary)
        self.loop._gather_prototypes()
        self.server.begin()
        self.loop.rounds = NEVER  # no round is the last one, which would be evaluated

    def round(self, number: int) -> None:
        self.loop.hooks.before_round(number)
        self.loop._end_round(number, self.loop._train_round(number))

    def wait(self) -> None:
        self.loop.saver.wait()

    def shared(self) -> dict[str, Tensor]:
        return self.server.state[NET]


class BareRounds:
    """The same steps in plain PyTorch, on copies of the same model with the same class anchors."""

    def __init__(self, data: FederatedDataModule, anchors: Tensor) -> None:
        self.data = data
        client = client_of(data)
        client.model.set_anchors(anchors)
        samples = {name: data.samples(name, "train") for name in data.sites}
        self.clients = {
            name: client.module.around(copy.deepcopy(client.model), client.method).train() for name in samples
        }
        self.groups = {name: groups_of(client) for name, client in self.clients.items()}
        self.weights = [count / sum(samples.values()) for count in samples.values()]
        self.net = client.model.shared_state()

    def round(self, number: int) -> None:
        states = [self.fit(name, number) for name in self.clients]
        for key in self.net:
            mean = torch.zeros(self.net[key].shape, dtype=torch.float64)
            for state, weight in zip(states, self.weights, strict=True):
                mean.add_(state[key].double(), alpha=weight)
            self.net[key] = mean.to(self.net[key].dtype)

    def fit(self, name: str, number: int) -> dict[str, Tensor]:
        adapter = self.clients[name].model.adapter
        adapter.load_state_dict(self.net, strict=False)
        optimizer = AdamW([dict(group) for group in self.groups[name]])
        for inputs, targets in self.data.train_loader(name, derive_seed(0, "fit batches", name, number)):
            optimizer.zero_grad()
            F.cross_entropy(adapter(inputs.decode()), targets).backward()
            optimizer.step()
        state = adapter.state_dict()
        return {key: state[key].clone() for key in self.net}

    def wait(self) -> None:
        """Do nothing: no save is under way."""

    def shared(self) -> dict[str, Tensor]:
        return self.net


def groups_of(client: FederatedClient) -> list[dict[str, Any]]:
    """Return the groups of the optimiser: parameters, learning rate, weight decay."""
    groups = client.configure_optimizers().param_groups
    return [{key: group[key] for key in ("params", "lr", "weight_decay")} for group in groups]


def batch_size_for(milliseconds: float, folder: Path) -> int:
    """Return the smallest multiple of 4 with which a bare step takes that long on this machine."""
    data = sites_of(folder, 160, 1)
    made = client_of(data)
    made.model.set_anchors(torch.randn(len(data.class_names), made.model.encoder.spec.embedding))
    client = made.module.train()
    optimizer = AdamW(groups_of(client))
    whole, targets = next(iter(data.train_loader("site_a", 0)))
    for batch_size in range(4, 160, 4):
        taken = []
        for _ in range(40 if batch_size == 4 else 15):
            started = time.process_time()  # other work on the machine must not make the batches small
            rows = torch.arange(batch_size)
            inputs = type(whole)(whole.kind, tuple(tensor[rows] for tensor in whole.tensors))
            optimizer.zero_grad()
            F.cross_entropy(client.model.adapter(inputs.decode()), targets[rows]).backward()
            optimizer.step()
            taken.append(time.process_time() - started)
        if 1000 * statistics.median(taken) >= milliseconds:
            return batch_size
    return 160


def taken(side: OurRounds | BareRounds, numbers: range) -> tuple[float, float]:
    """Return milliseconds a round: on the wall clock, and of the processor."""
    wall, cpu = time.perf_counter(), time.process_time()
    for number in numbers:
        side.round(number)
    side.wait()  # a save under way must not slow the other side
    return 1000 * (time.perf_counter() - wall) / len(numbers), 1000 * (time.process_time() - cpu) / len(numbers)


def measure(steps: int, batch_size: int, rounds: int, folder: Path) -> dict[str, Any]:
    """Measure one setting: medians over the blocks of rounds."""
    data = sites_of(folder, batch_size, steps)
    ours = OurRounds(data, folder)
    assert ours.server.anchors is not None
    bare = BareRounds(data, ours.server.anchors)
    seen: dict[str, list[tuple[float, float]]] = {"bare": [], "ours": []}
    for block in range(rounds // BLOCK + 1):
        sides: list[tuple[str, OurRounds | BareRounds]] = [("bare", bare), ("ours", ours)]
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
        "ratio_fastest": min(wall["ours"]) / min(wall["bare"]),
        "rounds": rounds,
        "bits_equal": equal,
    }


def median_ratio(clock: dict[str, list[float]]) -> float:
    """Return the median ratio of a block of ours to the bare block beside it."""
    return statistics.median(ours / bare for ours, bare in zip(clock["ours"], clock["bare"], strict=True))


def resources() -> dict[str, float]:
    """Return resident memory in MiB, and the number of open file descriptors."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return {
        "rss_mib": pages * os.sysconf("SC_PAGE_SIZE") / 2**20,
        "open_files": len(list(Path("/proc/self/fd").iterdir())),
    }


def endure(fits: int, folder: Path) -> dict[str, Any]:
    """Measure memory and open files after each fifth of many short fits."""
    data = sites_of(folder, 8, 1)
    ours = OurRounds(data, folder)
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
    """Print a profile of our rounds."""
    data = sites_of(folder, batch_size, steps)
    ours = OurRounds(data, folder)
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
        endurance = endure(fits, folder) if fits else None  # first, before the process holds more
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
    if "note" in result:
        print(f"**{result['note']}**\n")
    print("| steps | bare step, ms | bare fit, ms | our fit, ms | ratio | of CPU | of fastest | bound | same bits |")
    print("|" + "---|" * 9)
    for row in rows:
        cells = [row["steps"], f"{row['bare_step_ms']:.2f}", f"{row['bare_fit_ms']:.1f}", f"{row['our_fit_ms']:.1f}"]
        cells += [f"{row[ratio]:.3f}" for ratio in ("ratio", "ratio_cpu", "ratio_fastest")]
        cells += [row["bound"], row["bits_equal"]]
        print(f"| {' | '.join(map(str, cells))} |")
    print(
        f"\nA nano encoder with RANDOM WEIGHTS, SYNTHETIC images, {SITES} sites, cached taps, 1 thread; medians of "
        f"{rows[0]['rounds']} rounds that take turns with the bare loop."
    )
    if endurance:
        print(
            f"{endurance['fits']} fits: resident memory {endurance['rss_growth_mib']:+.1f} MiB, open files "
            f"{endurance['open_files_growth']:+.0f}, between a fifth of the fits and the end."
        )


def main() -> None:
    parser, _, runs = run_and_table(__doc__)
    runs.add_argument("--rounds", type=int, default=48)
    runs.add_argument("--fits", type=int, default=1000)
    runs.add_argument("--profile", action="store_true")
    given = parser.parse_args()
    if given.command == "run":
        run(given.rounds, given.fits, given.profile)
        if given.profile:
            return
    table()


if __name__ == "__main__":
    main()
