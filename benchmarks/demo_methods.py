"""Every method on the demo's synthetic sites, over seeds: `python benchmarks/demo_methods.py [--seeds 3]`.

Prints a table and writes benchmarks/results/demo_methods.json. SYNTHETIC images and RANDOM encoder weights: this
shows what the software does, it says nothing about medicine.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import statistics
import tempfile
from pathlib import Path

from environment import environment
from rich.console import Console
from rich.table import Table

from pfedst.cli import main as pfedst

ROOT = Path(__file__).resolve().parents[1]
ROWS = {
    "ZeroShot": ["--method=ZeroShot"],
    "Local": ["--method=Local"],
    "FedAvg": ["--method=FedAvg"],
    "PFedST joint": ["--method=PFedST"],
    "PFedST alternate": ["--method=PFedST", "--method.schedule=alternate", "--trainer.max_epochs=2"],
    "Local, 2 epochs": ["--method=Local", "--trainer.max_epochs=2"],
    "FedAvg, 2 epochs": ["--method=FedAvg", "--trainer.max_epochs=2"],
}


def run(options: list[str], seed: int, folder: Path) -> dict:
    name = f"run-{len(list(folder.iterdir()))}"
    arguments = ["fit", "--config", str(ROOT / "configs/demo.yaml"), *options]
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        code = pfedst([*arguments, f"--seed_everything={seed}", f"--runs_dir={folder}", f"--name={name}"])
    if code:
        raise SystemExit(f"{options} ended with exit code {code}")
    return json.loads((folder / name / "summary.json").read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", nargs="*", default=list(ROWS), choices=list(ROWS))
    parser.add_argument("--options", nargs=argparse.REMAINDER, default=[], help="for pfedst fit, in every row")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks/results/demo_methods.json")
    given = parser.parse_args()
    console, rows = Console(), {}
    with tempfile.TemporaryDirectory() as folder:
        for name in given.only:
            rows[name] = [run(ROWS[name] + given.options, seed, Path(folder)) for seed in range(given.seeds)]
            console.print(f"{name}: done", highlight=False)
    table = Table(title=f"Balanced accuracy on test, %, mean over clients; mean over {given.seeds} seeds ± std")
    for heading in ("method", "personal", "worst client", "generic", "after local fit", "seconds a run"):
        table.add_column(heading, justify="left" if heading == "method" else "right")
    results = {name: summarise(summaries) for name, summaries in rows.items()}
    for name, row in results.items():
        cells = [spread(row[key]) for key in ("personal", "worst", "generic", "trained")]
        table.add_row(name, *cells, f"{statistics.fmean(row['seconds']):.0f}")
    console.print(table)
    protocol = list(rows.values())[-1][0]["protocol"]
    console.print(f"{protocol['encoder']}; {protocol['data']}; {protocol['rounds']} rounds; {protocol['when']}")
    given.output.parent.mkdir(parents=True, exist_ok=True)
    given.output.write_text(
        json.dumps({"protocol_of_last_row": protocol, "environment": environment(), "rows": results}, indent=2) + "\n"
    )


def summarise(summaries: list[dict]) -> dict[str, list[float | None]]:
    metric = "balanced_accuracy"
    return {
        "personal": [s["personal"]["mean"][metric] for s in summaries],
        "worst": [s["personal"]["worst"][metric] for s in summaries],
        "generic": [s["generic"]["mean"][metric] for s in summaries],
        "trained": [s["trained"] and s["trained"]["personal"]["mean"][metric] for s in summaries],
        "seconds": [s["cost"]["total_seconds"] for s in summaries],
    }


def spread(values: list[float | None]) -> str:
    found = [100 * value for value in values if value is not None]
    if not found:
        return "-"
    return f"{statistics.fmean(found):.1f} ± {statistics.stdev(found) if len(found) > 1 else 0:.1f}"


if __name__ == "__main__":
    main()
