"""A federated round of pfedst and of Flower's simulator: the same model, the same batches, the same seed.

    python benchmarks/simulator.py run [--workload small] [--only "pfedst, in-process"] [--rounds 12]
    python benchmarks/simulator.py table

FedAvg on the side network with cached taps; AdamW, one local epoch, one torch thread a process; a frozen encoder with
RANDOM weights on SYNTHETIC sites. The rows:

* a bare PyTorch loop: the steps and the mean, and nothing else. It runs one round after each round of every other row,
  in the same process, so that other work on the machine slows both sides of a ratio;
* pfedst, clients one after another in this process, or in two worker processes;
* Flower's simulator (flwr with Ray) with one and two actors, whose clients do the steps of the bare loop.

`run` keeps the rows that it does not measure, if they are of the same source, environment and number of rounds. Flower
is not a dependency of pfedst; without it its rows are skipped. Install it with Ray in an environment of its own:

    python -m venv FOLDER; FOLDER/bin/pip install pfedst "flwr[simulation]>=1.41,<1.42"
"""

from __future__ import annotations

import copy
import hashlib
import importlib.util
import json
import logging
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from command_line import run_and_table, save
from environment import environment
from lightning.pytorch import Trainer
from local_fits import lean_trainer
from pfedst_baselines.fedavg import FedAvg

import pfedst
from pfedst.client.client import Client
from pfedst.client.module import FederatedClient
from pfedst.client.training import LocalTrainer
from pfedst.data import FederatedDataModule, SyntheticSites
from pfedst.encoders import FrozenCLIP
from pfedst.messages.payload import NET, State, payload_bytes
from pfedst.methods.merging import weighted_mean
from pfedst.reporting import RunFolder
from pfedst.seeds import derive_seed, seeded
from pfedst.server.coordinator import FederatedCoordinator, TransportKind
from pfedst.simulation import SITES, make_client, make_transport, start_maker
from pfedst.state.run_state import RunState
from pfedst.tracking import RoundHooks, RunLoggers

RESULT = Path(__file__).resolve().parent / "results" / "simulator.json"
RUN_SEED = 0
# without these Flower and Ray report their use to their makers
QUIET = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1", "RAY_USAGE_STATS_ENABLED": "0"}
IN_PROCESS = "pfedst, in-process"
FLOWER = "Flower, "


@dataclass(frozen=True)
class Workload:
    """A model and the sizes of four sites."""

    encoder: str
    image_size: int
    batch_size: int
    samples_per_site: tuple[int, ...]


WORKLOADS = {
    "small": Workload("vit-nano", 32, 8, (56, 48, 40, 32)),
    "larger": Workload("vit-demo", 64, 32, (400, 320, 240, 160)),
}


# -- the same for all ----------------------------------------------------------------------------------------------


@dataclass
class Workplace:
    """The data, the number of training images of each client, and one model for steps outside pfedst."""

    data: FederatedDataModule
    weights: dict[str, int]
    module: FederatedClient


def build(workload_name: str, cache_folder: str) -> Workplace:
    client = client_of(workload_name, cache_folder, None)
    weights = {name: client.data.samples(name, "train") for name in client.data.sites}
    module = client.module.around(copy.deepcopy(client.model), client.method)
    return Workplace(client.data, weights, module)


def client_of(workload_name: str, cache_folder: str, sites: Path | None) -> Client:
    torch.set_num_threads(1)
    workload = WORKLOADS[workload_name]
    data = SyntheticSites(
        sites=len(workload.samples_per_site), image_size=workload.image_size, batch_size=workload.batch_size,
        samples_per_site=workload.samples_per_site, cache="taps", cache_folder=cache_folder, validation_fraction=0.1,
    )  # fmt: skip
    template = FederatedClient(FrozenCLIP(workload.encoder, weights="random"), anchors="learned", loss=None)
    return make_client(template, data, FedAvg(weighting="samples"), RUN_SEED, LocalTrainer(lean_trainer()), sites)


def local_steps(place: Workplace, received: State, name: str, round_number: int) -> State:
    """Do the steps of a client in a round without pfedst's Trainer, checks and records; return its shared tensors."""
    module, model = place.module, place.module.model
    model.load_shared(received)
    module.train()
    batches_seed = derive_seed(RUN_SEED, "fit batches", name, round_number)
    optimizer = module.configure_optimizers()
    with seeded(derive_seed(RUN_SEED, "fit", name, round_number)):
        for inputs, targets in place.data.train_loader(name, batches_seed):
            optimizer.zero_grad()
            F.cross_entropy(model.adapter(model.taps_of(inputs)), targets).backward()
            optimizer.step()
    return model.shared_state()


@dataclass
class Bare:
    """The bare loop: local steps of each client and their mean."""

    place: Workplace
    state: State = field(init=False)

    def __post_init__(self) -> None:
        self.state = self.place.module.model.shared_state()

    def round(self, round_number: int) -> None:
        weights = self.place.weights
        states = [local_steps(self.place, self.state, name, round_number) for name in weights]
        self.state = weighted_mean(states, list(weights.values()))


class Stopwatch:
    """Seconds of the rounds of a row, and of a bare round after each."""

    def __init__(self, place: Workplace) -> None:
        self.bare = Bare(place)
        self.seconds: list[float] = []
        self.bare_seconds: list[float] = []
        self.started = self.begun = time.perf_counter()
        self.ready_seconds = 0.0

    def ready(self) -> None:
        """Note that everything before the first round is done."""
        self.ready_seconds = time.perf_counter() - self.started
        self.begin()

    def begin(self) -> None:
        self.begun = time.perf_counter()

    def end(self, round_number: int) -> None:
        """Note the end of a round; the next begins after one of the bare loop."""
        self.seconds.append(time.perf_counter() - self.begun)
        self.begin()
        self.bare.round(round_number)
        self.bare_seconds.append(time.perf_counter() - self.begun)
        self.begin()

    def row(self, state: State) -> dict[str, Any]:
        """Leave out the first round, which loads late imports, and the last one, in which pfedst evaluates."""
        seconds, bare_seconds = self.seconds[1:-1], self.bare_seconds[1:-1]
        ratios = [one / other for one, other in zip(seconds, bare_seconds, strict=True)]
        median = statistics.median(seconds)
        return {
            "round_seconds": median,
            "bare_round_seconds": statistics.median(bare_seconds),
            "ratio": statistics.median(ratios),
            "ratio_quartiles": statistics.quantiles(ratios, n=4)[::2],
            "start_up_seconds": self.ready_seconds + max(0.0, self.seconds[0] - median),
            "rounds_seconds": self.seconds,
            "bare_rounds_seconds": self.bare_seconds,
            "digest": digest(state),
            "bare_digest": digest(self.bare.state),
            "largest_difference": max(float((state[key] - self.bare.state[key]).abs().max()) for key in state),
            "load_average": os.getloadavg()[0],
        }


def digest(state: State) -> str:
    """Return a hash that is equal for equal bits."""
    found = hashlib.sha256()
    for key in sorted(state):
        found.update(key.encode() + state[key].contiguous().numpy().tobytes())
    return found.hexdigest()[:16]


# -- pfedst ------------------------------------------------------------------------------------------------------------


class TimedRounds(RoundHooks):
    """Starts and stops a stopwatch with each round; a round ends when its records and state are written."""

    def __init__(self, trainer: Trainer, module: FederatedClient, stopwatch: Stopwatch) -> None:
        super().__init__(trainer, module, [], RunLoggers([]))
        self.stopwatch = stopwatch

    def start(self) -> None:
        self.stopwatch.ready()

    def before_round(self, round_number: int) -> None:
        self.stopwatch.begin()

    def log(self, round_number: int, metrics: Any) -> None:
        if round_number > 0:
            self.stopwatch.end(round_number)


def pfedst_rows(
    kind: TransportKind, workers: int | None, workload: str, folder: str, rounds: int
) -> Iterator[tuple[str, dict[str, Any]]]:
    coordinator = FederatedCoordinator(
        rounds=rounds, optimizer_state="reset", evaluate_every=rounds, transport=kind, workers=workers, threads=1
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as runs:
        run_folder = RunFolder.create(Path(runs), "run", "run")
        client = client_of(workload, folder, run_folder.path / SITES)
        start = start_maker(client.model)
        place = build(workload, folder)
        hooks = TimedRounds(lean_trainer(), place.module, Stopwatch(place))
        transport = make_transport(coordinator, client)
        hooks.stopwatch.started = time.perf_counter()
        coordinator.fit(transport, client.method, start, hooks, run_folder, RUN_SEED)
        state = RunState(run_folder.state).last_round().parts["server"]["method"][NET]
    name = IN_PROCESS if workers is None else f"pfedst, {workers} processes"
    yield name, hooks.stopwatch.row(state)


# -- Flower ------------------------------------------------------------------------------------------------------------

workplace = cache(build)
"""One in each process: an actor lives as long as the simulation."""


def train_message(message: Any, context: Any) -> Any:
    """Answer a message as a virtual client of Flower, in the process of an actor."""
    from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

    config = message.content["config"]
    place = workplace(config["workload"], config["cache_folder"])
    weights = place.weights
    name = list(weights)[int(context.node_config["partition-id"])]
    state = local_steps(place, message.content["arrays"].to_torch_state_dict(), name, config["server-round"])
    answer = {
        "arrays": ArrayRecord(state),
        "metrics": MetricRecord({"num-examples": int(weights[name])}),
        "sender": ConfigRecord({"client": name}),
    }
    return Message(RecordDict(answer), reply_to=message)


def flower_strategy(clients: int, same_mean: bool) -> Any:
    """Flower's FedAvg, which adds up in float32 and in the order of arrival, or with pfedst's mean in its place."""
    from flwr.app import ArrayRecord, MetricRecord
    from flwr.serverapp.strategy import FedAvg as FlowerFedAvg

    def all_answered(answers: list[Any], weighted_by: str) -> MetricRecord:
        if len(answers) != clients:
            raise RuntimeError(f"{len(answers)} of {clients} clients answered; for the reason see Flower's log")
        return MetricRecord({"answers": len(answers)})

    class SameMean(FlowerFedAvg):
        def aggregate_train(self, server_round: int, replies: Iterable[Any]) -> Any:
            contents = sorted((reply.content for reply in replies), key=lambda content: content["sender"]["client"])
            states = [content["arrays"].to_torch_state_dict() for content in contents]
            weights = [content["metrics"]["num-examples"] for content in contents]
            return ArrayRecord(weighted_mean(states, weights)), all_answered(contents, "num-examples")

    return (SameMean if same_mean else FlowerFedAvg)(
        fraction_evaluate=0.0, min_train_nodes=clients, min_available_nodes=clients, train_metrics_aggr_fn=all_answered
    )


def flower_training(
    grid: Any, stopwatch: Stopwatch, place: Workplace, config: dict[str, str], rounds: int, same_mean: bool
) -> dict[str, Any]:
    """Run the rounds of a strategy; return the row of its stopwatch, which `evaluate_fn` stops after each round."""
    from flwr.app import ArrayRecord, ConfigRecord

    def round_ended(round_number: int, arrays: Any) -> None:
        if round_number == 0:
            stopwatch.ready()
        else:
            stopwatch.end(round_number)

    result = flower_strategy(len(place.weights), same_mean).start(
        grid,
        ArrayRecord(stopwatch.bare.state),
        num_rounds=rounds,
        train_config=ConfigRecord(dict(config)),
        evaluate_fn=round_ended,
    )
    return stopwatch.row(result.arrays.to_torch_state_dict())


def flower_rows(actors: int, workload: str, folder: str, rounds: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Train three times on the same actors: twice with Flower's mean, to see if it repeats, once with pfedst's."""
    from flwr.clientapp import ClientApp
    from flwr.serverapp import ServerApp
    from flwr.simulation import run_simulation

    logging.getLogger("flwr").setLevel(logging.WARNING)
    rows: dict[str, dict[str, Any]] = {}
    place = build(workload, folder)
    client_app, server_app = ClientApp(), ServerApp()
    client_app.train()(train_message)
    config = {"workload": workload, "cache_folder": folder}
    number = f"{actors} actor{'s'[: actors - 1]}"
    first = Stopwatch(place)

    @server_app.main()
    def serve(grid: Any, context: Any) -> None:
        torch.set_num_threads(1)  # of this thread
        own = flower_training(grid, first, place, config, rounds, same_mean=False)
        again = flower_training(grid, Stopwatch(build(workload, folder)), place, config, rounds, same_mean=False)
        rows[f"{FLOWER}{number}"] = own | {"digest_again": again["digest"], "ratio_again": again["ratio"]}
        same = flower_training(grid, Stopwatch(build(workload, folder)), place, config, rounds, same_mean=True)
        rows[f"{FLOWER}{number}, pfedst's mean"] = same | {"start_up_seconds": own["start_up_seconds"]}

    first.started = time.perf_counter()
    backend = {"init_args": {"num_cpus": actors}, "client_resources": {"num_cpus": 1}}
    run_simulation(server_app, client_app, len(place.weights), backend_config=backend)
    yield from rows.items()


# -- command line ------------------------------------------------------------------------------------------------------

Measure = Callable[[str, str, int], Iterable[tuple[str, dict[str, Any]]]]
ROWS: dict[str, Measure] = {
    IN_PROCESS: lambda *given: pfedst_rows("in_process", None, *given),
    "pfedst, 2 processes": lambda *given: pfedst_rows("processes", 2, *given),
    f"{FLOWER}1 actor": lambda *given: flower_rows(1, *given),
    f"{FLOWER}2 actors": lambda *given: flower_rows(2, *given),
}


def run(workloads: list[str], only: list[str], rounds: int) -> None:
    os.environ.update(QUIET)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    with_flower = all(importlib.util.find_spec(name) for name in ("flwr", "ray"))
    if not with_flower and any(name.startswith(FLOWER) for name in only):
        print("flwr with Ray is not installed: the rows of Flower's simulator are skipped (see --help)")
    versions = {name: version(name) if with_flower else None for name in ("flwr", "ray")}
    here = {"environment": environment() | versions | source(), "rounds": rounds}
    for workload in workloads:
        with tempfile.TemporaryDirectory() as folder:
            about = {**asdict(WORKLOADS[workload]), **facts(build(workload, folder))}
            for name in only:
                if with_flower or not name.startswith(FLOWER):
                    for row_name, row in ROWS[name](workload, folder, rounds):
                        write(here, workload, about, row_name, row)


def source() -> dict[str, str]:
    """Return commit and digest of pfedst's source: rows of two sources must not be compared."""
    package = Path(pfedst.__file__).parent
    found = hashlib.sha256()
    for file in sorted(package.rglob("*.py")):
        found.update(str(file.relative_to(package)).encode() + file.read_bytes())
    git = subprocess.run(["git", "-C", str(package), "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    return {"commit": git.stdout.strip() or "unknown", "source_digest": found.hexdigest()[:16]}


def facts(place: Workplace) -> dict[str, Any]:
    """Return what the protocol says of a workload."""
    state = place.module.model.shared_state()
    batch_size = place.data.batch_size
    images = place.weights
    return {
        "encoder_label": place.module.encoder.label,
        "data": place.data.label,
        "training_images": images,
        "steps_a_round": sum(-(-count // batch_size) for count in images.values()),
        "shared_tensors": len(state),
        "message_bytes": payload_bytes({NET: state}),
    }


def write(here: dict[str, Any], workload: str, about: dict[str, Any], row_name: str, row: dict[str, Any]) -> None:
    """Put a row into the file, whose rows are all of one source and environment."""
    if here["environment"]["source_digest"] != source()["source_digest"]:
        raise SystemExit(f"{workload}, {row_name}: pfedst's source has changed during the run; this row is not kept")
    result = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    if any(result.get(key) != value for key, value in here.items()):
        result = here | {"workloads": {}}
    entry = result["workloads"].setdefault(workload, about | {"rows": {}})
    entry |= about
    entry["rows"][row_name] = row
    save(RESULT, result)
    print(f"{workload}, {row_name}: {row['round_seconds']:.3f} s a round, {row['ratio']:.2f} x bare", flush=True)


# -- table -------------------------------------------------------------------------------------------------------------


def table() -> None:
    if not RESULT.exists():
        raise SystemExit(f"{RESULT} is not there: python benchmarks/simulator.py run first")
    result = json.loads(RESULT.read_text())
    if "note" in result:
        print(f"**{result['note']}**")
    for name, workload in result["workloads"].items():
        rows = workload["rows"]
        bare = statistics.median(row["bare_round_seconds"] for row in rows.values())
        print(f"\n{name}: {workload['steps_a_round']} steps a round, messages of {workload['message_bytes']:,} bytes\n")
        print("| row | seconds a round | over bare | start-up seconds | final shared weights against the bare loop's |")
        print("|---|---|---|---|---|")
        print(f"| bare PyTorch loop | {bare:.3f} | 1 | - | - |")
        for row_name, row in rows.items():
            low, high = row["ratio_quartiles"]
            print(
                f"| {row_name} | {row['round_seconds']:.3f} | {row['ratio']:.2f} ({low:.2f} to {high:.2f}) | "
                f"{row['start_up_seconds']:.1f} | {comparison(row)} |"
            )
        print(f"\n{protocol(workload, result)}")


def comparison(row: dict[str, Any]) -> str:
    if row["digest"] == row["bare_digest"]:
        return "bit-equal"
    again = row.get("digest_again", row["digest"])
    repeats = "the same bits" if again == row["digest"] else "other bits"
    return f"largest difference {row['largest_difference']:.1e}; a second training gives {repeats}"


def protocol(workload: dict[str, Any], result: dict[str, Any]) -> str:
    here = result["environment"]
    sizes = ", ".join(str(count) for count in workload["training_images"].values())
    return (
        f"FedAvg on the side network, {workload['encoder_label']}, {workload['data']} of {sizes} training images, "
        f"batch {workload['batch_size']}, cached taps, AdamW, one local epoch, seed {RUN_SEED}, one torch thread a "
        f"process. Medians of rounds 2 to {result['rounds'] - 1} without evaluation; over bare: median and quartiles "
        f"of the ratios to a bare round run after each. pfedst's rounds include its records and the saved state. "
        f"Start-up: until the first round, and what the first takes beyond the median. torch {here['torch']}, flwr "
        f"{here['flwr']}, ray {here['ray']}, pfedst at {here['commit']}; {here['cpu_count']} cores shared "
        "with other work."
    )


def main() -> None:
    parser, _, runs = run_and_table(__doc__)
    runs.add_argument("--workload", nargs="+", choices=WORKLOADS, default=list(WORKLOADS))
    runs.add_argument("--only", nargs="+", choices=ROWS, default=list(ROWS))
    runs.add_argument("--rounds", type=int, default=12)
    given = parser.parse_args()
    if given.command == "run":
        run(given.workload, given.only, given.rounds)
    table()


if __name__ == "__main__":
    # actors find what they run by the name of a module, which __main__ is not
    import simulator

    simulator.main()
