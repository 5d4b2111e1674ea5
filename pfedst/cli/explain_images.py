"""`pfedst explain`: occlusion maps of images, and a summary that says whether they beat the centre.

What needs torch is imported after the options are parsed.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from pfedst.errors import ConfigurationError


def run_explain(arguments: Sequence[str]) -> int:
    """Write the maps of one model, or of a site's model and the generic one. Return the exit code."""
    given = _parser().parse_args(arguments)
    from pfedst.inference.explain import explain, summarise
    from pfedst.inference.explain_report import verdict, write_explanations
    from pfedst.inference.occlusion import Grid
    from pfedst.inference.run import load

    if given.out.exists() and (not given.out.is_dir() or any(given.out.iterdir())):
        raise ConfigurationError(f"--out {given.out}: holds files already; name a new folder")
    run = load(given.model)
    place = (given.round, given.encoder_weights, given.device)
    models = [run.model(None, *place)] if given.generic else run.with_generic(given.site, *place)
    grid = Grid.of(models[0].encoder.preprocessing.image_size, given.window, given.stride)
    console = Console(stderr=True)
    explained = explain(models, given.images, given.class_name, grid.window, grid.stride, given.prior, console)
    write_explanations(given.out, models, explained, grid)
    for summary in summarise(explained):
        print(verdict(summary))
    print(f"{given.out / 'README.md'}: {len(explained)} figures and their numbers")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pfedst explain",
        allow_abbrev=False,
        description="Show by how much the probability of a class falls where a part of an image is blurred. With "
        "--site the personal and the generic model are shown beside each other.",
        epilog="Needs pip install 'pfedst[explain]'. A map does not say why; docs/explain.md says what it is worth.",
    )
    parser.add_argument("model", type=Path, help="folder of a run")
    parser.add_argument("images", type=Path, nargs="+", help="image files, or folders with images")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--site", help="explain the model of this site")
    which.add_argument("--generic", action="store_true", help="explain the generic model")
    parser.add_argument("--out", type=Path, required=True, help="folder for figures, README.md and explain.json")
    parser.add_argument(
        "--class", dest="class_name", metavar="CLASS", help="class to explain; default: the class that is predicted"
    )
    parser.add_argument(
        "--window", type=int, help="side of the blurred square in pixels of the input; default: 2 strides"
    )
    parser.add_argument(
        "--stride",
        type=int,
        help="its step in pixels of the input, a divisor of the side; default: about a seventh of it",
    )
    parser.add_argument("--prior", help="training, balanced, site, or a file; default: the prior of the run")
    parser.add_argument("--round", default="last", help="last, best, or a number; default: %(default)s")
    parser.add_argument("--encoder-weights", help="file or tag of the encoder's weights; default: those of the run")
    parser.add_argument("--device", default="cpu", help="default: %(default)s")
    return parser
