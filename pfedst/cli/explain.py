"""`pfedst explain`: occlusion maps of images, and a summary that says whether they beat the centre.

What needs torch is imported after the options are parsed.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pfedst.cli.command_parser import CommandParser
from pfedst.cli.model_options import add_model_options, models_of
from pfedst.errors import ConfigurationError


def run_explain(arguments: Sequence[str]) -> int:
    """Write the maps of one model, or of a site's model beside the generic one. Return the exit code."""
    given = _parser().parse_args(arguments)
    if given.out.exists() and (not given.out.is_dir() or any(given.out.iterdir())):
        raise ConfigurationError(f"--out {given.out}: holds files already; name a new folder")
    models = models_of(given)
    from rich.console import Console

    from pfedst.inference.explain import explain, summarise
    from pfedst.inference.explain_report import verdict, write_explanations
    from pfedst.inference.occlusion import Grid

    grid = Grid.of(models[0].encoder.preprocessing.image_size, given.window, given.stride)
    console = Console(stderr=True)
    explained = explain(models, given.images, given.class_name, grid.window, grid.stride, given.prior, console)
    write_explanations(given.out, models, explained, grid)
    for summary in summarise(explained):
        print(verdict(summary))
    print(f"{given.out / 'README.md'}: {len(explained)} figures and their numbers")
    return 0


def _parser() -> CommandParser:
    parser = CommandParser(
        prog="pfedst explain",
        description="Show how much the probability of a class decreases if a part of an image is blurred. With "
        "--site and --generic the personal and the generic model are shown beside each other.",
        epilog="Needs pip install 'pfedst[explain]'. A map is not an explanation of a diagnosis; see the page Explain "
        "of the documentation.",
    )
    add_model_options(parser)
    parser.add_argument("images", type=Path, nargs="+", help="image files, or folders with images")
    parser.add_argument("--out", type=Path, required=True, help="folder for figures, README.md and explain.json")
    parser.add_argument(
        "--class", dest="class_name", metavar="CLASS", help="class to explain; default: the predicted class"
    )
    parser.add_argument(
        "--window", type=int, help="side of the blurred square in pixels of the input; default: 2 strides"
    )
    parser.add_argument(
        "--stride",
        type=int,
        help="step of the square in pixels of the input, a divisor of the side; default: about a seventh of the side",
    )
    parser.add_argument("--prior", help="training, balanced, site, or a file; default: the prior of the run")
    return parser
