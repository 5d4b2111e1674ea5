"""Explain predictions: occlusion maps of one or two models, and whether they beat a random order and the centre.

A map says where blurring an image lowers the probability of a class. It does not say why.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor

from pfedst.encoders import Preprocessing
from pfedst.errors import ConfigurationError, DataError, counted, listed, nearest
from pfedst.inference.images import Item, items_of, reader
from pfedst.inference.occlusion import Curves, Grid, Probabilities, centre_map, curves_of, occlusion_maps
from pfedst.inference.predict import Progress, logits_of
from pfedst.inference.site_model import SiteModel
from pfedst.methods.priors import TargetPrior
from pfedst.seeds import derive_seed, generator

RANDOM, CENTRE = "random", "centre"
"""Orders of cells with which a map is compared."""


@dataclass(frozen=True)
class ModelMap:
    """The map of one model for one image.

    Attributes:
        which: `personal` or `generic`.
        cells: fall of the probability where a cell is blurred (n, n); negative where it rises.
        probability: of the explained class.
        prediction: name of the class that this model predicts.
        curves: deletion and insertion in the order of the map.
        others: the same in a random order, and from the centre outwards.
    """

    which: str
    cells: NDArray[np.float32]
    probability: float
    prediction: str
    curves: Curves
    others: dict[str, Curves]


@dataclass(frozen=True)
class ExplainedImage:
    """One image and its maps.

    Attributes:
        name: path of the image.
        sha256: of its file.
        pixels: the input of the encoder (S, S, 3), in [0, 1].
        class_name: the explained class.
        maps: one for each model.
    """

    name: str
    sha256: str
    pixels: NDArray[np.float32]
    class_name: str
    maps: tuple[ModelMap, ...]


@dataclass(frozen=True)
class Against:
    """Scores of the maps minus those of another order, over images.

    Attributes:
        other: `random` or `centre`.
        score: mean score of the other order.
        difference: mean difference; above 0 if the maps are better.
        standard_error: of the mean difference; None for one image.
        better: number of images on which the map is better.
    """

    other: str
    score: float
    difference: float
    standard_error: float | None
    better: int

    @property
    def is_beaten(self) -> bool:
        """True if the difference is above twice its standard error."""
        return self.standard_error is not None and self.difference > 2 * self.standard_error


@dataclass(frozen=True)
class MapSummary:
    """Mean scores of the maps of one model over images."""

    which: str
    images: int
    score: float
    against: tuple[Against, ...]


def explain(
    models: Sequence[SiteModel],
    images: Any,
    class_name: str | None = None,
    window: int | None = None,
    stride: int | None = None,
    prior: str | None = None,
    console: Console | None = None,
) -> list[ExplainedImage]:
    """Return maps of one or more models that share an encoder, for the same class of each image.

    Args:
        models: one model, or several of the same run.
        images: see `items_of`.
        class_name: the class to explain; None for the class that the first model predicts.
        window: side of the blurred square in pixels of the input; default: two cells.
        stride: step of the window, and side of a cell, in pixels of the input; default: about a seventh of the side.
        prior: class frequencies that probabilities are for; see `SiteModel.target`.
        console: shows progress and the time left; None for none.

    Raises:
        ConfigurationError: If an option is out of range, the class is unknown, or the extra `explain` is missing.
        DataError: If images cannot be read.
    """
    first = models[0]
    if class_name is not None and class_name not in first.class_names:
        raise ConfigurationError(
            f"--class {class_name}: the model has no such class.{nearest(class_name, first.class_names)} There are: "
            f"{', '.join(first.class_names)}"
        )
    preprocessing = first.encoder.preprocessing
    grid = Grid.of(preprocessing.image_size, window, stride)
    probabilities = probabilities_of(models, [model.target(prior) for model in models])
    items = items_of(images)
    loaded = _read_all(items, reader(preprocessing, first.pixel_range))
    progress = Progress("explain", len(items), console)
    explained = []
    for number, (item, (pixels, sha256)) in enumerate(zip(items, loaded, strict=True)):
        maps, index = _maps(models, pixels[None], grid, probabilities, class_name, number)
        explained.append(
            ExplainedImage(item.name, sha256, _shown(pixels, preprocessing), first.class_names[index], maps)
        )
        progress.done(number + 1)
    return explained


def _read_all(items: Sequence[Item], read: Callable[[Item], tuple[Tensor, str]]) -> list[tuple[Tensor, str]]:
    """Read all images before the first map, since the maps of an image take seconds.

    Raises:
        DataError: images cannot be read; it names all of them.
    """
    loaded, errors = [], []
    for item in items:
        try:
            loaded.append(read(item))
        except DataError as error:
            errors.append(str(error))
    if errors:
        what = f"{len(errors)} of {counted(len(items), 'image')} cannot be read, and no map was made"
        raise DataError(f"{what}; repair them or leave them out: {listed(errors, '; ')}")
    return loaded


def probabilities_of(models: Sequence[SiteModel], targets: Sequence[TargetPrior]) -> Probabilities:
    """Return a function from images to the probabilities of each model, in one pass of the encoder."""

    def computed(images: Tensor) -> list[Tensor]:
        logits = logits_of(models, images, "32")
        return [model.probabilities(of, target) for model, of, target in zip(models, logits, targets, strict=True)]

    return computed


def _maps(
    models: Sequence[SiteModel],
    image: Tensor,
    grid: Grid,
    probabilities: Probabilities,
    class_name: str | None,
    number: int,
) -> tuple[tuple[ModelMap, ...], int]:
    """Return the map of each model for one image (1, 3, S, S), and the index of the explained class."""
    names = models[0].class_names
    predicted = [found[0] for found in probabilities(image)]
    index = int(predicted[0].argmax()) if class_name is None else names.index(class_name)
    cells = occlusion_maps(image, grid, probabilities, index)
    by_chance = torch.rand(grid.cells, grid.cells, generator=generator(derive_seed(0, "random map", number)))
    orders = torch.cat([cells, by_chance[None], centre_map(grid)[None]])
    curves = curves_of(image, grid, probabilities, index, orders)
    maps = []
    for place, model in enumerate(models):
        *own, chance, centre = curves[place]
        found = predicted[place]
        maps.append(
            ModelMap(
                which=model.which,
                cells=cells[place].numpy(),
                probability=float(found[index]),
                prediction=names[int(found.argmax())],
                curves=own[place],
                others={RANDOM: chance, CENTRE: centre},
            )
        )
    return tuple(maps), index


def _shown(pixels: Tensor, preprocessing: Preprocessing) -> NDArray[np.float32]:
    """Return an image (S, S, 3) in [0, 1] for the normalised image (3, S, S)."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (preprocessing.mean, preprocessing.std))
    found: NDArray[np.float32] = (pixels * std + mean).clamp(0, 1).permute(1, 2, 0).numpy()
    return found


def summarise(explained: Sequence[ExplainedImage]) -> list[MapSummary]:
    """Return for each model the mean scores of its maps, and how they compare with the other orders."""
    found = []
    for place, first in enumerate(explained[0].maps):
        maps = [image.maps[place] for image in explained]
        scores = [single.curves.score for single in maps]
        against = []
        for other in (RANDOM, CENTRE):
            others = [single.others[other].score for single in maps]
            differences = [own - theirs for own, theirs in zip(scores, others, strict=True)]
            error = stdev(differences) / len(differences) ** 0.5 if len(differences) > 1 else None
            better = sum(difference > 0 for difference in differences)
            against.append(Against(other, fmean(others), fmean(differences), error, better))
        found.append(MapSummary(first.which, len(maps), fmean(scores), tuple(against)))
    return found
