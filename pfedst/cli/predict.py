"""`pfedst predict`: the class of each image, by a model of a run or of an exported folder.

What needs torch is imported after the options are parsed.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pfedst.cli.command_parser import CommandParser
from pfedst.cli.model_options import add_model_options, models_of
from pfedst.errors import ConfigurationError, DataError, StateError, counted, listed

if TYPE_CHECKING:
    import pandas as pd

FORMATS = (".csv", ".parquet", ".jsonl")
PRECISIONS = ("32", "bf16-mixed", "16-mixed")


def run_predict(arguments: Sequence[str]) -> int:
    """Predict, write the table, and print metrics if there are labels. Return the exit code."""
    given = _parser().parse_args(arguments)
    if given.out.suffix not in FORMATS:
        raise ConfigurationError(f"--out {given.out}: must end in {', '.join(FORMATS)}")
    if given.out.suffix == ".parquet":
        _check_parquet()
    models = models_of(given)
    from rich.console import Console

    from pfedst.inference.images import items_of
    from pfedst.inference.labels import labels_of
    from pfedst.inference.predict import predict

    class_names, labels = models[0].class_names, None
    if given.labels is not None:  # before hours of work
        labels = labels_of([item.name for item in items_of(given.images)], given.labels, class_names)
    console = Console(stderr=True)
    table = predict(models, given.images, given.prior, given.batch_size, given.strict, given.precision, console)
    _write(table, given.out)
    target = models[0].target(given.prior)
    if models[0].abstention is not None and models[0].threshold(target) is None:
        console.print(f"abstained is empty: there is no threshold for the prior {target.option}", highlight=False)
    names = listed([model.name for model in models])
    print(f"{given.out}: {counted(len(table), 'image')}, {names}, at the prior {target.label or target.option}")
    if labels is not None:
        _report(table, labels, given.out, class_names, models[0].name)
    failed = table.loc[table["error"] != ""]
    for error in failed["error"].head(5):
        print(f"not read: {error}", file=sys.stderr)
    if len(failed):
        raise DataError(f"{len(failed):,} of {len(table):,} images cannot be read; {given.out} has the reason of each")
    return 0


def _parser() -> CommandParser:
    parser = CommandParser(
        prog="pfedst predict",
        description="Predict the class of images. Research software, not a medical device.",
    )
    add_model_options(parser)
    parser.add_argument(
        "images", nargs="+", help="image files (also DICOM), or folders with images, also in subfolders"
    )
    parser.add_argument("--out", type=Path, required=True, help=f"table to write: {', '.join(FORMATS)}")
    parser.add_argument(
        "--prior",
        help="class frequencies that predictions are for: training (those that the model learned), balanced, site, or "
        "a JSON or CSV file; default: that of the run",
    )
    parser.add_argument("--precision", choices=PRECISIONS, default="32", help="default: %(default)s")
    parser.add_argument("--batch_size", type=int, default=16, help="images per batch; default: %(default)s")
    parser.add_argument("--strict", action="store_true", help="stop at the first image that cannot be read")
    parser.add_argument(
        "--labels",
        help="true classes: a table with the columns path and label, or the word folders (the folder of an image is "
        "its class); prints metrics and the confusion matrix",
    )
    return parser


def _check_parquet() -> None:
    """Check before hours of work that the table can be written."""
    from importlib.util import find_spec

    if find_spec("pyarrow") is None:
        raise ConfigurationError("--out: writing parquet needs pip install 'pfedst[parquet]', or give a .csv")


def _write(table: pd.DataFrame, file: Path) -> None:
    """Write a table atomically.

    Raises:
        StateError: the disk refuses.
    """
    from io import BytesIO

    from pfedst.state import write_atomically

    content = BytesIO()
    if file.suffix == ".csv":
        table.to_csv(content, index=False)
    elif file.suffix == ".jsonl":
        table.to_json(content, orient="records", lines=True, force_ascii=False, double_precision=15)
    else:
        table.to_parquet(content, index=False)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, content.getvalue())
    except OSError as error:
        raise StateError(f"--out {file} cannot be written ({error.strerror or error}); name another file") from error


def _report(table: pd.DataFrame, labels: list[str], out: Path, class_names: tuple[str, ...], model: str) -> None:
    """Print metrics and the confusion matrix of a model, and write them beside the table."""
    from pfedst.inference.labels import metrics_of
    from pfedst.reporting import console_of
    from pfedst.state import write_json

    found = {"model": model} | metrics_of(table, labels, class_names)
    console = console_of(150)
    for printed in _tables(found):
        console.print(printed, highlight=False)
    file = out.with_suffix(".metrics.json")
    write_json(file, found)
    print(file)


def _tables(found: dict[str, Any]) -> list[Any]:
    from rich.table import Table

    from pfedst.reporting.tables import metric_title

    percent = {key: value for key, value in found["metrics"].items() if value is not None}
    images, unread = counted(found["images"], "image"), found["unread"]
    title = f"{found['model']}, {images}, %, with 95 % intervals over images; {unread:,} could not be read"
    metrics = Table(title=title)
    by_class = Table(title="Each class, %, with 95 % intervals over images")
    confusion = Table(title="Confusion matrix: rows are true classes, columns are predictions")
    for name in percent:
        metrics.add_column(metric_title(name), justify="right")
    no_ends = {"low": None, "high": None}
    metrics.add_row(*(_interval(found["intervals"].get(key, no_ends) | {"value": percent[key]}) for key in percent))
    for heading in ("class", "images", "sensitivity", "specificity", "average precision"):
        by_class.add_column(heading, justify="left" if heading == "class" else "right")
    confusion.add_column("true class")
    for name in found["classes"]:
        confusion.add_column(name, justify="right", overflow="fold")
    for name, of_class, row in zip(found["classes"], found["by_class"], found["confusion"], strict=True):
        cells = (_interval(of_class[key]) for key in ("sensitivity", "specificity", "average_precision"))
        by_class.add_row(name, str(of_class["images"]), *cells)
        confusion.add_row(name, *map(str, row))
    return [metrics, by_class, confusion]


def _interval(table: dict[str, float | None]) -> str:
    value, low, high = (None if (n := table[key]) is None else f"{100 * n:.1f}" for key in ("value", "low", "high"))
    return "-" if value is None else value if low is None else f"{value} ({low} to {high})"
