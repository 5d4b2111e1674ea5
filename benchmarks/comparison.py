"""Comparisons of methods: `python benchmarks/comparison.py run fed_isic_ham4 [--jobs 2] [OPTIONS OF pfedst compare]`.

Runs `pfedst compare --config configs/compare/NAME.yaml` and keeps its report.json in benchmarks/results/comparison/.
`demo` needs no files. The others need images (--data.root) and weights (--model.encoder.weights); their configurations
name them.

`figure NAME FILE.png` draws the table of sites from the kept report.

Long comparisons go on after they were ended, also on another machine: `keep NAME` copies the summary of every finished
run into benchmarks/results/comparison/runs/NAME/, and `run` starts from these.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

from environment import environment

from pfedst.cli import main as pfedst
from pfedst.reporting.claims import OWN_PRIOR
from pfedst.reporting.formats import markdown_table
from pfedst.reporting.report_table import Cell, ReportTable

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks/results/comparison"
README = (
    ("results", "mean", "mean"),
    ("results", "worst site", "worst site"),
    ("results", "generic mean", "generic mean"),
    ("metrics", "AUROC, mean", "AUROC"),
    ("priors", "accuracy", "accuracy"),
    ("cost", "bytes in all", "bytes in all"),
)
"""Table of the report, its column, and its name in docs/results.md. Accuracy is at the prior of each site."""


def run(name: str, options: list[str]) -> None:
    restore_runs(name)
    code = pfedst(
        ["compare", "--config", str(ROOT / f"configs/compare/{name}.yaml"), "--runs_dir", str(ROOT / "runs"), *options]
    )
    keep_runs(name)
    if code:
        raise SystemExit(f"pfedst compare ended with exit code {code}; the same command continues")
    keep_report(name, folder_of(name) / "report")


def folder_of(name: str) -> Path:
    return ROOT / "runs" / f"compare-{name}"


def keep_report(name: str, report: Path) -> None:
    """Copy a report into the results."""
    content = {"environment": environment()} | json.loads((report / "report.json").read_text())
    shown = f"command: pfedst compare --config {name};"  # without the paths of a machine
    content["protocol"] = [re.sub(r"command: [^;]*;", shown, line) for line in content["protocol"]]
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n")


def keep_runs(name: str) -> None:
    """Copy the summaries of finished runs into the results; those of a demo take a minute to make again."""
    if name == "demo":
        return
    for made in sorted(folder_of(name).glob("*/*/summary.json")):  # */: `runs` or `tuning`
        kept = RESULTS / "runs" / name / made.parent.parent.name / f"{made.parent.name}.json"
        if not kept.exists():
            summary = json.loads(made.read_text())
            summary["environment"]["command"] = f"pfedst compare --config {name}"  # without the paths of a machine
            kept.parent.mkdir(parents=True, exist_ok=True)
            kept.write_text(json.dumps(summary) + "\n")


def restore_runs(name: str) -> None:
    """Make a finished run of every summary that was kept. It has no records of rounds: curves are without its seed."""
    for kept in sorted((RESULTS / "runs" / name).glob("*/*.json")):
        made = folder_of(name) / kept.parent.name / kept.stem / "summary.json"
        if not made.exists():
            made.parent.mkdir(parents=True, exist_ok=True)
            (made.parent / "rounds.jsonl").touch()
            made.write_text(kept.read_text())


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
    columns = []
    for part, heading, _ in README:
        at = found[part].headings.index(heading)
        columns.append({row[0].text: row[at] for row in found[part].rows})
    # a global model has the prior of each site in a row of its own
    rows = [
        (first, *(column.get(first.text + OWN_PRIOR, column[first.text]) for column in columns))
        for first, *_ in found["results"].rows
    ]
    return markdown_table(ReportTable("readme", "", "", ("method", *(title for *_, title in README)), tuple(rows)))


def figure(name: str, file: Path) -> None:
    """Draw each row at each site as the mean over seeds with its standard deviation, in the style of a report."""
    from matplotlib.backend_bases import FigureCanvasBase
    from matplotlib.figure import Figure

    from pfedst.reporting.figures.saving import PNG
    from pfedst.reporting.figures.style import GUIDE, SMALL, WIDTH, figure_style, panel_title, styles_of

    table = next(part for part in tables(kept(name)) if part.name == "results")
    labels = [row[0].text for row in table.rows]
    styles = styles_of(labels, "PFedST")
    last = table.headings.index("mean")
    with figure_style():
        drawn = Figure(figsize=(WIDTH, 0.8 + 0.165 * len(labels)), layout="constrained")
        panels = drawn.subplots(1, last, sharey=True, sharex=True)
        for column, axes in enumerate(panels, 1):
            panel_title(axes, "mean over sites" if column == last else table.headings[column], column == last)
            reference = 100 * (table.rows[labels.index("PFedST")][column].value or 0)
            axes.axvline(reference, color=GUIDE, linewidth=0.7, linestyle=(0, (3, 2)), zorder=1)
            for y, (label, row) in enumerate(zip(labels, table.rows, strict=True)):
                mean, spread = 100 * (row[column].value or 0), 100 * (row[column].spread or 0)
                axes.hlines([y], mean - spread, mean + spread, color=styles[label].color, linewidth=1.2, zorder=2)
                axes.plot([mean], [y], zorder=styles[label].zorder, **styles[label].mark)
                if not y % 2:
                    axes.axhspan(y - 0.5, y + 0.5, color="#F5F5F5", zorder=0, linewidth=0)
            axes.set_ylim(len(labels) - 0.4, -0.6)
            axes.grid(axis="y", visible=False)
            axes.tick_params(axis="y", length=0)
            axes.spines["left"].set_visible(False)
        panels[0].set_yticks(range(len(labels)), labels)
        for tick, label in zip(panels[0].get_yticklabels(), labels, strict=True):
            tick.set_fontweight(styles[label].weight)
        drawn.supxlabel("balanced accuracy on test, %: mean over seeds, line: ± standard deviation; dashed: PFedST",
                        fontsize=SMALL)  # fmt: skip
        FigureCanvasBase(drawn).print_figure(file, format="png", **PNG)


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
    for command in map(commands.add_parser, ("run", "keep", "table")):
        command.add_argument("name", choices=sorted(file.stem for file in (ROOT / "configs/compare").glob("*.yaml")))
    drawing = commands.add_parser("figure")
    drawing.add_argument("name", choices=sorted(file.stem for file in RESULTS.glob("*.json")))
    drawing.add_argument("file", type=Path)
    given, options = parser.parse_known_args()
    if given.command == "run":
        run(given.name, options)
    elif given.command == "figure":
        figure(given.name, given.file)
    else:
        {"keep": keep_runs, "table": table}[given.command](given.name)


if __name__ == "__main__":
    main()
