"""Build image towers: the architecture from open_clip or timm, the weights from a hub or a file."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import open_clip
import timm
import torch
from timm.layers.pos_embed import resample_abs_pos_embed

from pfedst.encoders.towers import ImageTower, OpenCLIPTower, TimmTower, lie_on_square, refused, resized_positions
from pfedst.encoders.weights import check_activation, hub_or_cache, load_strictly, read_file, unreachable
from pfedst.errors import ConfigurationError, WeightsError, nearest

open_clip.add_model_config(Path(__file__).parent / "models")


def open_clip_model(model: str, weights: str, image_size: int | None) -> tuple[Any, dict[str, Any]]:
    """Return a randomly initialised open_clip model and the download configuration of a pretrained tag.

    The configuration is empty for files and random weights.
    """
    configuration: dict[str, Any] = {}
    if model.startswith("hf-hub:"):
        repository = model.removeprefix("hf-hub:")
        if weights in ("openai", "pretrained"):
            configuration = {"hf_hub": f"{repository}/"}
    elif model not in open_clip.list_models():
        raise WeightsError(
            f'encoder: open_clip has no model "{model}".{nearest(model, open_clip.list_models())} '
            f"Timm towers are called timm/NAME, hub repositories hf-hub:ORG/NAME"
        )
    elif weights != "random" and "/" not in weights and not weights.endswith(".safetensors") and "." not in weights:
        configuration = open_clip.get_pretrained_cfg(model, weights) or {}
        if not configuration:
            tags = ", ".join(open_clip.list_pretrained_tags_by_model(model)) or "none"
            raise WeightsError(
                f'encoder {model}: no pretrained weights "{weights}" (tags of this model: {tags}); give a tag, a '
                f".safetensors file, or random"
            )
        check_activation(model, weights, configuration)
    options = {} if image_size is None else {"force_image_size": image_size}
    if not model.startswith("hf-hub:"):
        vision = (open_clip.get_model_config(model) or {}).get("vision_cfg", {})
        _check_multiple(image_size, vision.get("patch_size"))
    try:
        with hub_or_cache() if model.startswith("hf-hub:") else nullcontext(), _silent_about_random_weights():
            architecture = open_clip.create_model(
                model, load_weights=False, device=torch.get_default_device(), **options
            )
    except (OSError, ValueError, RuntimeError) as error:
        raise unreachable(f"encoder {model}", model.removeprefix("hf-hub:"), error) from error
    return architecture, configuration


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


def load_open_clip(architecture: Any, file: Path, model: str) -> bool:
    """Load a file with the whole model or the image tower alone. Return True for the whole model."""
    state, metadata = read_file(file, architecture)
    if metadata.get("model", model) != model:
        raise WeightsError(
            f"--model.encoder.weights {file}: made for {metadata['model']}; use --model.encoder.model "
            f"{metadata['model']}"
        )
    whole = any(key.startswith("visual.") for key in state) and "text_projection" in state
    if not whole:
        state = {f"visual.{key.removeprefix('visual.')}": value for key, value in state.items()}
    positions = "visual.positional_embedding"
    if positions in state and state[positions].ndim == 2:
        state[positions] = resized_positions(state[positions], architecture.visual.positional_embedding.shape[0])
    what = f"--model.encoder.weights {file} ({'whole model' if whole else 'image tower alone'})"
    if whole:
        load_strictly(architecture, state, what)
    else:
        load_strictly(architecture.visual, {k.removeprefix("visual."): v for k, v in state.items()}, what)
    return whole


def timm_tower(model: str, weights: str, image_size: int | None) -> tuple[ImageTower, Any, Any]:
    """Return a timm tower with its weights, and the channel means and standard deviations of its images."""
    name = model.removeprefix("timm/")
    if not timm.is_model(name):
        raise WeightsError(f'encoder: timm has no model "{name}".{nearest(name, timm.list_models())}')
    if not issubclass(architecture := _timm_class(name), timm.models.VisionTransformer):
        raise refused(model, architecture.__name__)
    options: dict[str, Any] = {} if image_size is None else {"img_size": image_size}
    pretrained = weights in ("pretrained", "openai")
    try:
        with hub_or_cache() if pretrained else nullcontext():
            vit: Any = timm.create_model(name, pretrained=pretrained, num_classes=0, **options)
    except (OSError, RuntimeError) as error:
        raise unreachable(f"encoder {model}", f"timm/{name}", error) from error
    tower = TimmTower(vit, model)
    _check_multiple(image_size, vit.patch_embed.patch_size[0])
    if not pretrained and weights != "random":
        state, _ = read_file(Path(weights), vit)
        state = {key: value for key, value in state.items() if not key.startswith(("head.", "mask_token"))}
        prefix, positions = 0 if vit.no_embed_class else vit.num_prefix_tokens, state.get("pos_embed")
        if positions is not None and positions.ndim == 3 and lie_on_square(positions, prefix):
            grid = list(vit.patch_embed.grid_size)
            state["pos_embed"] = resample_abs_pos_embed(positions, grid, num_prefix_tokens=prefix)
        load_strictly(vit, state, f"--model.encoder.weights {weights}")
    configuration = vit.pretrained_cfg
    return tower, tuple(configuration["mean"]), tuple(configuration["std"])


def _timm_class(name: str) -> type:
    """Return the class of a timm model without allocating its weights."""
    with torch.device("meta"):
        return type(timm.create_model(name, pretrained=False))


def image_size_of(tower: ImageTower) -> int:
    """Return the side of the square input in pixels."""
    if isinstance(tower, OpenCLIPTower):
        return int(tower.visual.image_size[0])
    assert isinstance(tower, TimmTower)
    return int(tower.vit.patch_embed.img_size[0])
