"""`pfedst export` and `pfedst push`: a model in a folder that can be carried away, and on the Hugging Face hub.

What needs torch is imported after the options are parsed.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pfedst.cli.command_parser import CommandParser
from pfedst.cli.model_options import add_model_options, models_of
from pfedst.errors import ConfigurationError, counted
from pfedst.options import HUB_MODEL


def run_export(arguments: Sequence[str]) -> int:
    """Write a model of a run into a folder. Return the exit code."""
    parser = CommandParser(
        prog="pfedst export",
        description="Write a model of a run into a folder: the adapter, everything to rebuild it, a model card. The "
        "encoder is not part of it.",
    )
    add_model_options(parser)
    parser.add_argument("folder", type=Path, help="folder to write; it must be empty or not exist")
    parser.add_argument("--licence", help="licence of the model as the hub names it, such as cc-by-nc-4.0")
    parser.add_argument(
        "--onnx",
        nargs="+",
        metavar="IMAGES",
        help="write model.onnx too, encoder and adapter in one file, and check it on these images: at least 8 "
        "files, or folders",
    )
    parser.add_argument(
        "--prior",
        help="prior of the probabilities in model.onnx: training, balanced, site, or a file; default: that of the run",
    )
    given = parser.parse_args(arguments)
    if given.prior is not None and given.onnx is None:
        raise ConfigurationError(f"--prior {given.prior}: is for --onnx; a prediction chooses its own prior")
    if given.site is not None and given.generic:
        raise ConfigurationError("--site and --generic: export one model at a time")
    from pfedst.inference.artefact import check_new, export, exportable
    from pfedst.inference.artefact_files import ONNX_FILE, is_model
    from pfedst.inference.onnx_export import onnx_of
    from pfedst.inference.saved_run import SavedRun

    if is_model(Path(given.model)) or given.model.startswith(HUB_MODEL):
        raise ConfigurationError(f"{given.model} is exported already; copy the folder")
    check_new(given.folder)
    (model,) = models_of(given)
    run = SavedRun(given.model)
    # before the folder is written: a model that cannot be exported to ONNX leaves nothing
    made = None if given.onnx is None else onnx_of(exportable(model, len(run.sites)), given.onnx, given.prior)
    export(run, model, given.folder, given.licence, made)
    if made is not None:
        print(
            f"{given.folder / ONNX_FILE}: {len(made.content) / 1e6:.1f} MB, checked on "
            f"{counted(made.images, 'image')}: probabilities differ by {made.worst_difference:.0e} at most. It "
            f"holds the encoder, whose licence applies to it"
        )
    if model.site is not None:
        print(
            f"This model holds what site {model.site} did not share: tensors that were trained on its images alone, "
            f"and its class frequencies. Share it only if the site agrees."
        )
    print(f"{given.folder}: {model.name}, id {model.id}; it needs the encoder {model.encoder.label}")
    return 0


def run_push(arguments: Sequence[str]) -> int:
    """Upload an exported model. Return the exit code."""
    parser = CommandParser(prog="pfedst push", description="Upload an exported model to the Hugging Face hub.")
    parser.add_argument("folder", type=Path, help="folder that pfedst export has written")
    parser.add_argument("name", help="USER/NAME")
    parser.add_argument("--private", action="store_true", help="make the repository private")
    given = parser.parse_args(arguments)
    from pfedst.inference.hub import push

    print(push(given.folder, given.name, given.private))
    return 0
