"""How images must be prepared for an encoder, from the model's own configuration.

The first source that there is counts: options of the user, `open_clip_config.json` (of a hub repository, of a folder,
or beside a file with weights), the configuration of a pretrained tag, and for other weights of a model of open_clip
what its tags have in common. timm's models bring their own.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, get_args

import open_clip
from open_clip.transform import PreprocessCfg

from pfedst.encoders.spec import Interpolation, Preprocessing, ResizeMode
from pfedst.errors import ConfigurationError, WeightsError

KEYS = ("mean", "std", "interpolation", "resize_mode")
OPEN_CLIP: dict[str, Any] = {key: asdict(PreprocessCfg())[key] for key in KEYS}
"""open_clip's defaults, which are CLIP's: a configuration names what differs."""
CROP_MODES: Mapping[str, ResizeMode] = {"center": "shortest", "squash": "squash"}
"""timm's words."""


def of_tags(model: str, given: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what the pretrained tags of an open_clip model say in common, for weights without a configuration.

    Where they differ, open_clip's default is used, and a warning names the options to set.

    Args:
        model: name of the model.
        given: options of the user; what they set needs no warning.
    """
    tags = open_clip.list_pretrained_tags_by_model(model)
    said = [OPEN_CLIP | _known(open_clip.get_pretrained_cfg(model, tag) or {}) for tag in tags]
    common = {key: said[0][key] for key in KEYS if said and all(_same(one[key], said[0][key]) for one in said)}
    if differing := [key for key in KEYS if said and key not in common and key not in given]:
        logging.getLogger("pfedst").warning(
            "encoder %s: its pretrained weights differ in %s; taking open_clip's default, %s. If these weights need "
            "another, set --model.encoder.%s",
            model,
            " and ".join(differing),
            ", ".join(str(OPEN_CLIP[key]) for key in differing),
            differing[0],
        )
    return common


def of_timm(configuration: Mapping[str, Any]) -> dict[str, Any]:
    """Return the preprocessing that a `pretrained_cfg` of timm names.

    `crop_pct`, which cuts off the border of an image, is not applied: the border of a medical image shows something.
    """
    found = {key: configuration[key] for key in ("mean", "std", "interpolation") if configuration.get(key)}
    mode = configuration.get("crop_mode") or "center"
    return found | {"resize_mode": CROP_MODES.get(mode, mode)}


def preprocessing_of(
    model: str, image_size: int, configuration: Mapping[str, Any], given: Mapping[str, Any]
) -> Preprocessing:
    """Return the preprocessing of a configuration, changed by the options of the user.

    Args:
        model: name of the model, for errors.
        image_size: side of the square input in pixels.
        configuration: `mean`, `std`, `interpolation` and `resize_mode`; open_clip's default for those not named.
        given: the same, from the user.

    Raises:
        ConfigurationError: If an option is out of range.
        WeightsError: If the configuration names a preprocessing that pfedst does not have.
    """
    for key, value in given.items():
        if fault := _fault(key, value):
            raise ConfigurationError(f"--model.encoder.{key} {value}: {fault}")
    found = OPEN_CLIP | _known(configuration) | dict(given)
    for key, value in found.items():
        if fault := _fault(key, value):
            raise WeightsError(
                f"encoder {model}: its configuration names {key} {value}: {fault}; set --model.encoder.{key}"
            )
    return Preprocessing(
        image_size, _triple(found["mean"]), _triple(found["std"]), found["interpolation"], found["resize_mode"]
    )


def named(preprocessing: Preprocessing) -> str:
    """Return what differs from CLIP's preprocessing, for the label of an encoder; nothing for CLIP's own."""
    own = {key: getattr(preprocessing, key) for key in KEYS}
    texts = {"mean": "mean {}", "std": "std {}", "interpolation": "{}", "resize_mode": "resized by {}"}
    parts = [texts[key].format(_text(own[key])) for key in KEYS if not _same(own[key], OPEN_CLIP[key])]
    return "".join(f", {part}" for part in parts)


def _known(configuration: Mapping[str, Any]) -> dict[str, Any]:
    return {key: configuration[key] for key in KEYS if configuration.get(key) is not None}


def _fault(key: str, value: Any) -> str | None:
    if key in ("mean", "std"):
        numbers = isinstance(value, Sequence) and len(value) == 3 and all(math.isfinite(number) for number in value)
        above = numbers and (key == "mean" or min(value) > 0)
        return None if above else f"must be three numbers{' above 0' if key == 'std' else ''}, of red, green and blue"
    known = get_args(Interpolation if key == "interpolation" else ResizeMode)
    return None if value in known else f"must be one of {', '.join(known)}"


def _same(one: Any, other: Any) -> bool:
    return bool(one == other if isinstance(one, str) else list(one) == list(other))


def _text(value: Any) -> str:
    return value if isinstance(value, str) else " ".join(f"{number:g}" for number in value)


def _triple(values: Sequence[float]) -> tuple[float, float, float]:
    one, two, three = (float(value) for value in values)
    return one, two, three
