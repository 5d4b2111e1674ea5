"""Occlusion maps and their curves against loops by hand, on functions whose answer is known."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from pfedst.errors import ConfigurationError
from pfedst.inference.occlusion import Curves, Grid, area, blurred, centre_map, curves_of, occlusion_maps
from pfedst.seeds import generator

SIDE = 16


def image():
    return torch.rand(1, 3, SIDE, SIDE, generator=generator(0))


def brightness(images):
    """Two models of two classes: mean of red in a corner, and the square of the mean of all."""
    corner, whole = images[:, 0, :4, 4:8].mean((1, 2)), images.mean((1, 2, 3)) ** 2
    return [torch.stack([p, 1 - p], 1) for p in (corner, whole)]


@pytest.mark.parametrize(("window", "stride"), [(4, 4), (8, 4), (6, 2), (5, 4)])
def test_a_map_is_the_mean_fall_over_the_windows_that_cover_a_cell(window, stride) -> None:
    x, grid = image(), Grid.of(SIDE, window, stride)
    maps = occlusion_maps(x, grid, brightness, 0)
    hidden, before = blurred(x), brightness(x)
    falls, covers = torch.zeros(2, SIDE, SIDE), torch.zeros(SIDE, SIDE)
    starts = range(0, SIDE - window + stride, stride)
    for top in starts:
        for left in starts:
            changed = x.clone()
            place = (..., slice(top, top + window), slice(left, left + window))
            changed[place] = hidden[place]
            covers[place] += 1
            for model, (old, new) in enumerate(zip(before, brightness(changed), strict=True)):
                falls[(model, *place[1:])] += float(old[0, 0] - new[0, 0])
    expected = F.avg_pool2d((falls / covers)[:, None], stride)[:, 0]
    assert torch.allclose(maps, expected, atol=1e-6)
    # the other class falls where this one rises
    assert torch.allclose(occlusion_maps(x, grid, brightness, 1), -maps, atol=1e-6)


def test_the_models_share_each_pass() -> None:
    calls = []

    def counted(images):
        calls.append(len(images))
        return brightness(images)

    occlusion_maps(image(), Grid.of(SIDE, 4, 4), counted, 0)
    assert sum(calls) == 1 + 16  # the image, and a window at each cell


def test_curves_change_the_cells_in_the_order_of_the_map() -> None:
    x, grid = torch.ones(1, 3, SIDE, SIDE), Grid.of(SIDE, 4, 4)
    x[..., :8, :] = 0
    hidden = blurred(x)
    order = torch.arange(16.0).reshape(4, 4)  # the last cell first
    (curves,), _ = curves_of(x, grid, lambda images: 2 * [brightness(images)[1]], 0, order[None])
    counts = [round(share * 16) for share in curves.shares]
    assert counts == [0, 2, 5, 8, 11, 16]
    for count, deleted, inserted in zip(counts, curves.deletion, curves.insertion, strict=True):
        one, other = x.clone(), hidden.clone()
        for cell in range(16 - count, 16):
            place = (..., slice(cell // 4 * 4, cell // 4 * 4 + 4), slice(cell % 4 * 4, cell % 4 * 4 + 4))
            one[place], other[place] = hidden[place], x[place]
        assert deleted == pytest.approx(float(brightness(one)[1][0, 0]), abs=1e-6)
        assert inserted == pytest.approx(float(brightness(other)[1][0, 0]), abs=1e-6)


def test_a_map_of_what_counts_beats_its_opposite() -> None:
    x, grid = image(), Grid.of(SIDE, 4, 4)
    x[:, 0, :4, 4:8] = 1.0  # bright where the first model looks
    x[:, 0, 4:] = 0.0
    found = occlusion_maps(x, grid, brightness, 0)[0]
    assert int(found.argmax()) == 1  # first row, second column
    (own, opposite), _ = curves_of(x, grid, brightness, 0, torch.stack([found, -found]))
    fall = 1 - float(blurred(x)[:, 0, :4, 4:8].mean())
    assert fall > 0.2
    # the cell is among the first 2 of 16, and in the other order not among the first 11
    assert own.score == pytest.approx(fall * (1 - 2 / 16), abs=1e-5)
    assert opposite.score == pytest.approx(-fall * (1 - 5 / 16), abs=1e-5)


def test_the_score_is_the_area_between_the_curves() -> None:
    x, y = (0.0, 0.25, 1.0), (0.8, 0.1, 0.3)
    assert area(x, y) == pytest.approx(np.trapezoid(y, x))
    assert Curves(x, y, (0.3, 0.7, 0.8)).score == pytest.approx(0.125 + 0.5625 - 0.1125 - 0.15)


def test_the_centre_is_highest_and_the_same_from_all_sides() -> None:
    centre = centre_map(Grid.of(112))
    assert centre.shape == (7, 7)
    assert centre[3, 3] == 1
    assert torch.equal(centre, centre.T)
    assert torch.equal(centre, centre.flip(0))
    assert float(centre[3, 5]) == pytest.approx(np.exp(-0.5))  # two cells of seven are one standard deviation


@pytest.mark.parametrize(
    ("side", "cells"), [(112, 7), (224, 7), (336, 7), (384, 8), (64, 8), (512, 8), (256, 8), (32, 8)]
)
def test_a_grid_has_about_seven_cells_and_windows_of_two(side, cells) -> None:
    grid = Grid.of(side)
    assert (grid.cells, grid.window) == (cells, 2 * side // cells)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"stride": 5}, "--stride 5: must divide the side of the input, 16 pixels"),
        ({"stride": 16}, "--stride 16"),
        ({"stride": 0}, "--stride 0"),
        ({"window": 1}, "--window 1: must be from the stride, 2, to 16 pixels"),
        ({"window": 17}, "--window 17"),
    ],
)
def test_a_grid_that_does_not_fit_is_refused(options, words) -> None:
    with pytest.raises(ConfigurationError, match=words):
        Grid.of(SIDE, **options)
