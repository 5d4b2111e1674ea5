"""Comparisons of methods: `python benchmarks/comparison.py run fed_isic_ham4 [--jobs 2] [OPTIONS OF pfedst compare]`.

Runs `pfedst compare --config configs/compare/NAME.yaml` (the same command continues it) and keeps its report.json in
benchmarks/results/comparison/. `demo` needs no files. The others need images (--data.root) and weights
(--model.encoder.weights); their configurations name them.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from environment import environment

from pfedst.cli import main as pfedst
from pfedst.reporting.formats import markdown_table
from pfedst.reporting.report_table import Cell, ReportTable

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks/results/comparison"
README = (
    ("results", "mean"),
    ("results", "worst site"),
    ("results", "generic mean"),
    ("recall", "mean of classes"),
    ("metrics", "AUROC, mean"),
    ("metrics", "accuracy, mean"),
    ("cost", "bytes in all"),
)
"""Columns of the table in docs/results.md."""


def run(name: str, options: list[str]) -> None:
    runs = ROOT / "runs"
    code = pfedst(
        ["compare", "--config", str(ROOT / f"configs/compare/{name}.yaml"), "--runs_dir", str(runs), *options]
    )
    if code:
        raise SystemExit(f"pfedst compare ended with exit code {code}; the same command continues")
    keep(name, runs / f"compare-{name}" / "report")


def keep(name: str, report: Path) -> None:
    """Copy a report into the results."""
    content = {"environment": environment()} | json.loads((report / "report.json").read_text())
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n")


def table(name: str) -> None:
    """Print the tables of a report as Markdown, with protocol and captions."""
    report = kept(name)
    for line in report["notes"]:
        print(f"**{line}**\n")
    for line in report["protocol"]:
        print(f"- {line}")
    for part in tables(report):
        print(f"\n### {part.title}\n\n{markdown_table(part)}\n\n{part.caption}")


def readme_table(name: str) -> str:
    """Return the table of docs/results.md."""
    found = {part.name: part for part in tables(kept(name))}
    headings = ("method", *(heading.removesuffix(", mean") for _, heading in README))
    columns = [(found[part].rows, found[part].headings.index(heading)) for part, heading in README]
    rows = [
        (first, *(of_table[number][column] for of_table, column in columns))
        for number, (first, *_) in enumerate(found["results"].rows)
    ]
    return markdown_table(ReportTable("readme", "", "", headings, tuple(rows)))


def kept(name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())
    return content


def tables(report: dict[str, Any]) -> list[ReportTable]:
    """Return the tables of a report that was saved as JSON."""
    return [
        ReportTable(**part | {"rows": tuple(tuple(Cell(**cell) for cell in row) for row in part["rows"])})
        for part in report["tables"]
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for command in (commands.add_parser("run"), commands.add_parser("table")):
        command.add_argument("name", choices=sorted(file.stem for file in (ROOT / "configs/compare").glob("*.yaml")))
    given, options = parser.parse_known_args()
    if given.command == "table":
        table(given.name)
    else:
        run(given.name, options)


if __name__ == "__main__":
    main()
