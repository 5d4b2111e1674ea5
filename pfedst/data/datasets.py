"""The data set of one site and split, its transforms, and a sampler whose order depends only on seeds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import torch
from open_clip.transform import ResizeKeepRatio
from torch import Tensor
from torch.utils.data import Dataset, Sampler
from torchvision.transforms import v2

from pfedst.data.augmentation import CheckedTransform, Preset
from pfedst.data.sources import ImageSource, JoinedSource
from pfedst.encoders.spec import Preprocessing
from pfedst.seeds import derive_seed, generator, seeded

SamplerKind = Literal["shuffle", "class_balanced"]


class Draw(NamedTuple):
    """A training sample: its position in the data set and the seed of its augmentation."""

    position: int
    seed: int


class SeededSampler(Sampler[Draw]):
    """Sampler with a new order in each epoch.

    Order and augmentation depend only on (seed, epoch, index), not on workers.

    Args:
        size: number of samples.
        seed: seed for this client, round and purpose.
        classes: class index of each sample, to show all classes equally often; None to show every sample once.
    """

    def __init__(self, size: int, seed: int, classes: Sequence[int] | None = None) -> None:
        self.size = size
        self.classes = None if classes is None else torch.tensor(list(classes))
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Set the local epoch. Lightning calls this method at the start of each local epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Return the number of samples."""
        return self.size

    def __iter__(self) -> Iterator[Draw]:
        """Yield every sample once, or as many of equally frequent classes."""
        randomness = generator(derive_seed(self.seed, "order", self.epoch))
        order = torch.randperm(self.size, generator=randomness)
        if self.classes is not None:
            order = _balanced(self.classes, randomness)[order]
        times: Counter[int] = Counter()
        for index in order.tolist():
            # the second time in an epoch it is augmented otherwise
            again = (times[index],) if times[index] else ()
            times[index] += 1
            yield Draw(index, derive_seed(self.seed, "augmentation", self.epoch, index, *again))


def _balanced(classes: Tensor, randomness: torch.Generator) -> Tensor:
    """Draw as many samples as there are, of equally many of each class that occurs; return their indices by class.

    The classes that get one sample more, where the division leaves a remainder, are drawn. A sample is drawn again only
    after all others of its class.
    """
    found = sorted(set(classes.tolist()))
    share, remainder = divmod(len(classes), len(found))
    more = set(torch.randperm(len(found), generator=randomness)[:remainder].tolist())
    drawn = []
    for number, index in enumerate(found):
        members, wanted = (classes == index).nonzero().flatten(), share + (number in more)
        turns = -(-wanted // len(members))
        order = torch.cat([torch.randperm(len(members), generator=randomness) for _ in range(turns)])
        drawn.append(members[order[:wanted]])
    return torch.cat(drawn)


def shown_counts(counts: Sequence[int], sampler: SamplerKind) -> list[int]:
    """Return the number of images by class that a sampler shows in an epoch, of the number that there are.

    For `class_balanced` it is the mean over epochs, rounded: equal for all classes that occur.
    """
    if sampler == "shuffle":
        return list(counts)
    each = round(sum(counts) / max(1, sum(map(bool, counts))))
    return [each if number else 0 for number in counts]


def evaluation_transform(preprocessing: Preprocessing) -> v2.Compose:
    """Return the transform of a PIL image to (3, S, S): make it a square by the resize mode, normalise."""
    return v2.Compose([*_to_square(preprocessing), *_to_tensor(preprocessing)])


def _to_square(preprocessing: Preprocessing) -> list[torch.nn.Module]:
    size, mode = preprocessing.image_size, v2.InterpolationMode(preprocessing.interpolation)
    resize: torch.nn.Module
    if preprocessing.resize_mode == "longest":
        resize = ResizeKeepRatio(size, interpolation=mode, longest=1.0)
    else:
        both = preprocessing.resize_mode == "squash"
        resize = v2.Resize([size, size] if both else size, mode, antialias=True)
    # the crop fills up with black where the image is smaller
    return [resize, v2.CenterCrop(size)]


def training_transform(preprocessing: Preprocessing, augmentation: Preset | v2.Transform) -> v2.Compose:
    """Return the training transform.

    `none`: as for evaluation. `flips`: adds both flips (a lesion has no up). `crops`: in place of the resize mode a
    random resized crop, as open_clip trains. A transform of torchvision gets the square image (3, S, S), uint8, before
    it is normalised.

    Raises:
        ConfigurationError: the transform cannot be used on one image, or changes its shape.
    """
    if not isinstance(augmentation, str):
        as_image, *normalised = _to_tensor(preprocessing)
        checked = CheckedTransform(augmentation, preprocessing.image_size)
        return v2.Compose([*_to_square(preprocessing), as_image, checked, *normalised])
    if augmentation == "none":
        return evaluation_transform(preprocessing)
    flips = [v2.RandomHorizontalFlip(), v2.RandomVerticalFlip()]
    if augmentation == "flips":
        return v2.Compose([*flips, evaluation_transform(preprocessing)])
    size, mode = preprocessing.image_size, v2.InterpolationMode(preprocessing.interpolation)
    crop = v2.RandomResizedCrop(size, scale=(0.7, 1.0), interpolation=mode, antialias=True)
    return v2.Compose([crop, *flips, *_to_tensor(preprocessing)])


def _to_tensor(preprocessing: Preprocessing) -> list[torch.nn.Module]:
    normalise = v2.Normalize(list(preprocessing.mean), list(preprocessing.std))
    return [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), normalise]


class SiteDataset(Dataset[tuple[Tensor, int]]):
    """Images and class indices of one site and split.

    Args:
        source: source of the images.
        labels: class index of each image.
        transform: transform for a plain index.
        augmented: transform for a `Draw`.
        views: fixed number of augmented views per image over all epochs; 0 for a new view at each draw.
    """

    def __init__(
        self,
        source: ImageSource,
        labels: Sequence[int],
        transform: v2.Compose,
        augmented: v2.Compose,
        views: int = 0,
    ) -> None:
        self.source = source
        self.labels = list(labels)
        self.transform = transform
        self.augmented = augmented
        self.views = views

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.labels)

    def __getitem__(self, item: Draw | int) -> tuple[Tensor, int]:
        """Return an image (3, S, S), float32, and its class index."""
        if isinstance(item, Draw):
            seed = self.view_seed(item.position, item.seed % self.views) if self.views else item.seed
            with seeded(seed):
                return self.augmented(self.source.load(item.position)), self.labels[item.position]
        return self.transform(self.source.load(item)), self.labels[item]

    def view_seed(self, position: int, view: int) -> int:
        """Return the seed of an augmented view. It depends on the image alone, so all runs share the view."""
        return derive_seed(view, "view", self.source.digest(position))

    @classmethod
    def joined(cls, parts: Sequence[SiteDataset]) -> SiteDataset:
        """Join several data sets with the same transforms to one."""
        first, labels = parts[0], [label for part in parts for label in part.labels]
        sources = JoinedSource([part.source for part in parts])
        return cls(sources, labels, first.transform, first.augmented, first.views)
