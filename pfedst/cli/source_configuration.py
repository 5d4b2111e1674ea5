"""The configuration of a run or of an exported model, for commands that take either."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pfedst.errors import ConfigurationError
from pfedst.inference.artefact_files import is_model, read_config
from pfedst.inference.hub import local_folder
from pfedst.options import HUB_MODEL
from pfedst.server.warm_start import folder_and_choice


@contextmanager
def configuration_of(source: str, command: str) -> Iterator[tuple[str, Path]]:
    """Return the source as a local folder, and its configuration: of a model a file that exists within the block.

    Args:
        source: `RUN`, `RUN@best`, `MODEL` or `hf://USER/NAME`.
        command: that names it, for errors.

    Raises:
        ConfigurationError: neither a run nor a model.
    """
    place = str(local_folder(source)) if source.startswith(HUB_MODEL) else source
    if is_model(Path(place)):
        with tempfile.TemporaryDirectory(prefix="pfedst-") as folder:
            file = Path(folder) / "config.yaml"
            file.write_text(json.dumps(read_config(Path(place))["options"]))
            yield place, file
        return
    folder_of_run, _ = folder_and_choice(place)
    if not (folder_of_run / "config.yaml").is_file():
        raise ConfigurationError(
            f"{command} {source}: no run and no model, as {folder_of_run} holds neither config.yaml nor config.json; "
            f"give a folder as runs/NAME"
        )
    yield place, folder_of_run / "config.yaml"
