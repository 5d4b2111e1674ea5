"""The options by which commands name a model: a run and a site, its generic model, or an exported folder."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from pfedst.errors import ConfigurationError
from pfedst.options import HUB_MODEL

if TYPE_CHECKING:
    from pfedst.inference.site_model import SiteModel


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Add the name of the model, and the options that choose it."""
    parser.add_argument("model", help="folder of a run (runs/NAME), folder of pfedst export, or hf://USER/NAME")
    parser.add_argument("--site", help="use the personal model of this site of the run")
    parser.add_argument(
        "--generic", action="store_true", help="use the generic model, for a hospital that was not in the run"
    )
    parser.add_argument(
        "--round", default="last", help="round of the run: last, best (on validation), or the number of a saved round"
    )
    parser.add_argument("--encoder_weights", help="file or tag of the encoder's weights; default: those of the run")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1 and so on; default: %(default)s")


def models_of(given: argparse.Namespace) -> list[SiteModel]:
    """Return the models that the options name: one, or with `--site` and `--generic` of a run both.

    Raises:
        ConfigurationError: no model of a run is chosen, or an option has no effect.
        PfedstError: the model cannot be loaded.
    """
    folder = Path(given.model)
    if not given.model.startswith(HUB_MODEL) and not any(
        (folder / file).is_file() for file in ("config.yaml", "config.json")
    ):
        raise ConfigurationError(
            f"{folder}: neither a run nor an exported model; give a folder such as runs/NAME, or hf://USER/NAME"
        )
    import torch

    from pfedst.inference.artefact import load_model
    from pfedst.inference.artefact_files import is_model
    from pfedst.inference.saved_run import SavedRun

    try:
        torch.empty(0, device=given.device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigurationError(f"--device {given.device}: {str(error).splitlines()[0]}; use cpu") from error
    if given.model.startswith(HUB_MODEL) or is_model(folder):
        for option, chosen in (("--site", given.site), ("--generic", given.generic)):
            if chosen:
                raise ConfigurationError(f"{option}: {given.model} holds one model; leave the option out")
        if given.round != "last":
            raise ConfigurationError(f"--round {given.round}: {given.model} is no run; leave the option out")
        return [load_model(given.model, given.encoder_weights, given.device)]
    run = SavedRun(given.model)
    if given.site is None and not given.generic:
        raise ConfigurationError(
            f"{given.model} is a run: name a site (--site NAME; it has {', '.join(run.sites)}) or take the generic "
            f"model (--generic)"
        )
    chosen = [*([] if given.site is None else [given.site]), *([None] if given.generic else [])]
    return run.models(chosen, given.round, given.encoder_weights, given.device)
