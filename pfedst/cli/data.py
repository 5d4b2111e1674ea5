"""`pfedst data`: sources of public data, manifests, simulated sites, small copies of images, and the audit.

Each command imports what it needs: help and errors of options come without torch.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from pathlib import Path, PurePath
from typing import Any

from jsonargparse import ArgumentParser
from rich.table import Table
from rich.text import Text

from pfedst.cli.command_parser import option_error
from pfedst.errors import ConfigurationError, DataError, counted, listed, nearest
from pfedst.reporting import bytes_text, console_of
from pfedst.state import write_atomically

USAGE = """\
usage: pfedst data prepare NAME [--root FOLDER]      what to download for a public data set; check a folder
       pfedst data init FOLDER                       write a manifest of a folder of images, for you to check
       pfedst data audit [PATH] [OPTIONS OF FIT]     leaks, duplicates, absent classes, damaged images
       pfedst data preprocess SOURCE TARGET          small copies of large images
       pfedst data partition MANIFEST TARGET         simulated sites from one pooled set

Options of a command: pfedst data COMMAND --help.
"""
OUTSIDE = "allow images outside the folder, to which a path or a link leads"


def run_data(arguments: Sequence[str]) -> int:
    """Run one of the data commands. Return the exit code."""
    command, rest = (arguments[0] if arguments else "--help"), list(arguments[1:])
    if command in ("--help", "-h", "help"):
        print(USAGE, end="")
        return 0
    if command not in COMMANDS:
        raise ConfigurationError(f'pfedst data: there is no command "{command}".{nearest(command, COMMANDS)}\n{USAGE}')
    return COMMANDS[command](rest)


class DataParser(ArgumentParser):
    """An argument parser that raises errors of pfedst."""

    def error(self, message: str, ex: Exception | None = None) -> Any:
        """Raise an error in place of printing a usage text."""
        raise option_error(self, str(message))


def _prepare(arguments: Sequence[str]) -> int:
    from pfedst.data.prepare.catalogue import PUBLIC_DATA

    parser = DataParser(
        prog="pfedst data prepare", description="List what to download for a public data set; check a folder."
    )
    parser.add_argument("name", type=str, help=", ".join(PUBLIC_DATA))
    parser.add_argument("--root", type=Path | None, default=None, help="the folder to check")
    given = parser.parse_args(list(arguments))
    if given.name not in PUBLIC_DATA:
        known = ", ".join(PUBLIC_DATA)
        raise ConfigurationError(f'no public data "{given.name}".{nearest(given.name, PUBLIC_DATA)} Known: {known}')
    found, console = PUBLIC_DATA[given.name], console_of(160)
    table = Table(title=found.title)
    for heading in ("what", "where", "licence", "size"):
        table.add_column(heading, overflow="fold")
    for download in found.downloads:
        table.add_row(*(Text(text) for text in (download.what, download.address, download.licence, download.size)))
    console.print(table, highlight=False)
    console.print("pfedst downloads nothing. Once you have it:", highlight=False)
    for number, step in enumerate(found.steps, start=1):
        console.print(f"  {number}. {step}", highlight=False, markup=False)
    if given.root is None:
        console.print(f"Then: pfedst data prepare {given.name} --root ROOT checks what is there.", highlight=False)
        return 0
    if not given.root.is_dir():
        raise DataError(f"--root {given.root}: no such folder")
    checks = found.check(given.root)
    for check in checks:
        mark = "ok" if check.complete else "MISSING" if check.needed else "incomplete, but not needed"
        console.print(f"{mark:8} {check.what}: {check.seen}", highlight=False, markup=False)
    if lacking := [check.what for check in checks if check.needed and not check.complete]:
        raise DataError(f"{given.root} is not complete: {listed(lacking)}")
    message = f"{given.root} is complete by names and counts; pfedst data audit {given.root} opens every image."
    console.print(message, highlight=False, markup=False)
    return 0


def _init(arguments: Sequence[str]) -> int:
    from pfedst.data.left_out import left_out_line
    from pfedst.data.prepare.group_pattern import propose_pattern
    from pfedst.data.prepare.init import InitOptions, make_manifest

    parser = DataParser(prog="pfedst data init", description="Write a manifest of a folder of images.")
    parser.add_argument("folder", type=Path, help="images in folders named by class, site or split")
    parser.add_argument(
        "--manifest", type=Path | None, default=None, help="manifest to write; default: FOLDER/manifest.csv"
    )
    parser.add_argument("--outside_files", type=bool, default=False, help=OUTSIDE)
    parser.add_class_arguments(InitOptions)
    given = parser.parse_args(list(arguments))
    target, options = given.manifest or given.folder / "manifest.csv", _options(InitOptions, given)
    if target.exists():
        raise DataError(f"{target} exists and is not overwritten; remove it, or give --manifest")
    table, levels, left_out = make_manifest(given.folder, options, given.outside_files)
    _write(target, table.to_csv(index=False).encode())
    drawn = "" if "split" in levels else f", train and test drawn with seed {given.seed}"
    groups = table["group"].replace("", None).nunique()
    print(f"{target}: {counted(len(table), 'image')}, folders read as {'/'.join(levels)}{drawn}")
    print(
        f"{counted(groups, 'group')} (patients, lesions) known"
        + ("" if groups else ": give --group_pattern if you can")
    )
    if not groups and (proposal := propose_pattern([PurePath(path) for path in table["path"]])) is not None:
        print(
            f"{proposal.images:,} images look like several images of {proposal.groups:,} patients "
            f"({' and '.join(proposal.example)}). If so, remove {target} and run again with\n"
            f"  --group_pattern {shlex.quote(proposal.pattern)}"
        )
    if left_out:
        print(left_out_line("", left_out))
    counts = table.groupby(["site", "split", "label"]).size().unstack(fill_value=0)
    print(counts.to_string())
    for site, rows in table.groupby("site"):
        for split in {"train", "test"} - set(rows["split"]):
            print(f'site "{site}" has no {split} image, without which it cannot take part: add some, or edit the table')
    root = "" if given.manifest is None else f" --data.root {shlex.quote(str(given.folder))}"
    manifest = shlex.quote(str(target))
    print(f"Check it, then:\n  pfedst data audit {manifest}{root}")
    print(f"  pfedst fit --config manifest --data.manifest {manifest}{root}")
    return 0


def _audit(arguments: Sequence[str]) -> int:
    from pfedst.cli.audit_options import AuditOptions
    from pfedst.data.sets.recognise import recognise

    given = list(arguments)
    if {"--help", "-h"} & set(given):
        parser = DataParser(
            prog="pfedst data audit",
            description="Find leaks, duplicates, absent classes, damaged images and differences between sites.",
            epilog="All other options are those of pfedst fit, such as --data FolderSites --data.root FOLDER, or "
            "--config FILE: see pfedst fit --help.",
        )
        parser.add_argument("path", type=Path, nargs="?", help="folder or manifest, instead of --data")
        parser.add_class_arguments(AuditOptions, "audit")
        parser.print_help()
        return 0
    if given and not given[0].startswith("-"):
        name, options = recognise(Path(given[0]))
        given = ["--data", name, *(f"--data.{key}={value}" for key, value in options.items()), *given[1:]]
    from pfedst.cli.audit import AuditCLI
    from pfedst.cli.start import run_command

    return run_command(["fit", *given], AuditCLI)


def _preprocess(arguments: Sequence[str]) -> int:
    from pfedst.data.prepare.preprocessing import PreprocessingOptions, preprocess_tree

    parser = DataParser(prog="pfedst data preprocess", description="Write small copies of large images.")
    parser.add_argument("source", type=Path, help="folder with images, also in subfolders")
    parser.add_argument("target", type=Path, help="folder for the copies, which have the same names")
    parser.add_argument("--workers", type=int, default=0, help="number of threads; 0: number of cores")
    parser.add_argument("--outside_files", type=bool, default=False, help=OUTSIDE)
    parser.add_class_arguments(PreprocessingOptions)
    given = parser.parse_args(list(arguments))
    options = _options(PreprocessingOptions, given)
    report = preprocess_tree(given.source, given.target, options, given.workers, given.outside_files)
    print(
        f"{given.target}: {report.written:,} images written, {report.skipped:,} were there; "
        f"{bytes_text(report.bytes_before)} -> {bytes_text(report.bytes_after)} in {report.seconds:.0f} s"
    )
    return 0


def _partition(arguments: Sequence[str]) -> int:
    from pfedst.data.prepare.partition import PartitionOptions, partition
    from pfedst.data.prepare.partition_files import save_partition, shift_images
    from pfedst.data.tables import read_table

    parser = DataParser(prog="pfedst data partition", description="Divide one pooled data set into simulated sites.")
    parser.add_argument("manifest", type=Path, help="table with the columns path, label, split, and optionally group")
    parser.add_argument("target", type=Path, help="folder to write: manifest.csv, partition.json, partition.png")
    parser.add_argument(
        "--root",
        type=Path | None,
        default=None,
        help="folder to which the paths are relative; default: that of the manifest",
    )
    parser.add_argument("--outside_files", type=bool, default=False, help=OUTSIDE)
    parser.add_class_arguments(PartitionOptions)
    given = parser.parse_args(list(arguments))
    options = _options(PartitionOptions, given)
    if not given.manifest.is_file():
        raise DataError(f"{given.manifest}: no such file; give a .csv or .parquet table")
    if (given.target / "manifest.csv").exists():
        raise DataError(f"{given.target / 'manifest.csv'} exists and is not overwritten; give another folder")
    root = given.root or given.manifest.parent
    table = partition(read_table(given.manifest), options)
    given.target.mkdir(parents=True, exist_ok=True)
    if options.by == "features":
        table, root = shift_images(table, root, given.target, options, given.outside_files), given.target
    save_partition(table, options, given.target)
    print(given.target / "partition.png")
    manifest, images = (shlex.quote(str(path)) for path in (given.target / "manifest.csv", root))
    where = f"--data.manifest {manifest} --data.root {images}"
    print(f"pfedst fit --config manifest {where}")
    return 0


def _options(kind: Callable[..., Any], given: Any) -> Any:
    """Build an options dataclass from parsed arguments. The dataclass raises its own errors."""
    return kind(**{name: getattr(given, name) for name in kind.__dataclass_fields__})  # type: ignore[attr-defined]


def _write(target: Path, content: bytes) -> None:
    try:
        write_atomically(target, content)
    except OSError as error:
        raise DataError(f"{target} cannot be written ({error.strerror}); give another --manifest") from error


COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "prepare": _prepare,
    "init": _init,
    "audit": _audit,
    "preprocess": _preprocess,
    "partition": _partition,
}
