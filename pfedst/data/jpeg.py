"""What a JPEG may cost to decode, whatever file holds it."""

from __future__ import annotations

MOST_SCANS = 200
"""Progressive ones have about ten. Each costs a pass over all pixels, and a few bytes of file."""


def check_scans(content: bytes) -> None:
    """Refuse a JPEG that would take minutes; content of any other kind is let through.

    Within the pixels of a JPEG no byte pair that looks like the start of a scan occurs.

    Raises:
        ValueError: more than MOST_SCANS.
    """
    if content.startswith(b"\xff\xd8") and (scans := content.count(b"\xff\xda")) > MOST_SCANS:
        raise ValueError(f"a JPEG of {scans:,} scans, which may be an attack")
