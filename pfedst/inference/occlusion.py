"""Occlusion maps of one image, and how well they order its cells: deletion and insertion against other orders.

Shapes: B images, S side of the square input in pixels, n cells along a side, M models, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from pfedst.errors import ConfigurationError

Probabilities = Callable[[Tensor], Sequence[Tensor]]
"""Preprocessed images (B, 3, S, S) -> for each of M models the probabilities (B, K)."""

CELLS = 7
"""Cells along a side if no stride is given, or the nearest number that divides the side."""
FRACTIONS = (1 / 7, 2 / 7, 1 / 2, 5 / 7)
"""Shares of the cells that are removed or kept, beside none and all."""
CENTRE_SIGMA = 2 / 7
"""Standard deviation of the Gaussian at the centre, as a share of the side."""
BLUR = 4
"""A blurred image has so many different areas along a side."""
IMAGES_AT_ONCE = 16


@dataclass(frozen=True)
class Grid:
    """Cells of an image and the window that is moved over them.

    Attributes:
        side: S, side of the image in pixels.
        window: side of the hidden square in pixels.
        stride: step of the window, and side of a cell, in pixels.
    """

    side: int
    window: int
    stride: int

    @classmethod
    def of(cls, side: int, window: int | None = None, stride: int | None = None) -> Grid:
        """Return the grid of an image: by default about 7 x 7 cells and a window of 2 x 2 cells.

        Raises:
            ConfigurationError: If the stride does not divide the side, or the window is smaller than the stride or
                larger than the image.
        """
        if stride is None:
            divisors = [cells for cells in range(1, side + 1) if side % cells == 0]
            stride = side // min(divisors, key=lambda cells: (abs(cells - CELLS), -cells))
        if stride < 1 or side % stride or stride == side:
            raise ConfigurationError(
                f"--stride {stride}: must divide the side of the input, {side} pixels, and be smaller"
            )
        window = min(2 * stride, side) if window is None else window
        if not stride <= window <= side:
            raise ConfigurationError(f"--window {window}: must be from the stride, {stride}, to {side} pixels")
        return cls(side, window, stride)

    @property
    def cells(self) -> int:
        """Cells along a side, n."""
        return self.side // self.stride

    def pixels(self, cells: Tensor) -> Tensor:
        """Return (..., S, S) for values of cells (..., n, n)."""
        return cells.repeat_interleave(self.stride, -2).repeat_interleave(self.stride, -1)


@dataclass(frozen=True)
class Curves:
    """Probability of the class while cells are blurred (deletion) or shown on a blurred image (insertion).

    The cells change in the order of a map, the highest first.

    Attributes:
        shares: share of the cells that are changed, from 0 to 1.
        deletion: probability with these cells blurred.
        insertion: probability with only these cells shown.
    """

    shares: tuple[float, ...]
    deletion: tuple[float, ...]
    insertion: tuple[float, ...]

    @property
    def score(self) -> float:
        """Area under the insertion curve minus area under the deletion curve. Higher is better."""
        return area(self.shares, self.insertion) - area(self.shares, self.deletion)


def area(x: Sequence[float], y: Sequence[float]) -> float:
    """Return the area under straight lines through points."""
    return sum((x[i + 1] - x[i]) * (y[i] + y[i + 1]) / 2 for i in range(len(x) - 1))


def blurred(images: Tensor) -> Tensor:
    """Return images (B, 3, S, S) in which only 4 x 4 areas are left, with smooth transitions."""
    small = F.adaptive_avg_pool2d(images, BLUR)
    return F.interpolate(small, size=images.shape[-2:], mode="bilinear", align_corners=False)


def occlusion_maps(image: Tensor, grid: Grid, probabilities: Probabilities, target: int) -> Tensor:
    """Return for each model how much the probability of a class falls where a window is blurred, (M, n, n).

    A cell has the mean over all windows that cover it. All models see the same windows in one pass of the encoder.

    Args:
        image: preprocessed image (1, 3, S, S).
        grid: cells and window.
        probabilities: the models.
        target: index of the class.

    Raises:
        ConfigurationError: If the extra `explain` is not installed.
    """
    try:
        from captum.attr import Occlusion
    except ImportError as error:
        raise ConfigurationError(f"explaining needs pip install 'pfedst[explain]' ({error})") from error

    def of_class(images: Tensor) -> Tensor:
        return torch.stack([found[:, target] for found in probabilities(images)], 1).float()

    with torch.no_grad():
        drops: Tensor = Occlusion(of_class).attribute(
            image,
            sliding_window_shapes=(3, grid.window, grid.window),
            strides=(3, grid.stride, grid.stride),
            baselines=blurred(image),
            perturbations_per_eval=IMAGES_AT_ONCE,
        )
    return F.avg_pool2d(drops.mean(1, keepdim=True), grid.stride)[:, 0]


def centre_map(grid: Grid) -> Tensor:
    """Return a Gaussian at the centre of the image, (n, n): what a map must beat, since photographs are centred."""
    n = grid.cells
    place = (torch.arange(n) - (n - 1) / 2) / (CENTRE_SIGMA * n)
    return torch.exp(-(place[:, None] ** 2 + place[None, :] ** 2) / 2)


def curves_of(
    image: Tensor, grid: Grid, probabilities: Probabilities, target: int, maps: Tensor
) -> list[tuple[Curves, ...]]:
    """Return for each model the curves of each of the maps.

    Args:
        image: preprocessed image (1, 3, S, S).
        grid: the cells.
        probabilities: the models.
        target: index of the class.
        maps: values of cells (A, n, n); cells with high values change first, equal values in their order.
    """
    total = grid.cells**2
    counts = sorted({min(max(round(share * total), 1), total) for share in FRACTIONS} - {total})
    hidden = blurred(image)
    changed = []
    for values in maps:
        ranks = values.flatten().argsort(descending=True, stable=True).argsort()
        for count in counts:
            mask = grid.pixels((ranks < count).reshape(grid.cells, grid.cells).to(image.dtype))
            changed += [hidden * mask + image * (1 - mask), image * mask + hidden * (1 - mask)]
    shares = (0.0, *(count / total for count in counts), 1.0)
    stacked = torch.cat([image, hidden, *changed])
    parts = [probabilities(part) for part in torch.split(stacked, IMAGES_AT_ONCE)]
    found = []
    for model in range(len(parts[0])):
        whole, none, *rest = torch.cat([part[model][:, target] for part in parts]).tolist()
        per_map = [rest[start : start + 2 * len(counts)] for start in range(0, len(rest), 2 * len(counts))]
        found.append(tuple(Curves(shares, (whole, *p[0::2], none), (none, *p[1::2], whole)) for p in per_map))
    return found
