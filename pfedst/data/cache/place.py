"""Where the tap cache lies. This module does not import torch."""

from __future__ import annotations

import os
from pathlib import Path


def default_folder() -> Path:
    """Return the environment variable PFEDST_CACHE, or `pfedst` in the user's cache folder."""
    if given := os.environ.get("PFEDST_CACHE"):
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pfedst"
