"""Limit on the decoding cost of a JPEG, in any kind of file."""

from __future__ import annotations

MOST_SCANS = 200
"""Maximum number of scans. A progressive JPEG has about ten. Each scan costs a pass over all pixels and few bytes."""


def check_scans(content: bytes) -> None:
    """Refuse a JPEG whose decoding would take minutes. Other content is accepted.

    The compressed pixels of a JPEG never hold the two bytes that start a scan.

    Raises:
        ValueError: If there are more than MOST_SCANS scans.
    """
    if content.startswith(b"\xff\xd8") and (scans := content.count(b"\xff\xda")) > MOST_SCANS:
        raise ValueError(f"a JPEG of {scans:,} scans, which may be an attack")
