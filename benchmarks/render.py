"""Renders benchmarks/README.md from benchmarks/results/*.json: `python benchmarks/render.py`."""

from __future__ import annotations

import contextlib
import importlib
import io
import sys
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).resolve().parent
HEAD = """\
# Benchmarks

Written by `python benchmarks/render.py` from the files in `results/`. Each file holds the environment of its
measurement. `make bench` repeats the measurements that need no images. The studies on the four FedISIC centres need
their images and the weights of an image tower; the docstring of each script gives its command. Times were taken on
shared CPU cores: compare ratios within a table, which come from one run, and not seconds across tables. The former
defaults are cross-entropy and weights by the number of images; tables that were measured with them say so.
"""
SECTIONS: list[tuple[str, str, tuple[str, ...]]] = [
    ("Methods on the four FedISIC centres", "comparison", ("fed_isic_ham4",)),
    ("Claims named in advance, tuned, over folds of the same centres", "comparison", ("fed_isic_ham4_folds",)),
    ("Variants of pFedST on the same centres, with the former defaults", "comparison", ("pfedst_ham4",)),
    ("The demo's comparison", "comparison", ("demo",)),
    ("One training step", "step", ()),
    ("A round against a bare loop", "round", ()),
    ("A round against a simulator", "simulator", ()),
    ("An epoch on real images", "epoch", ()),
    ("The tap cache", "cache", ()),
    ("Images from the store and from files", "images", ()),
    ("A small CNN on pixels against a bare loop", "pixels", ()),
    ("One GPU", "gpu", ()),
    ("Averaged patches on real images", "four_sites", ("token_grid",)),
    ("Balanced accuracy by time on real images", "four_sites", ("time",)),
    ("Recipe: which defaults, on folds within the training part", "recipe", ("inner",)),
    ("Recipe: the shipped defaults against no training", "recipe", ("defaults",)),
    ("A temperature from few validation images", "calibration", ()),
    ("A hospital that was not there", "joining", ()),
    ("Claims over folds without and with a difference", "false_claims", ()),
    ("Predictions against the bare tower", "predict", ()),
    ("The data audit", "audit", ()),
    ("Damaged and malicious files", "fuzz", ()),
    ("Memory as clients grow", "clients", ()),
    ("Many sites, few of them in a round", "sites", ()),
    ("Seconds and memory of a participating client", "scale", ()),
    ("Bytes on the wire", "wire", ()),
    ("Runs that are killed", "faults", ("kills",)),
    ("Saved state that is damaged", "faults", ("mutations",)),
    ("Clients that fail", "faults", ("drops",)),
    ("A hostile site", "faults", ("attackers",)),
    ("Memory over a thousand rounds", "faults", ("memory",)),
    ("Every method on the four FedISIC centres, one seed, LoRA in the tower too", "four_sites", ("methods",)),
]


def section(title: str, script: str, arguments: tuple[str, ...]) -> str:
    """Return the table of one script, under its title and the command that measures it."""
    table: Callable[..., None] = importlib.import_module(script).table
    with contextlib.redirect_stdout(io.StringIO()) as text:
        table(*arguments)
    command = " ".join(["python", f"benchmarks/{script}.py", "run", *arguments])
    return f"## {title}\n\n`{command}`\n\n{text.getvalue().strip()}\n"


def render() -> str:
    """Return the whole page."""
    sys.path.insert(0, str(HERE))
    try:
        return "\n".join([HEAD, *(section(*of) for of in SECTIONS)])
    finally:
        sys.path.remove(str(HERE))


if __name__ == "__main__":
    (HERE / "README.md").write_text(render())
    print(HERE / "README.md")
