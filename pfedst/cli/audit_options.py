"""The options of `pfedst data audit` that `pfedst fit` does not have."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pfedst.errors import ConfigurationError


@dataclass(frozen=True)
class AuditOptions:
    """What to check, and where to write the report.

    Args:
        folder: folder for `audit.json` and `audit.html`, which are overwritten each time.
        images: open every image. If false, only the tables are read and no image needs to exist.
        images_per_site: number of images of each site that the encoder sees, to measure how differently sites look; 0
            skips this check.

    Raises:
        ConfigurationError: If `images_per_site` is negative.
    """

    folder: Path = Path("audit")
    images: bool = True
    images_per_site: int = 64

    def __post_init__(self) -> None:
        if self.images_per_site < 0:
            raise ConfigurationError(f"--audit.images_per_site {self.images_per_site}: must be 0 or more")
