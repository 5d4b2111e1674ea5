"""Studies on the four FedISIC centres from HAM10000: real images, a pretrained image tower, a CPU.

    python benchmarks/four_sites.py run methods --root FOLDER --weights IMAGE_TOWER.safetensors [--only FedLoRA ...]
    python benchmarks/four_sites.py table methods

* `methods`: every method that needs no text tower, one seed, one budget (64 px);
* `token_grid`: pFedST with all patches of a 112 px image (7x7), or averages over 4x4 and 2x2, over seeds;
* `time`: balanced accuracy on validation by seconds of local fits, with the tap cache and without (64 px).

`run` writes one file a row and seed into benchmarks/results/four_sites/STUDY/. Existing files are kept, so that several
processes may share the work. Each run is `pfedst fit --config configs/fed_isic_ham4.yaml` with the options of the study
and the row.
"""

from __future__ import annotations

import json
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from command_line import run_study
from environment import environment

from pfedst.cli import main as pfedst

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks/results/four_sites"
COMMON = [
    "--trainer.accelerator=cpu",
    "--model.encoder.image_size=64",
    "--model.encoder.token_grid=null",
    "--trainer.limit_train_batches=null",
    "--coordinator.optimizer_state=reset",
    "--model.loss=CrossEntropy",
    "--model.optimizer=AdamW",
    "--model.optimizer.lr=0.001",
]
"""The recipe with which these studies were made: defaults were others then (`recipe.py` has today's)."""
COUNT_ALIKE = ("SCAFFOLD", "FedDyn", "FedCLIP", "FedDPA")
"""Methods whose clients counted alike then, as in their papers; those of the others by their images."""
METHODS = """
Prototypes Local Pooled FedAvg FedProx FedBN SCAFFOLD FedDyn FedPer FedRep Ditto APFL FedCLIP FACMIC FedLoRA FFALoRA
FedSALoRA FedDPA PFedST
"""
ROWS = {name: [f"--method={name}"] for name in METHODS.split()}
ROWS["PFedST alternate"] = ["--method=PFedST", "--method.schedule=alternate", "--method.lora_learning_rate_scale=3"]
ROWS["PFedMe"] = ["--method=PFedMe", "--model.optimizer=SGD", "--model.optimizer.lr=0.005"]


@dataclass(frozen=True)
class Study:
    """Common options, and the options of each row."""

    common: Sequence[str]
    rows: Mapping[str, Sequence[str]]
    seeds: int
    table: Callable[[dict[str, list[dict[str, Any]]]], None]


def run(name: str, root: Path, weights: Path, only: Sequence[str]) -> None:
    study, folder = STUDIES[name], RESULTS / name
    folder.mkdir(parents=True, exist_ok=True)
    for seed in range(study.seeds):
        for row in only or study.rows:
            file = folder / f"{row} seed {seed}.json"
            if not file.exists():
                options = [*COMMON, *study.common, *study.rows[row], *weighting(row), f"--seed_everything={seed}"]
                file.write_text(json.dumps(one_run(options, root, weights), indent=2) + "\n")


def weighting(row: str) -> list[str]:
    """Return how clients count in a row."""
    return [] if row in COUNT_ALIKE else ["--method.weighting=samples"]


def one_run(options: list[str], root: Path, weights: Path) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as runs:
        arguments = ["fit", "--config", str(ROOT / "configs/fed_isic_ham4.yaml"), *options]
        arguments += [f"--data.root={root}", f"--model.encoder.weights={weights}"]
        if pfedst([*arguments, f"--runs_dir={runs}", "--name=run"]):
            raise SystemExit(f"{options} failed")
        summary = json.loads((Path(runs) / "run" / "summary.json").read_text())
        lines = (Path(runs) / "run" / "rounds.jsonl").read_text().splitlines()
    curve = balanced_accuracy_by_seconds([json.loads(line) for line in lines])
    return {"environment": environment(), "options": options, **summary, "curve": curve}


def balanced_accuracy_by_seconds(records: list[dict[str, Any]]) -> list[dict[str, float]]:
    """Return, for each evaluated round, the seconds of local fits so far and the mean over clients."""
    curve, seconds = [], 0.0
    for number in range(records[-1]["round"] + 1):
        of_round = [record for record in records if record["round"] == number]
        seconds += sum(record.get("fit_seconds", 0.0) for record in of_round)
        received = [record["received"] for record in of_round if "received" in record]
        if received:
            means = {
                split: statistics.fmean(client[split]["personal"]["balanced_accuracy"] for client in received)
                for split in ("validation", "test")
            }
            curve.append({"round": number, "fit_seconds": seconds, **means})
    return curve


# -- tables ------------------------------------------------------------------------------------------------------------


def methods_table(rows: dict[str, list[dict[str, Any]]]) -> None:
    """Print the balanced accuracy of the personal model at each site."""
    sites = list(next(iter(rows.values()))[0]["personal"]["clients"])
    print(f"| method | {' | '.join(sites)} | mean | worst | std | generic mean | AUROC | trained | sent | up a round |")
    print("|---|" + "---|" * (len(sites) + 8))
    for name, (row, *_) in rows.items():
        clients = [row["personal"]["clients"][site]["balanced_accuracy"] for site in sites]
        cost = row["cost"]
        cells = [percent(value) for value in clients]
        cells += [percent(statistics.fmean(clients)), percent(min(clients)), percent(statistics.pstdev(clients))]
        cells += [percent(row["generic"]["mean"]["balanced_accuracy"]), percent(row["personal"]["mean"]["auroc"])]
        cells += [f"{cost['parameters_trained']:,}", f"{cost['parameters_sent']:,}"]
        cells += [f"{cost['upload_bytes_per_round'] / 2**20:.2f} MiB"]
        print(f"| {name} | {' | '.join(cells)} |")


def seeds_table(rows: dict[str, list[dict[str, Any]]]) -> None:
    """Print mean over seeds ± deviation of the personal and the generic model; epoch.py measures the time."""
    print(
        "| row | balanced accuracy, personal | generic | worst client | AUROC | validation | seconds of fits | seeds |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for name, of_seeds in rows.items():
        cells = [
            over_seeds([row["personal"]["mean"]["balanced_accuracy"] for row in of_seeds]),
            over_seeds([row["generic"]["mean"]["balanced_accuracy"] for row in of_seeds]),
            over_seeds([row["personal"]["worst"]["balanced_accuracy"] for row in of_seeds]),
            over_seeds([row["personal"]["mean"]["auroc"] for row in of_seeds]),
            over_seeds([row["curve"][-1]["validation"] for row in of_seeds]),
        ]
        print(f"| {name} | {' | '.join(cells)} | {len(of_seeds)} |")


def time_table(rows: dict[str, list[dict[str, Any]]]) -> None:
    """Print the seconds of local fits until the mean over clients on validation reaches a balanced accuracy."""
    targets = (0.25, 0.3, 0.35, 0.4)
    print(
        f"| row | {' | '.join(f'{percent(target)} %' for target in targets)} | reached at the end | seconds a round |"
    )
    print("|---|" + "---|" * (len(targets) + 2))
    for name, (row, *_) in rows.items():
        cells = []
        for target in targets:
            reached = [point["fit_seconds"] for point in row["curve"] if point["validation"] >= target]
            cells.append(f"{reached[0]:.0f} s" if reached else "-")
        last = row["curve"][-1]
        cells += [percent(last["validation"]), f"{last['fit_seconds'] / max(1, last['round']):.0f} s"]
        print(f"| {name} | {' | '.join(cells)} |")


def table(name: str) -> None:
    study = STUDIES[name]
    rows: dict[str, list[dict[str, Any]]] = {}
    for row in study.rows:
        files = [RESULTS / name / f"{row} seed {seed}.json" for seed in range(study.seeds)]
        if found := [json.loads(file.read_text()) for file in files if file.exists()]:
            rows[row] = found
    if not rows:
        raise SystemExit(f"{RESULTS / name} holds no result: python benchmarks/four_sites.py run {name} first")
    study.table(rows)
    protocol = max((of_seeds[0]["protocol"] for of_seeds in rows.values()), key=lambda protocol: protocol["rounds"])
    few = "one seed: no claim" if study.seeds == 1 else f"{study.seeds} seeds, std over them"
    print(f"\n{protocol['data']}; anchors {protocol['anchors']}; {protocol['encoder']}; {few}")
    print(
        f"{protocol['rounds']} rounds of {protocol['local_epochs']} local epochs; test split unless said, "
        f"{protocol['when']}"
    )


def over_seeds(values: list[float]) -> str:
    return f"{percent(statistics.fmean(values))} ± {percent(statistics.pstdev(values))}"


def percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


GRIDS = [
    "--method=PFedST",
    "--model.encoder.image_size=112",
    "--coordinator.rounds=5",
    "--coordinator.evaluate_every=5",
]
BUDGET = ["--coordinator.rounds=3", "--coordinator.evaluate_every=3", "--trainer.max_epochs=2"]
STUDIES = {
    "methods": Study(BUDGET, ROWS, 1, methods_table),
    "token_grid": Study(
        GRIDS,
        {
            "7x7, all patches": [],
            "4x4": ["--model.encoder.token_grid=4"],
            "2x2": ["--model.encoder.token_grid=2"],
            "7x7, all patches, int8": ["--data.cache_dtype=int8"],
        },
        3,
        seeds_table,
    ),
    "time": Study(
        ["--coordinator.rounds=6", "--coordinator.evaluate_every=1"],
        {
            "PFedST, taps cached": ["--method=PFedST"],
            "PFedST, tower recomputed": ["--method=PFedST", "--data.cache=none", "--coordinator.rounds=2"],
            "FedAvg on the side network, taps cached": ["--method=FedAvg"],
            "FedLoRA, through the tower": ["--method=FedLoRA", "--coordinator.rounds=2"],
            "FedCLIP, pooled cached": ["--method=FedCLIP"],
        },
        1,
        time_table,
    ),
}


if __name__ == "__main__":
    run_study(__doc__, STUDIES, run, table)
