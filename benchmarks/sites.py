"""Memory and time of a run as the number of sites grows; RANDOM WEIGHTS and RANDOM images.

    python benchmarks/sites.py run [--sites 100 1000] [--rounds 12]
    python benchmarks/sites.py table

A run of pFedST on the nano encoder, 8 images of 32 px a site, participation 1 %, evaluated before the first round and
after the last one. Each run is a process of its own and reports the highest resident memory of that process. A third
run has as few sites and as many participants a round as the run with most sites: the rounds of these two differ in the
sites that do not take part, and in nothing else. Rounds are timed from their first request until their state is
written, without the first round and without the last one, which is evaluated. Writes benchmarks/results/sites.json.
"""

from __future__ import annotations

import json
import logging
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from command_line import one_command, row_of_a_process, run_and_table, save
from lightning.pytorch import LightningModule, Trainer
from local_fits import lean_trainer
from numpy.typing import NDArray

from pfedst.client.module import FederatedClient
from pfedst.client.training import LocalTrainer
from pfedst.data import FederatedDataModule
from pfedst.data.sets.synthetic import ArraySource
from pfedst.data.sites import LabelledImages, Sites
from pfedst.encoders import FrozenCLIP
from pfedst.methods.pfedst import PFedST
from pfedst.reporting import RunFolder
from pfedst.server.coordinator import FederatedCoordinator
from pfedst.simulation import SITES, make_client, make_transport, start_maker
from pfedst.tracking import RoundHooks, RunLoggers, peak_memory_bytes

RESULT = Path(__file__).resolve().parent / "results" / "sites.json"
CLASSES, TRAIN_IMAGES, TEST_IMAGES, IMAGE_SIZE = 2, 4, 4, 32
PARTICIPATION = 0.01
LARGEST_MEMORY_RATIO, LARGEST_TIME_RATIO = 1.1, 1.1
CPU = torch.device("cpu")
MEBI = 2**20


class RandomSites(FederatedDataModule):
    """Any number of sites with few images of noise.

    Args:
        sites: number of sites.
        image_size: side in pixels.
        train_images: training images of a site.
        test_images: test images of a site.
        classes: number of classes.
    """

    def __init__(
        self,
        sites: int,
        image_size: int = IMAGE_SIZE,
        train_images: int = TRAIN_IMAGES,
        test_images: int = TEST_IMAGES,
        classes: int = CLASSES,
    ) -> None:
        super().__init__(batch_size=train_images, validation_fraction=0, audit="off", verify_images=False)
        self.number = sites
        self.image_size = image_size
        self.images = {"train": train_images, "test": test_images}
        self.classes = classes
        self.label = f"RANDOM images ({sites} sites)"

    @property
    def image_bytes(self) -> int:
        """Bytes of all images."""
        return self.number * sum(self.images.values()) * 3 * self.image_size**2

    def read(self) -> Sites:
        """Draw the images of every site."""
        rng = np.random.default_rng(0)

        def images(count: int) -> LabelledImages:
            pixels: NDArray[np.uint8] = rng.integers(0, 256, (count, self.image_size, self.image_size, 3), np.uint8)
            return LabelledImages(ArraySource(pixels), [index % self.classes for index in range(count)])

        names = [f"site_{index:04d}" for index in range(self.number)]
        return Sites(
            [f"class {index}" for index in range(self.classes)],
            {name: {"train": images(self.images["train"]), "test": images(self.images["test"])} for name in names},
        )


class TimedRounds(RoundHooks):
    """Measures each round from its first request until its state is written."""

    def __init__(self, trainer: Trainer) -> None:
        super().__init__(trainer, LightningModule(), [], RunLoggers([]))
        self.seconds: list[float] = []
        self.processor_seconds: list[float] = []
        self._started = (0.0, 0.0)

    def before_round(self, round_number: int) -> None:
        self._started = time.perf_counter(), time.process_time()

    def log(self, round_number: int, metrics: Any) -> None:
        if round_number > 0:
            self.seconds.append(time.perf_counter() - self._started[0])
            self.processor_seconds.append(time.process_time() - self._started[1])

    def after_evaluation(self, round_number: int, metrics: Any, shared: Any, is_whole: bool = True) -> bool:
        return False


# -- one process -------------------------------------------------------------------------------------------------------


def one_run(
    sites: int, participants: int, rounds: int, train_images: int = TRAIN_IMAGES, test_images: int = TEST_IMAGES
) -> dict[str, Any]:
    """Make one run; return its peak memory, the times of its rounds, and the size of its folder."""
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    encoder = FrozenCLIP("vit-nano", weights="random")
    built_bytes = peak_memory_bytes(CPU)
    started = time.perf_counter()
    data = RandomSites(sites, IMAGE_SIZE, train_images, test_images)
    coordinator = FederatedCoordinator(rounds=rounds, participation=participants / sites, evaluate_every=rounds)
    trainer = lean_trainer()
    template, method = FederatedClient(encoder, anchors="prototypes"), PFedST()
    with tempfile.TemporaryDirectory() as folder:
        run = RunFolder.create(Path(folder), "run", "run")
        client = make_client(template, data, method, 0, LocalTrainer(trainer), run.path / SITES)
        hooks = TimedRounds(trainer)
        transport = make_transport(coordinator, client)
        summary = coordinator.fit(transport, method, start_maker(client.model), hooks, run, 0)
        folder_bytes = sum(file.stat().st_size for file in run.path.rglob("*") if file.is_file())
    return {
        "sites": sites,
        "participants": participants,
        "peak_bytes": peak_memory_bytes(CPU),
        "encoder_built_bytes": built_bytes,
        "image_bytes": data.image_bytes,
        "folder_bytes": folder_bytes,
        "seconds": hooks.seconds,
        "processor_seconds": hooks.processor_seconds,
        "run_seconds": time.perf_counter() - started,
        "encoder": encoder.label,
        "rounds": summary["protocol"]["round"],
        "evaluated_sites": len(summary["personal"]["clients"]),
    }


# -- all of them -------------------------------------------------------------------------------------------------------


def run(counts: list[int], rounds: int) -> None:
    """Run one process for each row."""
    participants = {sites: max(1, round(PARTICIPATION * sites)) for sites in counts}
    pairs = [(sites, participants[sites]) for sites in counts]
    pairs.append((min(counts), participants[max(counts)]))
    rows = []
    for sites, drawn in dict.fromkeys(pairs):
        rows.append(row_of_a_process(__file__, sites, drawn, rounds))
        print(f"measured: {sites} sites, {drawn} a round", flush=True)
    save(RESULT, {"rows": rows})


def table() -> None:
    """Print everything from the result's file."""
    rows = json.loads(RESULT.read_text())["rows"]
    print("| sites | participants a round | peak, MiB | images, MiB | a round, ms | of the processor | folder, MiB |")
    print("|---|---|---|---|---|---|---|")
    for row in rows:
        print(
            f"| {row['sites']:,} | {row['participants']} | {row['peak_bytes'] / MEBI:,.1f} | "
            f"{row['image_bytes'] / MEBI:.1f} | {1000 * round_seconds(row, 'seconds'):.0f} | "
            f"{1000 * round_seconds(row, 'processor_seconds'):.0f} | {row['folder_bytes'] / MEBI:,.1f} |"
        )
    first = rows[0]
    print(
        f"\n{first['encoder']}; RANDOM images, {TRAIN_IMAGES} for training and {TEST_IMAGES} for test at each site, "
        f"{CLASSES} classes; pFedST, {first['rounds']} rounds of one step, evaluated before the first and after the "
        f"last, 1 thread, transport in_process; each run is a process of its own. Peak: the highest resident memory of "
        f"the process, of which {first['encoder_built_bytes'] / MEBI:,.0f} MiB are the libraries and the encoder; the "
        f"images lie in this memory and are listed apart. A round: median over rounds 2 to {first['rounds'] - 1}, "
        "from the first request until its state is written, without evaluation."
    )
    many = max(rows, key=lambda row: row["sites"])
    more = [(many[key] - first[key]) / (many["sites"] - first["sites"]) / 1024 for key in ("peak_bytes", "image_bytes")]
    print(
        f"From {first['sites']:,} to {many['sites']:,} sites the peak grows by {more[0]:.0f} KiB a site: its images "
        f"({more[1]:.0f} KiB), and its results in evaluations, `rounds.jsonl` and `summary.json`."
    )
    print(f"\n{targets(rows)}")


def round_seconds(row: dict[str, Any], clock: str) -> float:
    """Return the median time of the rounds between the first and the last."""
    return statistics.median(row[clock][1:-1])


def targets(rows: list[dict[str, Any]]) -> str:
    """Return the targets, and whether each is met."""
    few, many = rows[0], max(rows, key=lambda row: row["sites"])
    memory = many["peak_bytes"] / few["peak_bytes"]
    alike = next(row for row in rows if row["sites"] < many["sites"] and row["participants"] == many["participants"])
    slower = round_seconds(many, "processor_seconds") / round_seconds(alike, "processor_seconds")
    lines = [
        (
            f"the peak memory of {many['sites']:,} sites is within {LARGEST_MEMORY_RATIO:g} times that of "
            f"{few['sites']:,}",
            memory,
            memory <= LARGEST_MEMORY_RATIO,
        ),
        (
            f"a round of {many['participants']} participants takes as long with {many['sites']:,} sites as with "
            f"{alike['sites']:,} (processor time, within {LARGEST_TIME_RATIO:g} times)",
            slower,
            slower <= LARGEST_TIME_RATIO,
        ),
    ]
    cells = [f"| {what} | {value:.3f}x | {'met' if met else 'MISSED'} |" for what, value, met in lines]
    return "\n".join(["| target | measured | |", "|---|---|---|", *cells])


def main() -> None:
    parser, commands, runs = run_and_table(__doc__)
    runs.add_argument("--sites", type=int, nargs="+", default=[100, 1000])
    runs.add_argument("--rounds", type=int, default=12)
    one = one_command(commands)
    one.add_argument("sites", type=int)
    one.add_argument("participants", type=int)
    one.add_argument("rounds", type=int)
    given = parser.parse_args()
    if given.command == "one":
        print(json.dumps(one_run(given.sites, given.participants, given.rounds)))
        return
    if given.command == "run":
        run(given.sites, given.rounds)
    table()


if __name__ == "__main__":
    main()
