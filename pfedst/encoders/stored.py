"""Taps in the form in which a cache stores them: in fewer bytes, decoded on use."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from pfedst.encoders.spec import Need, Taps

TapDtype = Literal["float32", "bfloat16", "float16", "int8"]
"""Storage type of the numbers of a token. `int8` has one float32 scale per token: its largest absolute value / 127."""

STORED: dict[TapDtype, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "int8": torch.int8,
}


def encoded(tokens: Tensor, dtype: TapDtype) -> tuple[Tensor, Tensor | None]:
    """Return tokens (..., D) float32 in their stored form, and the scales (...) of int8."""
    if dtype != "int8":
        return tokens.to(STORED[dtype]), None
    # a token of zeros gets a nonzero scale; NaN and infinity are kept, so that the store refuses them
    scales = (tokens.abs().amax(-1) / 127).clamp_min(torch.finfo(torch.float32).tiny)
    return (tokens / scales[..., None]).round().to(torch.int8), scales


def decoded(values: Tensor, scales: Tensor | None) -> Tensor:
    """Inverse of `encoded`: return float32, up to the precision of the stored form."""
    return values.float() if scales is None else values * scales[..., None]


@dataclass(frozen=True)
class StoredTaps:
    """A cached batch, used in place of images.

    Attributes:
        kind: content of `tensors`, as in `Taps`.
        tensors: as in `Taps`, in the stored form.
        scales: with int8 one tensor (B, N) for each of `tensors`; otherwise empty.
        correction: as in `Taps`.
    """

    kind: Need
    tensors: tuple[Tensor, ...]
    scales: tuple[Tensor, ...] = ()
    correction: Tensor | None = None

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.tensors[0])

    def to(self, device: torch.device | str) -> StoredTaps:
        """Return the batch on another device, still in the stored form: a quarter of the bytes with int8."""
        return replace(
            self,
            tensors=tuple(tensor.to(device) for tensor in self.tensors),
            scales=tuple(scale.to(device) for scale in self.scales),
            correction=None if self.correction is None else self.correction.to(device),
        )

    def decode(self) -> Taps:
        """Return the taps in float32."""
        scales = self.scales or (None,) * len(self.tensors)
        tensors = tuple(decoded(values, scale) for values, scale in zip(self.tensors, scales, strict=True))
        return Taps(self.kind, tensors, self.correction)


Inputs = Tensor | StoredTaps
"""A batch from a data set: images (B, 3, H, W), or cached encoder output for them."""
