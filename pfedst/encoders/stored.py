"""Taps as a cache keeps them: in fewer bytes, decoded where they are used."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from pfedst.encoders.spec import Need, Taps

TapDtype = Literal["float32", "bfloat16", "float16", "int8"]
"""How a number of a token is kept; `int8` has one float32 scale a token, the largest of its channels over 127."""

STORED: dict[TapDtype, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "int8": torch.int8,
}


def encoded(tokens: Tensor, dtype: TapDtype) -> tuple[Tensor, Tensor | None]:
    """Tokens (..., D) float32 -> their stored form, and the scales (...) of int8."""
    if dtype != "int8":
        return tokens.to(STORED[dtype]), None
    # a token of zeros has a scale too; NaN and infinity stay what they are, for the store to refuse
    scales = (tokens.abs().amax(-1) / 127).clamp_min(torch.finfo(torch.float32).tiny)
    return (tokens / scales[..., None]).round().to(torch.int8), scales


def decoded(values: Tensor, scales: Tensor | None) -> Tensor:
    """The inverse of `encoded`, to float32 and to the precision of the stored form."""
    return values.float() if scales is None else values * scales[..., None]


@dataclass(frozen=True)
class StoredTaps:
    """A batch from a cache, in place of its images.

    Attributes:
        kind: what `tensors` holds, as in `Taps`.
        tensors: as in `Taps`, in the stored form.
        scales: one tensor (B, N) for each of them with int8, otherwise nothing.
        correction: as in `Taps`.
    """

    kind: Need
    tensors: tuple[Tensor, ...]
    scales: tuple[Tensor, ...] = ()
    correction: Tensor | None = None

    def __len__(self) -> int:
        """Number of images."""
        return len(self.tensors[0])

    def to(self, device: torch.device | str) -> StoredTaps:
        """The same on a device, still in the stored form: a quarter of the bytes with int8."""
        return replace(
            self,
            tensors=tuple(tensor.to(device) for tensor in self.tensors),
            scales=tuple(scale.to(device) for scale in self.scales),
            correction=None if self.correction is None else self.correction.to(device),
        )

    def decode(self) -> Taps:
        """Taps in float32."""
        scales = self.scales or (None,) * len(self.tensors)
        tensors = tuple(decoded(values, scale) for values, scale in zip(self.tensors, scales, strict=True))
        return Taps(self.kind, tensors, self.correction)


Inputs = Tensor | StoredTaps
"""What a data set hands out for a batch: images (B, 3, H, W), or what a cache kept of them."""
