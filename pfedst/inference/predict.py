"""Predicts the class of images with one or two models of one encoder, in one pass of the encoder."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from itertools import islice
from typing import Any, Literal, NamedTuple, Protocol, get_args

import pandas as pd
import torch
from rich.console import Console
from torch import Tensor

from pfedst.adapters import Adapter
from pfedst.data.grey_scale import PixelRange
from pfedst.encoders import Encoder, Need, Taps
from pfedst.errors import ConfigurationError, DataError
from pfedst.inference.images import Item, items_of, reader
from pfedst.methods.priors import TargetPrior
from pfedst.time_left import time_left

Precision = Literal["32", "bf16-mixed", "16-mixed"]
DTYPES = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
READERS = 2
"""Threads that decode images while the encoder computes."""
PROBABILITY = "probability "
"""Prefix of the columns of probabilities."""
SECONDS_BETWEEN_LINES = 10.0


class Predictor(Protocol):
    """What a prediction needs of a model; see `SiteModel`."""

    @property
    def encoder(self) -> Encoder:
        """The frozen encoder."""
        ...

    @property
    def adapter(self) -> Adapter:
        """Maps what it needs of the encoder to logits."""
        ...

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the K classes, in the order of the logits."""
        ...

    @property
    def which(self) -> str:
        """`personal` or `generic`."""
        ...

    @property
    def pixel_range(self) -> PixelRange | None:
        """Grey values that become black and white."""
        ...

    @property
    def id(self) -> str:
        """A hash of all numbers of the model."""
        ...

    def logits(self, taps: Taps) -> Tensor:
        """Return the logits (B, K) of what the encoder says of B images, on the CPU."""
        ...

    def target(self, prior: str | None) -> TargetPrior:
        """Return the prior that predictions are for."""
        ...

    def probabilities(self, logits: Tensor, target: TargetPrior) -> Tensor:
        """Return the probabilities (B, K) of logits (B, K) at a prior."""
        ...

    def threshold(self, target: TargetPrior) -> float | None:
        """Return the smallest confidence that counts at a prior."""
        ...


class _Read(NamedTuple):
    """An image ready for the encoder, or the reason why it is not."""

    pixels: Tensor | None
    sha256: str
    error: str


def predict(
    models: Sequence[Predictor],
    images: Any,
    prior: str | None = None,
    batch_size: int = 16,
    strict: bool = False,
    precision: Precision = "32",
    console: Console | None = None,
) -> pd.DataFrame:
    """Predict the class of each image with models that share one encoder, which sees each image once.

    Args:
        models: one model, or several of the same run.
        images: see `items_of`.
        prior: class frequencies that predictions are for: `training`, `balanced`, `site`, a file, or None for the
            prior of the run.
        batch_size: images that the encoder computes at once, >= 1.
        strict: raise the error of an image that cannot be read.
        precision: of the encoder and the adapters; the classifier computes in float32.
        console: shows progress; None for none.

    Returns:
        One row an image, in the order of the images: `image` (path, or number), `sha256` (of the file, or of the
            pixels of an image in memory), `prediction`, `confidence` (the largest probability), `abstained` (None where
            there is no threshold for this prior), `probability CLASS` of every class, `model` (its id), `error` (empty
            without one). The columns of further models begin with `generic ` or `personal `.

    Raises:
        DataError: nothing is named, or with `strict` an image cannot be read.
        ConfigurationError: an option is out of range, or predictions cannot be for that prior.
    """
    if batch_size < 1:
        raise ConfigurationError(f"--batch_size {batch_size}: must be 1 or more")
    if precision not in get_args(Precision):
        raise ConfigurationError(f"--precision {precision}: must be one of {', '.join(get_args(Precision))}")
    items, first = items_of(images), models[0]
    targets = [model.target(prior) for model in models]
    logits: list[list[Tensor]] = [[] for _ in models]
    read: list[_Read] = []
    progress = Progress("predict", len(items), console)
    for batch in _batches(_reads(items, first, batch_size), batch_size):
        if strict and (errors := [found.error for found in batch if found.error]):
            raise DataError(errors[0])
        pixels = [found.pixels for found in batch if found.pixels is not None]
        if pixels:
            for table, found in zip(logits, logits_of(models, torch.stack(pixels), precision), strict=True):
                table.append(found)
        read += [found._replace(pixels=None) for found in batch]
        progress.done(len(read))
    columns: dict[str, Any] = {"image": [item.name for item in items], "sha256": [found.sha256 for found in read]}
    for model, target, parts in zip(models, targets, logits, strict=True):
        prefix = "" if model is first else f"{model.which} "
        columns |= {prefix + key: values for key, values in _columns(model, target, parts, read).items()}
    frame: pd.DataFrame = pd.DataFrame(columns | {"error": [found.error for found in read]})
    return frame


def _reads(items: Sequence[Item], model: Predictor, batch_size: int) -> Iterator[_Read]:
    """Read images in their order, some ahead of the encoder."""
    read_image = reader(model.encoder.preprocessing, model.pixel_range)

    def read(item: Item) -> _Read:
        try:
            return _Read(*read_image(item), "")
        except DataError as error:
            return _Read(None, "", str(error))

    ahead: list[Future[_Read]] = []
    waiting = iter(items)
    with ThreadPoolExecutor(READERS) as pool:
        try:
            ahead += [pool.submit(read, item) for item in islice(waiting, 2 * batch_size)]
            while ahead:
                found = ahead.pop(0).result()
                ahead += [pool.submit(read, item) for item in islice(waiting, 1)]
                yield found
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _batches(reads: Iterator[_Read], batch_size: int) -> Iterator[list[_Read]]:
    while batch := list(islice(reads, batch_size)):
        yield batch


@torch.inference_mode()
def logits_of(models: Sequence[Predictor], pixels: Tensor, precision: Precision) -> list[Tensor]:
    """Return the logits (B, K) of each model for images (B, 3, S, S)."""
    encoder = models[0].encoder
    pixels = pixels.to(next(models[0].adapter.parameters(), pixels).device)
    lower: AbstractContextManager[Any] = nullcontext()
    if precision != "32":
        lower = torch.autocast(pixels.device.type, DTYPES[precision])
    needs: list[Need] = sorted({model.adapter.needs for model in models})
    with lower:
        found = encoder.encode_batch(pixels, needs)
        return [model.logits(found[model.adapter.needs]) for model in models]


def _columns(model: Predictor, target: TargetPrior, parts: list[Tensor], read: Sequence[_Read]) -> dict[str, list[Any]]:
    """Return the columns of one model; an image that cannot be read has none of their values."""
    logits = torch.cat(parts) if parts else torch.empty(0, len(model.class_names))
    probabilities = model.probabilities(logits, target) if len(logits) else logits.double()
    confidences, classes = probabilities.max(1) if len(logits) else (torch.empty(0), torch.empty(0, dtype=torch.long))
    threshold = model.threshold(target)
    rows = iter(zip(confidences.tolist(), classes.tolist(), probabilities.tolist(), strict=True))
    table: list[tuple[Any, ...]] = []
    for found in read:
        if found.error:
            table.append((None, None, None, *[None] * len(model.class_names)))
            continue
        confidence, index, all_of_them = next(rows)
        abstained = None if threshold is None else confidence < threshold
        table.append((model.class_names[index], confidence, abstained, *all_of_them))
    names = ["prediction", "confidence", "abstained", *(PROBABILITY + name for name in model.class_names)]
    columns = {name: [row[number] for row in table] for number, name in enumerate(names)}
    return columns | {"model": [model.id] * len(read)}


class Progress:
    """Prints how many images are done, and the time left, at most once in some seconds."""

    def __init__(self, command: str, images: int, console: Console | None) -> None:
        self.command, self.images, self.console = command, images, console
        self.started = self.printed = time.monotonic()

    def done(self, images: int) -> None:
        """Say that so many images are done."""
        now = time.monotonic()
        if self.console is None or images == self.images or now - self.printed < SECONDS_BETWEEN_LINES:
            return
        self.printed = now
        left = time_left((now - self.started) / images * (self.images - images))
        self.console.print(f"{self.command}: {images:,} of {self.images:,} images, {left}", highlight=False)
