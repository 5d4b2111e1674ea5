"""The camera of a simulated site."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Camera:
    """The change that a site applies to every image: channel gains and offsets, gamma, and light from one side."""

    gains: NDArray[np.float64]
    offsets: NDArray[np.float64]
    gamma: float
    light: NDArray[np.float64]
