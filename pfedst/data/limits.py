"""Limits on images of any kind of file, and the error that still lacks the name of the file."""

from __future__ import annotations

COPY_AGAIN = "remove it, or copy it again"
"""The remedy for a damaged file, and for a file that is not an image."""
MOST_PIXELS = 89_478_485
"""Maximum number of pixels: PIL warns of a decompression bomb above it."""
MOST_ELONGATED = 100
"""Maximum ratio of the sides. The shorter side is resized to the encoder's size, so memory grows with this ratio."""


class NamelessError(Exception):
    """An error with reason and remedy, to which the name of the file must still be added."""


def check_shape(width: int, height: int) -> None:
    """Refuse an image that is so elongated that resizing its shorter side would fill the memory.

    Raises:
        NamelessError: If a side is more than MOST_ELONGATED times as long as the other.
    """
    if max(width, height) > MOST_ELONGATED * min(width, height):
        raise NamelessError(
            f"{width:,} x {height:,} pixels; a side is more than {MOST_ELONGATED} times as long as the other, and only "
            f"the central square would be used: crop it, or remove it"
        )


def check_single(images: int, what: str) -> None:
    """Refuse a file with several images: which one is meant is not known.

    Args:
        images: number of images in the file.
        what: the word for one of them: "page" or "frame".

    Raises:
        NamelessError: If there are several.
    """
    if images > 1:
        raise NamelessError(f"holds {images} {what}s; export the {what} wanted to a file of its own")


REMEDY_FOR_MANY = "where no other remedy is named, remove them (and their rows), or copy them again"


def without_remedy(error: Exception) -> str:
    """Return an error about one file without the usual remedy, for a list with one remedy at its end."""
    return str(error).removesuffix(f"; {COPY_AGAIN}")
