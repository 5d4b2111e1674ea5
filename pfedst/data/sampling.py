"""The order of images in an epoch, which depends only on seeds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.utils.data import Sampler

from pfedst.seeds import derive_seed, generator

SamplerKind = Literal["shuffle", "class_balanced"]


@dataclass(frozen=True)
class Draws:
    """The samples of one batch.

    Attributes:
        positions: B positions in the data set.
        seed: seed of the sampler that drew them; None for samples that are not augmented.
        epoch: local epoch.
        times: how often each sample was drawn before in this epoch; empty: never.
    """

    positions: list[int]
    seed: int | None = None
    epoch: int = 0
    times: tuple[int, ...] = ()

    @property
    def seeds(self) -> list[int]:
        """The seed of the augmentation of each sample."""
        assert self.seed is not None
        times = self.times or (0,) * len(self.positions)
        return [
            # the second time in an epoch it is augmented otherwise
            derive_seed(self.seed, "augmentation", self.epoch, position, *((again,) if again else ()))
            for position, again in zip(self.positions, times, strict=True)
        ]


class SeededSampler(Sampler[Draws]):
    """Sampler of batches with a new order in each epoch.

    Order and augmentation depend only on (seed, epoch, index), not on workers.

    Args:
        size: number of samples.
        batch_size: samples of a batch, >= 1; the last batch of an epoch may be smaller, none is dropped.
        seed: seed for this client, round and purpose.
        classes: class index of each sample, to show all classes equally often; None to show every sample once.
    """

    def __init__(self, size: int, batch_size: int, seed: int, classes: Sequence[int] | None = None) -> None:
        self.size = size
        self.batch_size = batch_size
        self.classes = None if classes is None else torch.tensor(list(classes))
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Set the local epoch. Lightning calls this method at the start of each local epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Return the number of batches."""
        return -(-self.size // self.batch_size)

    def __iter__(self) -> Iterator[Draws]:
        """Yield every sample once, or as many of equally frequent classes."""
        randomness = generator(derive_seed(self.seed, "order", self.epoch))
        order = torch.randperm(self.size, generator=randomness)
        times: tuple[int, ...] = ()
        if self.classes is not None:
            order = _balanced(self.classes, randomness)[order]
            times = _times(order.tolist())
        positions = order.tolist()
        for start in range(0, self.size, self.batch_size):
            batch = slice(start, start + self.batch_size)
            yield Draws(positions[batch], self.seed, self.epoch, times[batch])


class InOrder(Sampler[Draws]):
    """Sampler of batches in the order of the data set, without augmentation.

    Args:
        size: number of samples.
        batch_size: samples of a batch, >= 1.
    """

    def __init__(self, size: int, batch_size: int) -> None:
        self.size = size
        self.batch_size = batch_size

    def __len__(self) -> int:
        """Return the number of batches."""
        return -(-self.size // self.batch_size)

    def __iter__(self) -> Iterator[Draws]:
        """Yield every sample once."""
        for start in range(0, self.size, self.batch_size):
            yield Draws(list(range(start, min(start + self.batch_size, self.size))))


def _times(positions: Sequence[int]) -> tuple[int, ...]:
    """Return how often each position occurs before."""
    seen: Counter[int] = Counter()
    times = []
    for position in positions:
        times.append(seen[position])
        seen[position] += 1
    return tuple(times)


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
