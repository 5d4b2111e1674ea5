"""The apps that the bundle names, for a stock `flower-supernode`; PFEDST_SITE holds the options of the site."""

from __future__ import annotations

import os
import shlex
from functools import cache

from pfedst.cli.site_run import StockSiteCLI
from pfedst.cli.start import run_command
from pfedst.deployment.apps import client_app, server_app
from pfedst.deployment.hospital import Hospital
from pfedst.errors import ConfigurationError

VARIABLE = "PFEDST_SITE"


@cache
def hospital() -> Hospital:
    """Build the hospital of this process.

    Raises:
        ConfigurationError: the variable is not set, or an option cannot work.
    """
    if not os.environ.get(VARIABLE):
        raise ConfigurationError(f"set {VARIABLE} to the options of pfedst site: --config, --data, --site, --state")
    run_command(["fit", *shlex.split(os.environ[VARIABLE])], StockSiteCLI)
    assert StockSiteCLI.made is not None
    return StockSiteCLI.made


client = client_app(hospital)
server = server_app()
