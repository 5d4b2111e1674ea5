"""Augmentation of training images: the presets, or any transform of torchvision's v2."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Callable, Mapping
from enum import Enum
from types import FunctionType
from typing import Any, Literal, TypeAlias, cast

import torch
from torch import Tensor, nn
from torchvision.transforms import v2
from torchvision.tv_tensors import Image

from pfedst.errors import ConfigurationError
from pfedst.seeds import generator, seeded

Preset = Literal["none", "flips", "crops"]
Augmentation: TypeAlias = Preset | v2.Transform | list[v2.Transform]
OWN = set(vars(nn.Module()))
"""Attributes that every module has."""
TRIALS = 4
"""Seeds with which a transform is tried before a run."""
OPTION = "--data.augmentation"


def as_one(augmentation: Augmentation) -> Preset | v2.Transform:
    """Return a preset or one transform; a list becomes a `Compose`.

    Raises:
        ConfigurationError: the list is empty.
    """
    if not isinstance(augmentation, list):
        return augmentation
    if not augmentation:
        raise ConfigurationError(f"{OPTION}: the list is empty; name a transform, or use none")
    return v2.Compose(augmentation)


def augmentation_text(augmentation: Preset | v2.Transform) -> str:
    """Return an augmentation in words, with the options that differ from their defaults: `RandAugment(num_ops=3)`."""
    return augmentation if isinstance(augmentation, str) else _text(augmentation)


def augmentation_key(augmentation: Preset | v2.Transform) -> str:
    """Return all that the views of an image depend on: a preset, or class and whole configuration of a transform.

    Raises:
        ConfigurationError: the transform holds something that no configuration can name, such as a lambda.
    """
    if augmentation == "flips":
        return "flips of the square"  # views of `flips` were once resized after they were flipped
    return augmentation if isinstance(augmentation, str) else json.dumps(_plain(augmentation), sort_keys=True)


class CheckedTransform(nn.Module):
    """Apply a transform to an image (3, S, S), uint8, and check what it returns.

    Args:
        transform: the transform.
        size: S.

    Raises:
        ConfigurationError: the transform fails on such an image, changes its shape, or draws from another random
            generator than torch's.
    """

    def __init__(self, transform: v2.Transform, size: int) -> None:
        super().__init__()
        self.transform = transform
        self.size = size
        pixels = torch.randint(256, (3, size, size), dtype=torch.uint8, generator=generator(0))
        for seed in range(TRIALS):
            found = []
            for _ in range(2):
                with seeded(seed):
                    found.append(self(Image(pixels.clone())))
            if not torch.equal(*found):
                raise ConfigurationError(
                    f"{OPTION} {_text(transform)}: the same seed gives different images; a transform may draw random "
                    f"numbers from torch's generator only"
                )
        augmentation_key(transform)  # a transform that cannot be named is refused before a run

    def forward(self, image: Image) -> Image:
        """Return the image (3, S, S) that the transform makes of an image."""
        try:
            changed = cast(Image, v2.functional.to_image(self.transform(image)))
        except (TypeError, ValueError, RuntimeError, NotImplementedError, AttributeError) as error:
            raise ConfigurationError(
                f"{OPTION} {_text(self.transform)}: it fails on a single image without its label ({error}); use a "
                f"transform that takes one image"
            ) from error
        if changed.shape != image.shape:
            raise ConfigurationError(
                f"{OPTION} {_text(self.transform)}: it makes {tuple(changed.shape)} of an image {tuple(image.shape)}; "
                f"an image must keep its size of {self.size} pixels and its three channels: choose another transform, "
                f"or its size {self.size}"
            )
        return changed


def _text(value: Any) -> str:
    """Return a value of a transform in words."""
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_text, value))}]"
    if isinstance(value, v2.Compose):
        return f"Compose({', '.join(map(_text, value.transforms))})"
    if not isinstance(value, nn.Module):
        return f"{_plain(value)}"
    defaults = inspect.signature(type(value)).parameters
    held = {name: (getattr(value, name, of.default), of.default) for name, of in defaults.items()}
    changed = {name: option for name, (option, default) in held.items() if _plain(option) != _plain(default)}
    own = type(value).__module__.startswith("torchvision.transforms.v2")
    name = type(value).__name__ if own else _path(type(value))
    return f"{name}({', '.join(f'{key}={_text(option)}' for key, option in changed.items())})"


def _plain(value: Any) -> Any:
    """Return a value of a transform as JSON, whole.

    Raises:
        ConfigurationError: the value has no name.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    if isinstance(value, Mapping):
        return sorted(([_plain(key), _plain(part)] for key, part in value.items()), key=json.dumps)
    if isinstance(value, Tensor):
        content = value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
        return [str(value.dtype), list(value.shape), hashlib.sha256(content).hexdigest()]
    if isinstance(value, Enum | torch.dtype):
        return str(value)
    if isinstance(value, nn.Module):
        options = {key: part for key, part in vars(value).items() if key not in OWN}
        options |= dict(value.named_children()) | dict(value.named_parameters()) | dict(value.named_buffers())
        return {"class": _path(type(value)), **{key: _plain(part) for key, part in options.items()}}
    if isinstance(value, type | FunctionType) and "<" not in value.__qualname__:
        return _path(value)
    raise ConfigurationError(
        f"{OPTION}: it holds {value!r}, which a configuration cannot hold; write a class of your own, derived from "
        f"torchvision.transforms.v2.Transform, with numbers and texts as options"
    )


def _path(value: type | Callable[..., Any]) -> str:
    return f"{value.__module__}.{value.__qualname__}"
