"""Fake TIFF files, written tag by tag, of any number type, byte order and number of pages."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping
from pathlib import Path

from numpy.typing import NDArray

FORMATS = {"u": 1, "i": 2, "f": 3, "c": 6}
LONG = (256, 257, 273, 278, 279)
PLANES = 284


def make(
    path: Path, *pages: NDArray, order: str = "<", deflated: bool = False, tags: Mapping[int, int] | None = None
) -> Path:
    """Write arrays (height, width) or (height, width, samples), one a page; the path.

    Args:
        path: where to.
        pages: arrays, whose type gives the number of bits and the kind of number.
        order: byte order, `<` or `>`.
        deflated: compress the values.
        tags: more tags of all pages, or others; a tag of the second and later pages as 1000000 + tag. `PLANES: 2` keeps
            each colour apart.
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
    parts = [page[..., sample] for sample in range(samples)] if own.get(PLANES) == 2 and samples > 1 else [page]
    offsets, lengths = [], []
    for part in parts:
        content = part.astype(page.dtype.newbyteorder(order)).tobytes()
        content = zlib.compress(content) if deflated else content
        offsets.append(len(out))
        lengths.append(len(content))
        out += content + bytes(len(content) % 2)
    kind = FORMATS[page.dtype.kind]
    values: dict[int, list[int]] = {
        256: [width], 257: [height], 258: [8 * page.dtype.itemsize] * samples, 259: [8 if deflated else 1],
        262: [2 if samples > 2 else 1], 273: offsets, 277: [samples], 278: [height], 279: lengths, 339: [kind] * samples,
    }  # fmt: skip
    if samples in (2, 4):
        values[338] = [2]
    values |= {tag: [value] * len(values.get(tag, [0])) for tag, value in own.items()}
    entries = b""
    for tag, items in sorted(values.items()):
        short = tag not in LONG
        packed = struct.pack(f"{order}{len(items)}{'H' if short else 'I'}", *items).ljust(4, b"\0")
        if len(packed) > 4:
            packed, place = struct.pack(order + "I", len(out)), packed
            out += place + bytes(len(place) % 4)
        entries += struct.pack(order + "HHI", tag, 3 if short else 4, len(items)) + packed
    struct.pack_into(order + "I", out, link, len(out))
    out += struct.pack(order + "H", len(values)) + entries + bytes(4)
    return len(out) - 4
