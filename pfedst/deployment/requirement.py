"""The version of Flower that runs between hospitals stand on."""

from __future__ import annotations

import importlib.metadata
import os
import sys

from pfedst.errors import ConfigurationError

SERIES = "1.42"
"""The one minor version of flwr: the runners use parts of it that are not public."""


def check_flower() -> None:
    """Check that Flower can be imported; switch off its telemetry and its search for updates.

    Call it before flwr is imported.

    Raises:
        ConfigurationError: Python is too old, or flwr is missing or of another version.
    """
    if sys.version_info < (3, 11):
        raise ConfigurationError(
            f"runs between hospitals need Python 3.11 or newer, for flwr {SERIES}; this is Python "
            f"{sys.version_info.major}.{sys.version_info.minor}"
        )
    try:
        found = importlib.metadata.version("flwr")
    except importlib.metadata.PackageNotFoundError as error:
        raise ConfigurationError("runs between hospitals need Flower: pip install 'pfedst[flower]'") from error
    if found != SERIES and not found.startswith(f"{SERIES}."):
        raise ConfigurationError(
            f"runs between hospitals need flwr {SERIES}, and {found} is installed: pip install 'pfedst[flower]'"
        )
    os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
    os.environ["FLWR_DISABLE_UPDATE_CHECK"] = "1"
