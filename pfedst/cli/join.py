"""`pfedst join`: a hospital that was not in a run trains its own part of the model, and keeps it where it is better."""

from __future__ import annotations

from collections.abc import Sequence

from pfedst.errors import ConfigurationError

USAGE = """\
usage: pfedst join RUN|MODEL --site NAME [--epochs N] [--name NEW] [OPTIONS OF FIT]

  RUN       the folder of a finished run, or RUN@best for its best round on validation
  MODEL     a folder of pfedst export --generic, or hf://USER/NAME; options of data, coordinator and trainer are then
            those of pfedst fit, and --model.encoder.weights names the file of the encoder
  --site    name of the new hospital in the data
  --epochs  maximum number of passes over its training images; default: 20, of which validation selects one, or 3 with
            fewer than 50 labelled images
  --name    name of the new folder; default: that of the run and the site

Other options are those of pfedst fit, with the values of the run as defaults: give --data and its options for the new
images.
"""


def run_join(arguments: Sequence[str]) -> int:
    """Join a run. Return the exit code."""
    if not arguments or {"--help", "-h"} & set(arguments):
        print(USAGE, end="")
        return 0
    source, *rest = arguments
    if source.startswith("-"):
        raise ConfigurationError(f"pfedst join: give the folder of a run or of a model first\n{USAGE}")
    from pfedst.cli.join_run import JoinCLI
    from pfedst.cli.source_configuration import configuration_of
    from pfedst.cli.start import run_command

    with configuration_of(source, "pfedst join") as (place, config):
        return run_command(["fit", f"--config={config}", "--name=null", *rest, f"--init={place}"], JoinCLI)
