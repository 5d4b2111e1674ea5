"""One rule for the range of grey values, whatever the source of an image: which value is black, and which is white.

Images of 8 bits are display levels, and are not changed. For all others the first of these decides:

1. the range that the user gives (`--data.pixel_range`);
2. what the file declares: 16 bits; the window or lookup table of a DICOM file; for floats within 0 to 1 that interval;
3. the smallest and the largest value of the image. This is a guess, so a warning reports it once for a data set.

An image that uses less than a sixteenth of the range that its file declares, such as 12 bits kept in 16, would be
almost black. Which range is meant is not known, so it is refused. Less than a quarter is reported, once for a data set.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pfedst.data.limits import NamelessError
from pfedst.errors import ConfigurationError

PixelRange = tuple[float, float]
BITS_16: PixelRange = (0, 2**16 - 1)
LEAST_USED = 16
"""An image whose values lie in the first 1 / LEAST_USED of the declared range is refused."""
BLOCK = 1 << 20
"""Number of values that are converted at once: floating-point values of a whole image would take much memory."""
DIM = 4
"""An image whose values lie in the first 1 / DIM of the declared range is reported."""
OPTION = "--data.pixel_range (--pixel_range of pfedst data preprocess)"


@dataclass
class GreyScale:
    """Range of the grey values of one data set.

    Attributes:
        given: values that become black and white, as the user gave them; None to use what each file declares.
        reported: kinds of warnings that were logged in this process.
    """

    given: PixelRange | None = None
    reported: set[str] = field(default_factory=set, compare=False)

    @property
    def window(self) -> tuple[float, float] | None:
        """Centre and width of the given range."""
        return None if self.given is None else (sum(self.given) / 2, self.given[1] - self.given[0])

    def to_8_bits(self, values: NDArray[Any], declared: PixelRange | None, name: str) -> NDArray[np.uint8]:
        """Convert grey values to 8 bits. Values outside the range become black or white.

        Args:
            values: (H, W), of any number type.
            declared: range that the file declares, or None.
            name: name of the image, for the warning.

        Raises:
            NamelessError: If a value is not finite, or the declared range is hardly used.
        """
        least, most = float(values.min()), float(values.max())
        if not math.isfinite(least + most):
            raise NamelessError("holds values that are infinite or not a number; replace them")
        if self.given is not None:
            return scaled(values, self.given)
        if declared is None and values.dtype.kind == "f" and least >= 0 and most <= 1:
            declared = (0, 1)
        if declared is None:
            self.report_guess(name, least, most)
            return scaled(values, (least, most))
        check_used(most, declared)
        self.report_dim(name, most, declared)
        if declared == BITS_16:
            return (values >> 8).astype(np.uint8)  # also exact for 8-bit levels that were filled up with zeros
        return scaled(values, declared)

    def report_guess(self, name: str, least: float, most: float) -> None:
        """Log once that ranges are guessed, and note it for `noted_guesses`."""
        if (notes := _notes.get()) is not None:
            notes.append(name)
        self._report(
            "guess",
            f"{name} declares no range of grey values: its smallest value ({least:g}) becomes black, its largest "
            f"({most:g}) white. Other such images are scaled by their own values, so that their brightness cannot be "
            f"compared; set one range with {OPTION}",
        )

    def report_dim(self, name: str, most: float, declared: PixelRange) -> None:
        """Log once that an image uses little of the range that its file declares."""
        low, high = declared
        if low < most < low + (high - low) / DIM:
            self._report(
                "dim",
                f"{name} is dim: its values reach {most:g} of {high:g}, and there may be other such images. If they "
                f"have fewer bits than their files declare, set their range with {OPTION}",
            )

    def _report(self, kind: str, message: str) -> None:
        if kind not in self.reported:
            self.reported.add(kind)
            logging.getLogger("pfedst").warning("%s", message)


_notes: ContextVar[list[str] | None] = ContextVar("guesses", default=None)


@contextmanager
def noted_guesses() -> Iterator[list[str]]:
    """Collect the names of images whose range is guessed while this thread decodes them."""
    notes: list[str] = []
    token = _notes.set(notes)
    try:
        yield notes
    finally:
        _notes.reset(token)


def check_used(most: float, declared: PixelRange) -> None:
    """Refuse an image that would be almost black. A black image is accepted.

    Args:
        most: largest value.
        declared: range that the file declares.

    Raises:
        NamelessError: If less than 1 / LEAST_USED of the range is used.
    """
    low, high = declared
    if low < most < low + (high - low) / LEAST_USED:
        guess = 2 ** max(8, int(most).bit_length()) - 1 if high > 1 else most
        raise NamelessError(
            f"its values reach {most:g} of {high:g}, which is almost black; set {OPTION}, '[0, {guess:g}]' or "
            f"'[0, {high:g}]'"
        )


def scaled(values: NDArray[Any], limits: PixelRange) -> NDArray[np.uint8]:
    """Scale values linearly to 0..255; equal limits give black."""
    low, high = limits
    levels = np.zeros(values.shape, np.uint8)
    if low == high:
        return levels
    rows = max(1, BLOCK // values.shape[1])
    for start in range(0, len(values), rows):
        fractions = (values[start : start + rows].astype(np.float64) - low) / (high - low)
        levels[start : start + rows] = np.rint(255 * fractions.clip(0, 1))
    return levels


def check_range(option: str, limits: PixelRange | None) -> None:
    """Check a range that the user gives.

    Raises:
        ConfigurationError: If it is not two finite numbers, of which the second is larger.
    """
    if limits is None:
        return
    if len(limits) != 2 or not all(math.isfinite(value) for value in limits) or not limits[0] < limits[1]:
        raise ConfigurationError(
            f"{option} {list(limits)}: must be two numbers, the value of black and the larger value of white"
        )
