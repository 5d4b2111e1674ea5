"""Find photographs of the same object: copies (re-encoded, resized, brightened, turned, mirrored) and repeated shots.

The usual perceptual hash finds copies, but not a second photograph of a lesion, which is shifted, turned by a few
degrees and lit differently. The hash used here is the power spectrum of the image after its lighting is removed: a
shift does not change the spectrum, and a turn turns it. Pairs with similar spectra are then aligned and compared pixel
by pixel (phase correlation, Kuglin and Hines 1975).

Thresholds were set on 5,984 dermoscopy images. The seven pairs above LIKE were, by eye, two photographs of one lesion,
with likenesses from 0.41; the highest likeness of the other pairs was 0.31. Reported pairs must be checked by eye.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from pfedst.data.threads import track

SIDE = 112
"""Side of a thumbnail in pixels."""
SMALLEST = 24
"""Minimum shorter side in pixels of a compared image: at 16 pixels many different images look alike, at 28 none."""
LOWEST, HIGHEST = 2, 12
"""Range of frequencies over which spectra are compared, in cycles per image."""
MARGIN = 4
"""Additional cycles per image, for turned and scaled spectra."""
TURNS = (-4.0, 0.0, 4.0)
SCALES = (0.93, 1.0, 1.075)
FINE = [(turn, scale) for turn in (-2.0, 0.0, 2.0) for scale in (0.97, 1.0, 1.03)]
LIKE_SPECTRUM = 0.50
CANDIDATES = 8
"""Maximum number of pairs with similar spectra per image, on average, that are compared by pixels; 6,000 photographs
have 1,600 in all."""
WORTH_REFINING = 0.18
LIKE = 0.36
FURTHEST_SHIFT = 28
"""In pixels of a thumbnail."""
BATCH = 64
ROWS = 512


class Alike(NamedTuple):
    """Two images, by their positions, and their likeness: 1 is the same picture. Reported pairs have LIKE or more."""

    first: int
    second: int
    likeness: float


class _Change(NamedTuple):
    """The change of one image of a pair: turned by degrees, scaled, then one of four flips."""

    turn: float
    scale: float
    flip: int


def thumbnail(image: Image.Image) -> NDArray[np.uint8] | None:
    """Return the central square in grey, (112, 112), or None if the image is too small to be compared."""
    side = min(image.size)
    if side < SMALLEST:
        return None
    left, top = ((length - side) // 2 for length in image.size)
    box = (left, top, left + side, top + side)
    return np.asarray(image.convert("L").resize((SIDE, SIDE), Image.Resampling.BILINEAR, box), dtype=np.uint8)


def find_alike(thumbnails: Sequence[NDArray[np.uint8]]) -> list[Alike]:
    """Return all pairs that look like one photograph or two photographs of one object, the most similar first.

    The time grows with the square of the number of images: 8 seconds for 6,000 on one core.

    Args:
        thumbnails: (112, 112) each.
    """
    if len(thumbnails) < 2:
        return []
    pictures = torch.from_numpy(np.stack(thumbnails))
    found = []
    candidates = sorted(_like_spectra(pictures).items())
    for start in track(range(0, len(candidates), BATCH), "comparing likely duplicates"):
        batch = candidates[start : start + BATCH]
        for ((first, second), _), likeness in zip(batch, _likeness(pictures, batch), strict=True):
            if likeness >= LIKE:
                found.append(Alike(min(first, second), max(first, second), likeness))
    return sorted(found, key=lambda pair: (-pair.likeness, pair.first, pair.second))


# -- spectra -------------------------------------------------------------------------------------------------------


def _like_spectra(pictures: Tensor) -> dict[tuple[int, int], _Change]:
    """Return pairs whose spectra are similar under some change of the first image, with the best change."""
    spectra = torch.cat([_log_power(_light_out(batch, 3.0, 6.0)) for batch in torch.split(pictures, BATCH)])
    plain = _described(_sampled(spectra, 0.0, 1.0))
    changes, most = _changes(), CANDIDATES * len(pictures)
    found = torch.empty(0, 4, dtype=torch.float64)  # cosine, first, second, number of the change
    for number, change in enumerate(track(changes, "looking for duplicates")):
        changed = _described(_flipped(_sampled(spectra, change.turn, change.scale), change.flip))
        for start in range(0, len(changed), ROWS):
            cosines = changed[start : start + ROWS] @ plain.T
            cosines[torch.arange(len(cosines)), torch.arange(start, start + len(cosines))] = 0.0
            rows, columns = torch.nonzero(cosines >= LIKE_SPECTRUM, as_tuple=True)
            numbers = torch.full_like(rows, number)
            likely = [cosines[rows, columns].double(), (start + rows).double(), columns.double(), numbers.double()]
            found = torch.cat([found, torch.stack(likely, 1)])
            if len(found) > 4 * most:
                found = found[found[:, 0].argsort(descending=True)[:most]]
    best: dict[tuple[int, int], _Change] = {}
    seen: set[tuple[int, int]] = set()
    for _, first, second, number in found[found[:, 0].argsort(descending=True)[:most]].tolist():
        pair = (int(min(first, second)), int(max(first, second)))
        if pair not in seen:
            seen.add(pair)
            best[int(first), int(second)] = changes[int(number)]
    return best


def _changes() -> list[_Change]:
    """Return one of each change and its inverse, since every pair is compared both ways."""
    wanted = []
    for flip in range(4):
        # mirroring reverses a turn, so a mirrored turn is its own inverse; 1.075 and 0.93 are inverse scales
        mirrored = flip in (1, 2)
        for turn in TURNS:
            for scale in SCALES:
                inverse = (SCALES[2 - SCALES.index(scale)], turn if mirrored else -turn)
                if (scale, turn) >= inverse:
                    wanted.append(_Change(turn, scale, flip))
    return wanted


def _log_power(pictures: Tensor) -> Tensor:
    """Return the log power (n, 33, 33) of images (n, 112, 112) at -16 to 16 cycles per image, independent of shifts."""
    reach = HIGHEST + MARGIN
    rows = torch.arange(-reach, reach + 1) % SIDE
    half = torch.fft.rfft2(pictures * _window())[:, rows, : reach + 1].abs().square()
    power = torch.cat([half.flip(1)[:, :, 1:].flip(2), half], 2)
    return (power + 1e-3 * power.mean((1, 2), keepdim=True) + 1e-2).log()


def _sampled(spectra: Tensor, turn: float, scale: float) -> Tensor:
    """Return the spectra (n, 25, 25) of the turned and scaled images, from spectra (n, 33, 33)."""
    reach = HIGHEST + MARGIN
    axis = torch.arange(-HIGHEST, HIGHEST + 1) / (reach + 0.5)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    cosine, sine = math.cos(math.radians(turn)) * scale, math.sin(math.radians(turn)) * scale
    grid = torch.stack([sine * y + cosine * x, cosine * y - sine * x], -1)
    sampled = F.grid_sample(spectra[None], grid[None], align_corners=False, padding_mode="border")
    return sampled[0]


def _described(spectra: Tensor) -> Tensor:
    """Return unit vectors (n, D) of spectra (n, 25, 25).

    They hold half a plane minus the mean of each ring, which is common to all images.
    """
    axis = torch.arange(-HIGHEST, HIGHEST + 1)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    radius = (x.square() + y.square()).float().sqrt()
    kept = (radius >= LOWEST) & (radius <= HIGHEST) & ((x > 0) | ((x == 0) & (y > 0)))
    values, rings = spectra[:, kept], radius[kept].round().long() - LOWEST
    weights = F.one_hot(rings).float()
    values = values - (values @ weights / weights.sum(0)) @ weights.T
    return F.normalize(values, dim=1, eps=1.0)  # about 15 for photographs; noise of a flat picture stays small


# -- pixels --------------------------------------------------------------------------------------------------------


def _likeness(pictures: Tensor, pairs: Sequence[tuple[tuple[int, int], _Change]]) -> list[float]:
    """Return the highest peak of the phase correlation of each pair, with the first image changed.

    Promising pairs are refined.
    """
    first = pictures[[i for (i, _), _ in pairs]].float()
    second = _spectrum(_light_out(pictures[[j for (_, j), _ in pairs]], 1.0, 3.0))
    changes = [change for _, change in pairs]
    best = _peaks(first, second, changes)
    for index in torch.nonzero(best >= WORTH_REFINING).flatten().tolist():
        one, change = first[index : index + 1].expand(len(FINE), -1, -1), changes[index]
        near = [_Change(change.turn + turn, change.scale * scale, change.flip) for turn, scale in FINE]
        best[index] = _peaks(one, second[index : index + 1], near).max()
    return [round(float(likeness), 4) for likeness in best]


def _peaks(first: Tensor, second: Tensor, changes: Sequence[_Change]) -> Tensor:
    """Return peaks (n,) of images (n, 112, 112), changed and in both orientations, with spectra (n or 1, 112, 57)."""
    plain = _light_out(_warped(first, changes), 1.0, 3.0)
    flipped = torch.cat([_flipped(plain[k : k + 1], change.flip) for k, change in enumerate(changes)])
    near = torch.arange(-FURTHEST_SHIFT, FURTHEST_SHIFT + 1) % SIDE
    peaks = []
    for either_way_up in (flipped, flipped.flip(1, 2)):
        correlation = torch.fft.irfft2(_spectrum(either_way_up) * second.conj(), s=(SIDE, SIDE))
        peaks.append(correlation[:, near][:, :, near].amax((1, 2)))
    return torch.maximum(*peaks)


def _warped(pictures: Tensor, changes: Sequence[_Change]) -> Tensor:
    """Turn each image by its degrees and scale it."""
    angles = [math.radians(change.turn) for change in changes]
    maps = [
        [[math.cos(a) / c.scale, math.sin(a) / c.scale, 0.0], [-math.sin(a) / c.scale, math.cos(a) / c.scale, 0.0]]
        for a, c in zip(angles, changes, strict=True)
    ]
    grid = F.affine_grid(torch.tensor(maps), [len(pictures), 1, SIDE, SIDE], align_corners=False)
    warped: Tensor = F.grid_sample(pictures[:, None], grid, align_corners=False, padding_mode="border")
    return warped[:, 0]


def _spectrum(pictures: Tensor) -> Tensor:
    """Return spectra of windowed pictures with mean 0 and length 1, so that a correlation of 1 means identity."""
    pictures = pictures * _window()
    pictures = pictures - pictures.mean((1, 2), keepdim=True)
    length = pictures.square().sum((1, 2), keepdim=True).sqrt().clamp_min(1.0)  # of photographs about 30
    spectrum: Tensor = torch.fft.rfft2(pictures / length)
    return spectrum


def _flipped(squares: Tensor, flip: int) -> Tensor:
    """Return squares (n, S, S) unchanged, mirrored, transposed, or turned by a quarter. Half turns keep a spectrum."""
    if flip >= 2:
        squares = squares.transpose(1, 2)
    return squares.flip(2) if flip % 2 else squares


def _light_out(pictures: Tensor, detail: float, surroundings: float) -> Tensor:
    """Remove lighting and contrast.

    Detail finer than `detail` pixels is kept, relative to its strength in the surroundings.
    """
    pictures = pictures.float()
    fine = pictures - _blurred(pictures, detail)
    return fine / (_blurred(fine.square(), surroundings) + 1).sqrt()


def _blurred(pictures: Tensor, sigma: float) -> Tensor:
    blur = _blur(sigma)
    return blur @ pictures @ blur.T


@cache
def _blur(sigma: float) -> Tensor:
    """Return a Gaussian blur along one side, with mirrored edges, as a matrix (112, 112).

    Here the matrix is faster than a convolution.
    """
    reach = int(4 * sigma + 0.5)
    weights = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / sigma).square())
    columns = torch.arange(SIDE)[:, None] + torch.arange(-reach, reach + 1)
    mirrored = (SIDE - 1) - ((SIDE - 1) - columns.abs()).abs()
    matrix = torch.zeros(SIDE, SIDE)
    return matrix.scatter_add_(1, mirrored, (weights / weights.sum()).expand(SIDE, -1))


@cache
def _window() -> Tensor:
    """Return a Hann window (112, 112). Without it the edges of a picture would be its strongest feature."""
    window = torch.hann_window(SIDE, periodic=False)
    return window[:, None] * window
