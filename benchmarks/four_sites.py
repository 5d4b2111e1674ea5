"""Every method that needs no text tower on the four FedISIC centres from HAM10000: one seed, one budget.

    python benchmarks/four_sites.py run --root FOLDER --weights IMAGE_TOWER.safetensors [--only FedLoRA ...]
    python benchmarks/four_sites.py table

`run` writes one file a row into benchmarks/results/four_sites/; rows that are there are kept, so that several
processes may share the work. Each row is `pfedst fit --config configs/fed_isic_ham4.yaml` with the options below. The
frozen encoder's taps are kept in memory, so that no image is encoded twice for a row (4 GB at 64 px).
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from pfedst.cli import main as pfedst
from pfedst.encoders import FrozenCLIP, Need, Taps
from pfedst.version import __version__

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks/results/four_sites"
BUDGET = ["--coordinator.rounds=3", "--coordinator.evaluate_every=3", "--trainer.max_epochs=2"]
BUDGET += ["--model.encoder.image_size=64", "--trainer.accelerator=cpu"]
METHODS = """
ZeroShot Local Pooled FedAvg FedProx FedBN SCAFFOLD FedDyn FedPer FedRep Ditto APFL FedCLIP FACMIC FedLoRA FFALoRA
FedSALoRA FedDPA PFedST
"""
ROWS = {name: [f"--method={name}"] for name in METHODS.split()}
ROWS["PFedST alternate"] = ["--method=PFedST", "--method.schedule=alternate", "--method.lora_learning_rate_scale=3"]
ROWS["PFedMe"] = ["--method=PFedMe", "--model.optimizer=SGD", "--model.optimizer.lr=0.005"]


def remember_taps() -> None:
    """Make the encoder answer from memory for images that it has seen: it is frozen, and nothing is augmented."""
    known: dict[bytes, tuple[Tensor, ...]] = {}
    compute = FrozenCLIP.extract

    def extract(self: FrozenCLIP, images: Tensor, need: Need) -> Taps:
        if need == "images":
            return compute(self, images, need)
        keys = [image.numpy().tobytes()[::97] for image in images]
        new = [index for index, key in enumerate(keys) if key not in known]
        if new:
            taps = compute(self, images[new], "taps").tensors
            for position, index in enumerate(new):
                known[keys[index]] = tuple(tap[position].clone() for tap in taps)
        taps = tuple(torch.stack(parts) for parts in zip(*(known[key] for key in keys), strict=True))
        if need == "taps":
            return Taps(need, taps)
        with torch.no_grad():
            return Taps("pooled", (self.finish(taps[-1]),))

    FrozenCLIP.extract = extract  # type: ignore[method-assign]


def run(root: Path, weights: Path, seed: int, only: list[str]) -> None:
    remember_taps()
    RESULTS.mkdir(parents=True, exist_ok=True)
    for name in only:
        file = RESULTS / f"{name}.json"
        if file.exists():
            continue
        with tempfile.TemporaryDirectory() as runs:
            arguments = ["fit", "--config", str(ROOT / "configs/fed_isic_ham4.yaml"), *ROWS[name], *BUDGET]
            arguments += [f"--data.root={root}", f"--model.encoder.weights={weights}", f"--seed_everything={seed}"]
            if pfedst([*arguments, f"--runs_dir={runs}", "--name=run"]):
                raise SystemExit(f"{name} failed")
            summary = json.loads((Path(runs) / "run" / "summary.json").read_text())
        environment = {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "pfedst": __version__,
            "threads": torch.get_num_threads(),
        }
        options = [*ROWS[name], *BUDGET, f"--seed_everything={seed}"]
        file.write_text(json.dumps({"environment": environment, "options": options, **summary}, indent=2) + "\n")


def table() -> None:
    """Balanced accuracy a site of the personal model, in Markdown, with the protocol."""
    rows = {
        name: json.loads((RESULTS / f"{name}.json").read_text()) for name in ROWS if (RESULTS / f"{name}.json").exists()
    }
    first = next(iter(rows.values()))
    sites = list(first["personal"]["clients"])
    print(f"| method | {' | '.join(sites)} | mean | worst | std | generic mean | AUROC | trained | sent | up a round |")
    print("|---|" + "---|" * (len(sites) + 8))
    for name, row in rows.items():
        clients = [row["personal"]["clients"][site]["balanced_accuracy"] for site in sites]
        cost = row["cost"]
        cells = [percent(value) for value in clients]
        cells += [percent(statistics.fmean(clients)), percent(min(clients)), percent(statistics.pstdev(clients))]
        cells += [percent(row["generic"]["mean"]["balanced_accuracy"]), percent(row["personal"]["mean"]["auroc"])]
        cells += [f"{cost['parameters_trained']:,}", f"{cost['parameters_sent']:,}"]
        cells += [f"{cost['upload_bytes_per_round'] / 2**20:.2f} MiB"]
        print(f"| {name} | {' | '.join(cells)} |")
    protocol = first["protocol"]
    print(
        f"\n{protocol['encoder']}; {protocol['data']}; anchors {protocol['anchors']}; seed {protocol['seed']} "
        f"(one seed: no claim)"
    )
    print("; ".join(option.removeprefix("--") for option in BUDGET) + f"; test split, {rows[name]['protocol']['when']}")


def percent(value: float) -> str:
    return f"{100 * value:.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    runs = commands.add_parser("run")
    runs.add_argument("--root", type=Path, required=True)
    runs.add_argument("--weights", type=Path, required=True)
    runs.add_argument("--seed", type=int, default=0)
    runs.add_argument("--only", nargs="*", default=list(ROWS), choices=list(ROWS))
    commands.add_parser("table")
    given = parser.parse_args()
    if given.command == "table":
        table()
    else:
        run(given.root, given.weights, given.seed, given.only)


if __name__ == "__main__":
    main()
