"""Taps in the form in which a cache stores them: in fewer bytes, decoded on use."""

from __future__ import annotations

from collections.abc import Callable
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

    def to(self, device: torch.device | str, non_blocking: bool = True) -> StoredTaps:
        """Return the batch on another device, still in the stored form: a quarter of the bytes with int8.

        Args:
            device: the device.
            non_blocking: do not wait for a copy from pinned memory to a GPU. Other copies are complete on return.
        """
        waits = not non_blocking or torch.device(device).type == "cpu"
        return self._each(lambda tensor: tensor.to(device, non_blocking=not waits))

    def pin_memory(self) -> StoredTaps:
        """Return the batch in page-locked memory, from which a GPU copies by itself; torch's loaders call this."""
        return self._each(lambda tensor: tensor.pin_memory())

    def _each(self, change: Callable[[Tensor], Tensor]) -> StoredTaps:
        return replace(
            self,
            tensors=tuple(change(tensor) for tensor in self.tensors),
            scales=tuple(change(scale) for scale in self.scales),
            correction=None if self.correction is None else change(self.correction),
        )

    def decode(self) -> Taps:
        """Return the taps in float32."""
        scales = self.scales or (None,) * len(self.tensors)
        tensors = tuple(decoded(values, scale) for values, scale in zip(self.tensors, scales, strict=True))
        return Taps(self.kind, tensors, self.correction)


Inputs = Tensor | StoredTaps
"""A batch from a data set: images (B, 3, H, W), or cached encoder output for them."""
