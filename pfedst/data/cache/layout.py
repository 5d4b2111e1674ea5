"""The fields of one row of a store."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pfedst.encoders.spec import EncoderSpec, Need, Taps
from pfedst.encoders.stored import STORED, TapDtype, encoded


class Layout:
    """Fields of a row, all of a fixed size.

    Attributes:
        kind: what a row holds.
        dtype: storage type of the largest field.
    """

    kind: Need
    dtype: str

    @property
    @abstractmethod
    def fields(self) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """Shape and dtype of each field of a row."""

    @property
    def field_bytes(self) -> dict[str, int]:
        """Bytes of each field of a row."""
        return {name: math.prod(shape) * dtype.itemsize for name, (shape, dtype) in self.fields.items()}

    @property
    def row_bytes(self) -> int:
        """Bytes of a row, over all fields."""
        return sum(self.field_bytes.values())


@dataclass(frozen=True)
class ImageLayout(Layout):
    """One field, `pixels`: a square of RGB in 8 bits, (3, S, S).

    Attributes:
        image_size: S.
        kind: `images`.
        dtype: `uint8`.
    """

    image_size: int
    kind: Need = "images"
    dtype: str = "uint8"

    @property
    def fields(self) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """Shape and dtype of the pixels."""
        return {"pixels": ((3, self.image_size, self.image_size), torch.uint8)}


@dataclass(frozen=True)
class PieceLayout(Layout):
    """One field, `piece`: a part of a decoded image of any size (see `WholeImageStore`).

    Attributes:
        piece_bytes: bytes of a part. The last part of an image is half empty on average.
        kind: `images`.
        dtype: `uint8`.
    """

    piece_bytes: int = 2**16
    kind: Need = "images"
    dtype: str = "uint8"

    @property
    def fields(self) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """Shape and dtype of a part."""
        return {"piece": ((self.piece_bytes,), torch.uint8)}


@dataclass(frozen=True)
class TapLayout(Layout):
    """Fields of a row of taps. Every store of taps has `pooled` in float32: it is small, and class prototypes need it.

    Attributes:
        kind: `pooled`, `tokens` or `taps`.
        dtype: storage type of tokens and taps.
        layers: number of token tensors in a row: L for taps, 1 for tokens, 0 for pooled.
        tokens, width, embedding: N, D, E.
        corrected: True if the taps have a correction (see `Taps`).
    """

    kind: Need
    dtype: TapDtype
    layers: int
    tokens: int
    width: int
    embedding: int
    corrected: bool

    @classmethod
    def of(cls, spec: EncoderSpec, kind: Need, dtype: TapDtype, corrected: bool) -> TapLayout:
        """Return the layout for an encoder. The dtype of a store of `pooled` is always float32."""
        layers = {"pooled": 0, "tokens": 1, "taps": spec.layers}[kind]
        if kind == "pooled":
            dtype = "float32"
        return cls(kind, dtype, layers, spec.tokens, spec.width, spec.embedding, corrected and kind == "taps")

    @property
    def fields(self) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """Shape and dtype of each field of a row."""
        fields: dict[str, tuple[tuple[int, ...], torch.dtype]] = {"pooled": ((self.embedding,), torch.float32)}
        if self.layers:
            fields["values"] = ((self.layers, self.tokens, self.width), STORED[self.dtype])
        if self.layers and self.dtype == "int8":
            fields["scales"] = ((self.layers, self.tokens), torch.float32)
        if self.corrected:
            fields["correction"] = ((self.width,), torch.float32)
        return fields

    def pack(self, answers: Mapping[Need, Taps]) -> dict[str, Tensor]:
        """Convert the encoder's output for a batch to rows, by field."""
        rows = {"pooled": answers["pooled"].tensors[0]}
        if self.kind != "pooled":
            taps = answers[self.kind]
            values, scales = encoded(torch.stack(taps.tensors, 1), self.dtype)
            rows["values"] = values
            if scales is not None:
                rows["scales"] = scales
            if taps.correction is not None:
                rows["correction"] = taps.correction
        return {name: rows[name].cpu().contiguous() for name in self.fields}


def layout_of(values: Mapping[str, Any]) -> Layout:
    """Return the layout that a manifest describes.

    Raises:
        KeyError, TypeError: these are not the values of a layout.
    """
    if "piece_bytes" in values:
        return PieceLayout(**values)
    return ImageLayout(**values) if values["kind"] == "images" else TapLayout(**values)
