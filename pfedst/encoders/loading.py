"""Build image towers: the architecture from open_clip or timm, the weights from a hub, a folder or a file."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
import timm
import torch
from open_clip.timm_model import TimmModel
from open_clip.transformer import VisionTransformer as OpenCLIPVisionTransformer
from timm.models.eva import Eva
from torch import nn

from pfedst.encoders.activation import check_file_activation, config_beside
from pfedst.encoders.layouts import as_open_clip, without_prefix
from pfedst.encoders.preparation import of_timm
from pfedst.encoders.repositories import HUB, folder_weights, repository_config
from pfedst.encoders.timm_towers import TimmTower, fit_positions, runs_block_by_block, take_class_token
from pfedst.encoders.towers import ImageTower, OpenCLIPTower, PooledTower, resized_positions, why_no_tokens
from pfedst.encoders.weights import SPARE_BYTES, check_activation, hub_or_cache, load_strictly, read_file, unreachable
from pfedst.errors import ConfigurationError, WeightsError, nearest
from pfedst.options import FOLDER

open_clip.add_model_config(Path(__file__).parent / "models")

TEXT_TOWER_BYTES = 2**32
"""Bytes that a file may hold for a text tower that is not built."""
NO_TEXT_TOWER = {"context_length": 1, "vocab_size": 1, "width": 8, "heads": 1, "layers": 1}
"""A text tower to fill the place of one that cannot be built."""


@dataclass(frozen=True)
class OpenCLIPModel:
    """An open_clip model with random weights, and what is known about its pretrained ones.

    Attributes:
        architecture: the model.
        preprocessing: how images are prepared, by its configuration; may be empty.
        pretrained: download configuration of a tag, or `file` of a folder; empty for a file of the user and for random
            weights.
        without_text: why the text tower could not be built; empty if it was.
    """

    architecture: Any
    preprocessing: Mapping[str, Any]
    pretrained: Mapping[str, Any]
    without_text: str = ""


@dataclass(frozen=True)
class LoadedFile:
    """What a file of weights held besides the image tower.

    Attributes:
        text: True if it held a text tower that was loaded.
        logit_scale: factor on cosines, or None.
        preprocessing: of `open_clip_config.json` beside the file; may be empty.
    """

    text: bool
    logit_scale: float | None
    preprocessing: Mapping[str, Any]


def open_clip_model(model: str, weights: str, image_size: int | None) -> OpenCLIPModel:
    """Return a randomly initialised open_clip model and the configuration of its pretrained weights.

    Raises:
        WeightsError: If the model or the tag is unknown, or a repository cannot be read.
        ConfigurationError: If the image size is not a multiple of the patch size.
    """
    if model.startswith((HUB, FOLDER)):
        folder, configuration = repository_config(model)
        architecture, without_text = _create(f"{FOLDER}{folder}", model, configuration["model_cfg"], image_size)
        pretrained: dict[str, Any] = {}
        if weights in ("openai", "pretrained"):
            repository = {"hf_hub": f"{model.removeprefix(HUB)}/"}
            pretrained = repository if model.startswith(HUB) else {"file": folder_weights(folder)}
        return OpenCLIPModel(architecture, architecture.visual.preprocess_cfg, pretrained, without_text)
    if model not in open_clip.list_models():
        raise WeightsError(
            f'encoder: open_clip has no model "{model}".{nearest(model, open_clip.list_models())} '
            f"Timm towers are called timm/NAME, hub repositories hf-hub:ORG/NAME, folders local-dir:FOLDER"
        )
    tag: dict[str, Any] = {}
    if weights != "random" and "/" not in weights and not weights.endswith(".safetensors") and "." not in weights:
        tag = open_clip.get_pretrained_cfg(model, weights) or {}
        if not tag:
            tags = ", ".join(open_clip.list_pretrained_tags_by_model(model)) or "none"
            raise WeightsError(
                f'encoder {model}: no pretrained weights "{weights}" (tags of this model: {tags}); give a tag, a '
                f".safetensors file, or random"
            )
        check_activation(model, weights, tag)
    architecture, without_text = _create(model, model, open_clip.get_model_config(model) or {}, image_size)
    return OpenCLIPModel(architecture, tag, tag, without_text)


def _create(source: str, model: str, configuration: Mapping[str, Any], image_size: int | None) -> tuple[Any, str]:
    """Return a model of open_clip, and why it has no text tower if that cannot be built."""
    _check_multiple(image_size, configuration.get("vision_cfg", {}).get("patch_size"))
    options: dict[str, Any] = {"load_weights": False, "pretrained_text": False, "device": torch.get_default_device()}
    if image_size is not None:
        options["force_image_size"] = image_size
    language_model = configuration.get("text_cfg", {}).get("hf_model_name")
    with hub_or_cache() if language_model else nullcontext(), _silent_about_random_weights():
        try:
            return open_clip.create_model(source, **options), ""
        except (OSError, ValueError, RuntimeError, AssertionError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            if not language_model:
                raise WeightsError(f"encoder {model}: open_clip cannot build it: {reason}") from error
        reason = f"its text tower is {language_model}, whose configuration cannot be had from the model hub: {reason}"
        return open_clip.create_model(source, text_cfg=NO_TEXT_TOWER, **options), reason


@contextmanager
def _silent_about_random_weights() -> Iterator[None]:
    """Silence open_clip's warning that no weights are loaded.

    pfedst loads the weights itself, strictly, or states in the label that they are random.
    """
    root, level = logging.getLogger(), logging.getLogger().level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(level)


def _check_multiple(image_size: int | None, patch: int | None) -> None:
    if image_size is not None and patch and (image_size < patch or image_size % patch):
        raise ConfigurationError(f"--model.encoder.image_size {image_size}: must be a multiple of the patch, {patch}")


def open_clip_tower(visual: Any, model: str, image_size: int | None) -> ImageTower:
    """Return the image tower of an open_clip model: block by block if pfedst can run it so, otherwise as a whole."""
    if isinstance(visual, OpenCLIPVisionTransformer):
        return OpenCLIPTower(visual)
    if isinstance(visual, TimmModel) and runs_block_by_block(visual.trunk):
        return _transformer(visual.trunk, image_size, visual.head)
    size = visual.image_size
    whole = visual.trunk if isinstance(visual, TimmModel) else visual
    return _pooled_tower(visual, size[0] if isinstance(size, (tuple, list)) else size, why_no_tokens(whole), model)


def _transformer(vit: Any, image_size: int | None, head: nn.Module | None = None) -> TimmTower:
    _check_multiple(image_size, getattr(vit.patch_embed, "patch_size", (None,))[0])
    return TimmTower(vit, head)


def _pooled_tower(network: nn.Module, image_size: int, limits: str, model: str) -> PooledTower:
    try:
        return PooledTower(network, image_size, limits)
    except (RuntimeError, ValueError, AssertionError) as error:
        raise ConfigurationError(
            f"--model.encoder.image_size {image_size}: encoder {model} cannot take images of this size: {error}"
        ) from error


def load_open_clip(made: OpenCLIPModel, file: Path, model: str) -> LoadedFile:
    """Load a file with the whole model or the image tower alone, in a layout that open_clip reads or transformers'.

    Raises:
        WeightsError: If the file does not fit, or its weights were trained with another activation.
    """
    architecture, what = made.architecture, f"--model.encoder.weights {file}"
    state, metadata = read_file(file, architecture, TEXT_TOWER_BYTES if made.without_text else SPARE_BYTES)
    if metadata.get("model", model) != model:
        raise WeightsError(f"{what}: made for {metadata['model']}; use --model.encoder.model {metadata['model']}")
    state, beside = without_prefix(state), config_beside(file)
    check_file_activation(model, file, state, metadata, beside)
    state = as_open_clip(state, architecture, what)
    scale = state.get("logit_scale")
    tower = {key: value for key, value in state.items() if key.startswith("visual.")}
    text = [key for key in state if key not in tower and not key.startswith("logit_")]
    if not tower:  # the image tower alone, by its own names
        tower, text = {f"visual.{key}": state[key] for key in text}, []
    fitted = _at_size(tower, architecture.visual)
    if text and not made.without_text:
        load_strictly(architecture, state | fitted, f"{what} (whole model)")
    else:
        alone = {key.removeprefix("visual."): value for key, value in fitted.items()}
        load_strictly(architecture.visual, alone, f"{what} (image tower alone)")
    factor = math.exp(float(scale)) if scale is not None and scale.numel() == 1 else None
    return LoadedFile(bool(text) and not made.without_text, factor, beside.get("preprocess_cfg") or {})


def _at_size(tower: dict[str, Any], visual: Any) -> dict[str, Any]:
    """Resample the learned positions of a file to the image size of the tower."""
    fitted, positions = dict(tower), "visual.positional_embedding"
    if positions in fitted and fitted[positions].ndim == 2 and hasattr(visual, "positional_embedding"):
        fitted[positions] = resized_positions(fitted[positions], visual.positional_embedding.shape[0])
    if isinstance(visual, TimmModel) and runs_block_by_block(visual.trunk):
        fit_positions(fitted, visual.trunk, "visual.trunk.pos_embed")
    return fitted


def timm_tower(model: str, weights: str, image_size: int | None) -> tuple[ImageTower, dict[str, Any]]:
    """Return a timm tower with its weights, and how its images are prepared."""
    name = model.removeprefix("timm/")
    if not timm.is_model(name):
        raise WeightsError(f'encoder: timm has no model "{name}".{nearest(name, timm.list_models())}')
    transformer = issubclass(_timm_class(name), (timm.models.VisionTransformer, Eva))
    options: dict[str, Any] = {"img_size": image_size} if transformer and image_size is not None else {}
    pretrained = weights in ("pretrained", "openai")
    try:
        with hub_or_cache() if pretrained else nullcontext():
            network: Any = timm.create_model(name, pretrained=pretrained, num_classes=0, **options)
    except (OSError, RuntimeError) as error:
        raise unreachable(f"encoder {model}", f"timm/{name}", error) from error
    tower: ImageTower
    if runs_block_by_block(network):
        take_class_token(network)
        tower = _transformer(network, image_size)
    else:
        size = image_size or network.pretrained_cfg["input_size"][-1]
        if image_size is not None and hasattr(network, "set_input_size"):
            network.set_input_size(img_size=image_size)
        tower = _pooled_tower(network, size, why_no_tokens(network), model)
    if not pretrained and weights != "random":
        _load_timm(network, Path(weights))
    return tower, of_timm(network.pretrained_cfg)


def _load_timm(network: Any, file: Path) -> None:
    state, _ = read_file(file, network)
    classifiers = network.pretrained_cfg.get("classifier") or ()
    dropped = ("head.", "mask_token", *([classifiers] if isinstance(classifiers, str) else classifiers))
    own = network.state_dict()
    state = {
        key: value for key, value in without_prefix(state).items() if key in own or not key.startswith(tuple(dropped))
    }
    if runs_block_by_block(network):
        fit_positions(state, network, "pos_embed")
    load_strictly(network, state, f"--model.encoder.weights {file}")


def _timm_class(name: str) -> type:
    """Return the class of a timm model without allocating its weights."""
    with torch.device("meta"):
        return type(timm.create_model(name, pretrained=False))
