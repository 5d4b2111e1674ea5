"""ZeroShot, Local, FedAvg and PFedST on the four FedISIC centres from HAM10000: one seed, one budget.

    python benchmarks/four_sites.py --root FOLDER --weights IMAGE_TOWER.safetensors [--rounds 5]

Writes benchmarks/results/four_sites.json. Runs `pfedst fit --config configs/fed_isic_ham4.yaml` once a method in one
process; the frozen encoder's taps are kept in memory, so that no image is encoded twice (about 11 GB at 112 px).
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from pfedst.cli import main as pfedst
from pfedst.encoders import FrozenCLIP, Need, Taps
from pfedst.version import __version__

ROOT = Path(__file__).resolve().parents[1]
METHODS = ("ZeroShot", "Local", "FedAvg", "PFedST")


def remember_taps() -> None:
    """Make the encoder answer from memory for images that it has seen: it is frozen, and nothing is augmented."""
    known: dict[bytes, tuple[Tensor, ...]] = {}
    compute = FrozenCLIP.extract

    def extract(self: FrozenCLIP, images: Tensor, need: Need) -> Taps:
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", default=list(METHODS))
    parser.add_argument("--options", nargs=argparse.REMAINDER, default=[], help="further options of pfedst fit")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks/results/four_sites.json")
    given = parser.parse_args()
    remember_taps()
    rows = {}
    with tempfile.TemporaryDirectory() as runs:
        for method in given.only:
            arguments = ["fit", "--config", str(ROOT / "configs/fed_isic_ham4.yaml"), f"--method={method}"]
            arguments += [f"--data.root={given.root}", f"--model.encoder.weights={given.weights}"]
            arguments += [
                f"--coordinator.rounds={given.rounds}",
                f"--coordinator.evaluate_every={given.rounds}",
            ]
            arguments += [
                f"--seed_everything={given.seed}",
                f"--runs_dir={runs}",
                f"--name={method}",
                *given.options,
            ]
            if pfedst(arguments):
                raise SystemExit(f"{method} failed")
            rows[method] = json.loads((Path(runs) / method / "summary.json").read_text())
            environment = {
                "python": platform.python_version(),
                "torch": torch.__version__,
                "pfedst": __version__,
            }
            given.output.parent.mkdir(parents=True, exist_ok=True)
            given.output.write_text(json.dumps({"environment": environment, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
