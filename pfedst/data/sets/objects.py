"""DatasetSites: torch Datasets of one's own program, a data set a site and split."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms.v2.functional import to_pil_image

from pfedst.data.datamodule import FederatedDataModule
from pfedst.data.decoding import ImageHeader
from pfedst.data.sites import LabelledImages, Sites, Split, split_of
from pfedst.data.sources import content_digest
from pfedst.errors import ConfigurationError, DataError

Datasets = Mapping[str, Mapping[str, Any]]
"""Site -> split -> torch Dataset of (image, class index)."""


class DatasetSource:
    """Images of a torch Dataset of (image, class index).

    Args:
        dataset: with a length; an image is one of Pillow, an array (H, W, 3) or (H, W) of uint8, or a tensor (3, H, W)
            or (1, H, W) of uint8.
        where: name of site and split, for errors.
    """

    def __init__(self, dataset: Any, where: str) -> None:
        self.dataset, self.where = dataset, where

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.dataset)

    def load(self, index: int) -> Image.Image:
        """Return the image in RGB.

        Raises:
            DataError: the data set raises an error, or its item is no image of a known kind.
        """
        image = self.item(index)[0]
        try:
            found = image if isinstance(image, Image.Image) else to_pil_image(image)
            return found.convert("RGB")
        except Exception as error:  # of whatever the item is
            raise DataError(
                f"{self.name(index)}: not a Pillow image, array (H, W, 3) or tensor (3, H, W) of uint8: {error}"
            ) from error

    def item(self, index: int) -> tuple[Any, int]:
        """Return image and class index as the data set gives them.

        Raises:
            DataError: the data set raises an error, its item is no pair, or its image has other values than uint8.
        """
        try:
            image, label = self.dataset[index]
            found = image, int(label)
        except Exception as error:  # of a class that is not ours
            raise DataError(f"{self.name(index)}: the Dataset must return (image, class index): {error!r}") from error
        if isinstance(image, Tensor | np.ndarray) and "uint8" not in str(image.dtype):
            raise DataError(
                f"{self.name(index)}: its values are {image.dtype} and must be uint8, from 0 to 255: take ToTensor and "
                f"normalisation out of the Dataset, since the encoder prepares its images itself"
            )
        return found

    def digest(self, index: int) -> str:
        """Return a hash of size and pixels."""
        image = self.load(index)
        return content_digest(f"{image.size}".encode() + image.tobytes())

    def name(self, index: int) -> str:
        """Return site, split and number of the image."""
        return f"{self.where} image {index}"

    def header(self, index: int) -> ImageHeader:
        """Return the size of the image."""
        image = self.load(index)
        return ImageHeader(image.width, image.height, "RGB")


class DatasetSites(FederatedDataModule):
    """Torch Datasets, for programs that have their images as such: `pfedst.fit(data=DatasetSites({...}))`.

    The command line cannot make them, so that a run of them can be continued, evaluated and repeated from Python only.
    Augment with the option `augmentation` and not in the Datasets: an item must be the same each time.

    Args:
        sites: site -> split (`train`, `test`, and optionally `validation`) -> Dataset of (image, class index).
        class_names: in the order of their indices; default: `classes` of the first Dataset.
        label: a description of the data, for the protocol.
        options: options of FederatedDataModule.

    Raises:
        ConfigurationError: there are no class names, a split has another name, or something is no Dataset.
    """

    def __init__(
        self,
        sites: Datasets | None = None,
        class_names: Sequence[str] | None = None,
        label: str = "torch Datasets",
        **options: Any,
    ) -> None:
        super().__init__(**options)
        _check_given(sites or {})
        self.given = sites
        self.label = label
        names = class_names or _classes_of(sites or {})
        self.names = tuple(str(name) for name in names)
        self.options = {"class_names": list(self.names), "label": label, **options}

    def read(self) -> Sites:
        """Return the sites; every item is read once for its label.

        Raises:
            ConfigurationError: made by the command line, which has no Datasets.
            DataError: an item is no (image, class index).
        """
        if not self.given:
            raise ConfigurationError(
                "--data DatasetSites: the images of this configuration are torch Datasets of a Python program, which "
                "the command line cannot make. Run that program: pfedst.fit(..., data=DatasetSites({...}))"
            )
        return Sites(self.names, {site: _splits(site, parts) for site, parts in self.given.items()})


def _check_given(sites: Any) -> None:
    """Raise a ConfigurationError unless every site has splits of Datasets with a length."""
    shape = 'give {"site": {"train": dataset, "test": dataset}}'
    if not isinstance(sites, Mapping):
        raise ConfigurationError(f"DatasetSites: {shape}, not a {type(sites).__name__}")
    for site, parts in sites.items():
        if not isinstance(parts, Mapping):
            raise ConfigurationError(f'DatasetSites, site "{site}": {shape}, not a {type(parts).__name__}')
        for name, dataset in parts.items():
            if not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
                raise ConfigurationError(
                    f'DatasetSites, site "{site}", {name}: a {type(dataset).__name__} has no length or no items; give '
                    f"a torch Dataset of (image, class index)"
                )


def _splits(site: str, parts: Mapping[str, Dataset[Any]]) -> dict[Split, LabelledImages]:
    found: dict[Split, LabelledImages] = {}
    for name, dataset in parts.items():
        split = split_of(name)
        if split is None:
            raise ConfigurationError(f'site "{site}": no split is called "{name}"; use train, validation and test')
        source = DatasetSource(dataset, f"{site} {split}")
        labels = [source.item(index)[1] for index in range(len(source))]
        groups = [None if group is None else str(group) for group in getattr(dataset, "groups", ())]
        if groups and len(groups) != len(labels):
            raise DataError(f"{site} {split}: {len(groups)} groups for {len(labels)} images; give one group per image")
        found[split] = LabelledImages(source, labels, groups)
    return found


def _classes_of(sites: Datasets) -> Sequence[str]:
    """Return the class names that a Dataset names itself, as those of torchvision do."""
    if not sites:
        return ()
    first = next(dataset for parts in sites.values() for dataset in parts.values())
    classes = getattr(first, "classes", None)
    if not classes:
        raise ConfigurationError(f"DatasetSites: give class_names; {type(first).__name__} has no classes")
    return list(classes)
