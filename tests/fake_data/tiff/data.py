"""Fake TIFF files, written tag by tag, of any number type, byte order and number of pages."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping
from pathlib import Path

from numpy.typing import NDArray

FORMATS = {"u": 1, "i": 2, "f": 3, "c": 6}


def make(
    path: Path, *pages: NDArray, order: str = "<", deflated: bool = False, tags: Mapping[int, int] | None = None
) -> Path:
    """Write arrays (height, width) or (height, width, samples), one a page; the path.

    Args:
        path: where to.
        pages: arrays, whose type gives the number of bits and the kind of number.
        order: byte order, `<` or `>`.
        deflated: compress the values.
        tags: more tags of all pages, or others; a tag of the second and later pages as 1000000 + tag.
    """
    out = bytearray((b"II" if order == "<" else b"MM") + struct.pack(order + "HI", 42, 0))
    link = 4
    for number, page in enumerate(pages):
        own = {tag % 1_000_000: value for tag, value in (tags or {}).items() if tag < 1_000_000 or number}
        link = _append(out, link, page, order, deflated, own)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(out)
    return path


def _append(out: bytearray, link: int, page: NDArray, order: str, deflated: bool, own: Mapping[int, int]) -> int:
    """Append a page, write its place at `link`, and return the place of the link to the next page."""
    height, width = page.shape[:2]
    samples = page.shape[2] if page.ndim == 3 else 1
    content = page.astype(page.dtype.newbyteorder(order)).tobytes()
    if deflated:
        content = zlib.compress(content)
    values = {
        256: width, 257: height, 258: 8 * page.dtype.itemsize, 259: 8 if deflated else 1, 262: 2 if samples > 2 else 1,
        273: len(out), 277: samples, 278: height, 279: len(content), 339: FORMATS[page.dtype.kind], **own,
    }  # fmt: skip
    if samples in (2, 4):
        values.setdefault(338, 2)
    out += content + bytes(len(content) % 2)
    lists = {tag: (value,) * (samples if tag in (258, 339) else 1) for tag, value in values.items()}
    places = {}
    for tag, items in lists.items():
        if len(items) > 2:
            places[tag] = len(out)
            out += struct.pack(f"{order}{len(items)}H", *items) + bytes(2 * (len(items) % 2))
    struct.pack_into(order + "I", out, link, len(out))
    out += struct.pack(order + "H", len(lists))
    for tag, items in sorted(lists.items()):
        short = tag not in (256, 257, 273, 278, 279)
        out += struct.pack(order + "HHI", tag, 3 if short else 4, len(items))
        if tag in places:
            out += struct.pack(order + "I", places[tag])
        else:
            out += struct.pack(order + ("HH" if short else "I"), *(*items, 0)[: 2 if short else 1])
    out += struct.pack(order + "I", 0)
    return len(out) - 4
