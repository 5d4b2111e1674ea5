"""A store on disk: rows of equal size in memory-mapped files, which are appended and never overwritten.

A folder holds `manifest.json` (what the rows depend on, and their layout), one `.bin` file per field, and
`index.txt` with one line per row: the key of its image, and the CRC-32 of its bytes and the key. Rows are written and
synced before their lines, so every row in the index is complete. A build that was killed continues where it stopped. A
truncated file loses only the rows behind the cut.
"""

from __future__ import annotations

import copy
import math
import os
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from filelock import FileLock, Timeout
from torch import Tensor

from pfedst.data.cache.layout import ImageLayout, Layout, PieceLayout, TapLayout
from pfedst.data.tables import read_json
from pfedst.encoders.spec import Need
from pfedst.encoders.stored import StoredTaps
from pfedst.errors import DataError
from pfedst.messages.payload import raw_bytes
from pfedst.state import write_json

Kind = TypeVar("Kind", bound="Store")

FORMAT = 1
KEY = re.compile("[0-9a-f]{32}")
LINE = re.compile(rb"([0-9a-f]{32}) ([0-9a-f]{8})\n")
LINE_LENGTH = 32 + 1 + 8 + 1
SIZE_BYTES, CHANNELS = 8, 3
"""Height and width of a whole image, two int32; red, green, blue."""
ROW_DIGITS = 8
CHECKED_ON_OPENING = 8
"""Number of last rows whose CRC is checked on opening, since a crash of the machine may have left them unwritten. If
one of them is wrong, all rows are checked."""


class Store:
    """A store of rows. Opening it reads and checks the index; incomplete rows are ignored.

    Attributes:
        folder: folder of the store.
        layout: fields of a row.
        row_of: key of an image -> its row.

    Args:
        folder: folder of the store, created when the first row is written.
        layout: fields of a row.
        identity: what the rows depend on beside the image, such as encoder and preprocessing. A folder with another or
            no identity is not read, and is emptied before the first row is written.
    """

    def __init__(self, folder: Path, layout: Layout, identity: Mapping[str, Any]) -> None:
        self.folder = folder
        self.layout = layout
        self.manifest = {"format": FORMAT, "layout": dict(vars(layout)), "identity": dict(identity)}
        self.row_of: dict[str, int] = {}
        self._crc: list[int] = []
        self._mapped: dict[str, Tensor] = {}
        self._held: dict[str, Tensor] = {}
        self.refresh()

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self._crc)

    @property
    def bytes(self) -> int:
        """Bytes of all rows."""
        return len(self) * self.layout.row_bytes

    @property
    def images(self) -> int:
        """Number of images, or of views of them."""
        return len(self)

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the mapped files: another process maps them itself."""
        return {**self.__dict__, "_mapped": {}}

    # -- reading -----------------------------------------------------------------------------------------------

    def refresh(self) -> None:
        """Read the index again, after another process has written."""
        lines = self._lines() if self._is_mine() else []
        whole = min(self._file_size(name) // size for name, size in self.layout.field_bytes.items())
        self._take(lines[:whole])
        if self._damaged_from(len(self) - CHECKED_ON_OPENING):
            self._take(lines[: self.damaged()[0]])

    def held(self: Kind, rows: Tensor, device: torch.device) -> Kind:
        """Return some rows in the memory of a device, to be read: row i is `rows[i]` of this store."""
        held = copy.copy(self)
        held._held = {name: self._field(name).index_select(0, rows).to(device) for name in self.layout.fields}
        return held

    @property
    def is_held(self) -> bool:
        """True if the rows are in the memory of a device."""
        return bool(self._held)

    def _select(self, name: str, rows: Tensor) -> Tensor:
        """Return a field of some rows."""
        field = self._field(name)
        return field.index_select(0, rows.to(field.device))

    def damaged(self) -> list[int]:
        """Return the rows whose bytes differ from those written. Reads the whole store."""
        return self._damaged_from(0)

    def _damaged_from(self, first: int) -> list[int]:
        lines = enumerate(zip(self.row_of, self._crc, strict=True))
        return [row for row, (key, crc) in lines if row >= first and self._crc_of(row, key) != crc]

    def _take(self, lines: Sequence[tuple[str, int]]) -> None:
        self.row_of = {key: row for row, (key, _) in enumerate(lines)}
        self._crc = [crc for _, crc in lines]
        self._mapped = {}

    def _is_mine(self) -> bool:
        try:
            return bool(read_json(self.folder / "manifest.json") == self.manifest)
        except (OSError, ValueError):
            return False

    def _lines(self) -> list[tuple[str, int]]:
        try:
            content = (self.folder / "index.txt").read_bytes()
        except OSError:
            return []
        lines: dict[str, int] = {}
        for start in range(0, len(content), LINE_LENGTH):
            line = LINE.fullmatch(content[start : start + LINE_LENGTH])
            if line is None or line[1].decode() in lines:
                break
            lines[line[1].decode()] = int(line[2], 16)
        return list(lines.items())

    def _file(self, name: str) -> Path:
        return self.folder / f"{name}.bin"

    def _file_size(self, name: str) -> int:
        return self._file(name).stat().st_size if self._file(name).exists() else 0

    def _field(self, name: str) -> Tensor:
        """Return a field of all rows, memory-mapped: only used rows are read."""
        if self._held:
            return self._held[name]
        if name not in self._mapped:
            shape, dtype = self.layout.fields[name]
            size = len(self) * math.prod(shape)
            flat = torch.from_file(str(self._file(name)), shared=False, size=size, dtype=dtype)
            self._mapped[name] = flat.view(len(self), *shape)
        return self._mapped[name]

    def _crc_of(self, row: int, key: str) -> int:
        return _crc([self._field(name)[row] for name in self.layout.fields], key)

    # -- writing -----------------------------------------------------------------------------------------------

    @contextmanager
    def writing(self, wait_seconds: float = -1) -> Iterator[None]:
        """Lock the store for writing, read what other processes wrote, and remove incomplete rows.

        Args:
            wait_seconds: how long to wait for another process; without limit by default. A process that died holds no
                lock.

        Raises:
            TimeoutError: If another process is writing.
            DataError: If the folder cannot be written.
        """
        lock = FileLock(self.folder / ".lock")
        try:
            with self._explained():
                self.folder.mkdir(parents=True, exist_ok=True)
                lock.acquire(timeout=wait_seconds)
        except Timeout as error:
            raise TimeoutError(f"{self.folder} is being written by another process") from error
        try:
            with self._explained():
                self.refresh()
                self._repair()
            yield
        finally:
            lock.release()

    def append(self, keys: Sequence[str], rows: Mapping[str, Tensor]) -> None:
        """Write rows, then their lines in the index. Only within `writing`.

        Raises:
            DataError: If a value in these rows is not finite.
            ValueError: If a key already has a row, or is not 32 hexadecimal digits.
        """
        fitting = [key for key in keys if KEY.fullmatch(key) and key not in self.row_of]
        if len(set(fitting)) < len(keys):
            raise ValueError(f"each key must be new and 32 hexadecimal digits, not {list(keys)}")
        for name, field in rows.items():
            if field.is_floating_point() and not bool(torch.isfinite(field).all()):
                raise DataError(
                    f"the encoder gives {name} that {self.layout.dtype} cannot hold, or that are not finite; check "
                    f"the encoder's weights, or choose another --data.cache_dtype"
                )
        with self._explained():
            for name, field in rows.items():
                _append(self._file(name), raw_bytes(field))
            checks = [_crc([rows[name][i] for name in self.layout.fields], key) for i, key in enumerate(keys)]
            text = "".join(f"{key} {crc:08x}\n" for key, crc in zip(keys, checks, strict=True))
            _append(self.folder / "index.txt", text.encode("ascii"))
        self.row_of |= {key: len(self) + index for index, key in enumerate(keys)}
        self._crc += checks
        self._mapped = {}

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except Timeout:
            raise
        except OSError as error:
            raise DataError(
                f"{self.folder}: cannot write the cache ({error}); free some space, choose another "
                f"--data.cache_folder, or --data.cache none. What was written before is kept"
            ) from error

    def _repair(self) -> None:
        if not self._is_mine():
            for path in (*self.folder.glob("*.bin"), self.folder / "index.txt"):
                path.unlink(missing_ok=True)
            self._take([])
            write_json(self.folder / "manifest.json", self.manifest)
        for name, size in self.layout.field_bytes.items():
            _cut(self._file(name), len(self) * size)
        _cut(self.folder / "index.txt", len(self) * LINE_LENGTH)


class ImageStore(Store):
    """A store of decoded images, cut to squares."""

    layout: ImageLayout

    def read(self, rows: Tensor) -> Tensor:
        """Return the pixels (B, 3, S, S), uint8, of some rows."""
        return self._select("pixels", rows)


class WholeImageStore(Store):
    """A store of decoded images of any size: each in as many rows as it needs, one after another.

    The row of an image is its last one, whose last bytes are height and width: an image whose rows are not all there
    has no row.
    """

    layout: PieceLayout

    @property
    def images(self) -> int:
        """Number of images whose rows are all there."""
        return sum(not key.startswith(_part_of(row)) for key, row in self.row_of.items())

    def read(self, row: int) -> Tensor:
        """Return the pixels (H, W, 3), uint8, of an image; they lie in the mapped file."""
        height, width = self._size(row)
        size = height * width * CHANNELS
        first = row + 1 - self.pieces(size)
        return self._field("piece")[first : row + 1].reshape(-1)[:size].view(height, width, CHANNELS)

    def _size(self, row: int) -> tuple[int, int]:
        height, width = self._field("piece")[row, -SIZE_BYTES:].clone().view(torch.int32).tolist()
        return height, width

    def pieces(self, size: int) -> int:
        """Return the number of rows of an image of so many bytes."""
        return -(-(size + SIZE_BYTES) // self.layout.piece_bytes)

    def append_images(self, keys: Sequence[str], images: Sequence[Tensor]) -> None:
        """Write images (H, W, 3), uint8. Only within `writing`."""
        names, parts = list[str](), list[Tensor]()
        for key, image in zip(keys, images, strict=True):
            rows = torch.zeros(self.pieces(image.numel()), self.layout.piece_bytes, dtype=torch.uint8)
            rows.view(-1)[: image.numel()] = image.reshape(-1)
            rows[-1, -SIZE_BYTES:] = torch.tensor(image.shape[:2], dtype=torch.int32).view(torch.uint8)
            # a part has a name of its own: those of an image that was cut off may still be there
            first = len(self) + len(names)
            names += [_part_of(first + part) + key[:ROW_DIGITS] * 3 for part in range(len(rows) - 1)] + [key]
            parts.append(rows)
        self.append(names, {"piece": torch.cat(parts)})


class TapStore(Store):
    """A store of the output of an encoder."""

    layout: TapLayout

    def read(self, rows: Tensor, need: Need) -> StoredTaps:
        """Return rows for an adapter that needs `pooled` or the kind of this store."""
        if need == "pooled":
            return StoredTaps("pooled", (self._select("pooled", rows),))
        values = self._field("values")
        rows = rows.to(values.device)
        tensors = tuple(values[:, layer].index_select(0, rows) for layer in range(self.layout.layers))
        scales: tuple[Tensor, ...] = ()
        if self.layout.dtype == "int8":
            kept = self._field("scales")
            scales = tuple(kept[:, layer].index_select(0, rows) for layer in range(self.layout.layers))
        correction = self._select("correction", rows) if self.layout.corrected else None
        return StoredTaps(self.layout.kind, tensors, scales, correction)


def opened(folder: Path, layout: Layout, identity: Mapping[str, Any]) -> Store:
    """Open the store that a layout is for; arguments as those of `Store`."""
    kinds = {ImageLayout: ImageStore, PieceLayout: WholeImageStore, TapLayout: TapStore}
    return kinds[type(layout)](folder, layout, identity)


def _part_of(row: int) -> str:
    """Return how the name of a row begins that is not the last one of its image; a hash begins so once in 4e9 times."""
    return f"{row:0{ROW_DIGITS}x}"


def _crc(fields: Sequence[Tensor], key: str) -> int:
    crc = 0
    for field in fields:
        crc = zlib.crc32(raw_bytes(field), crc)
    return zlib.crc32(key.encode("ascii"), crc)


def _append(path: Path, content: bytes | memoryview) -> None:
    with path.open("ab") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _cut(path: Path, size: int) -> None:
    path.touch()
    if path.stat().st_size > size:
        os.truncate(path, size)
