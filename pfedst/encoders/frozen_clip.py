"""FrozenCLIP: both towers of a CLIP model, or an image tower alone, never trained, sent or saved."""

from __future__ import annotations

import hashlib
import logging
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import open_clip
import timm
import torch
import torch.nn.functional as F
from timm.layers.pos_embed import resample_abs_pos_embed
from torch import Tensor, nn
from torch.func import functional_call

from pfedst.encoders.encoder import Encoder
from pfedst.encoders.spec import EncoderSpec, Need, Preprocessing, Taps
from pfedst.encoders.text import PromptTower
from pfedst.encoders.towers import ImageTower, OpenCLIPTower, TimmTower, frozen, refused, resized_positions
from pfedst.encoders.weights import (
    check_activation,
    download,
    hub_or_cache,
    load_strictly,
    read_file,
    unreachable,
)
from pfedst.errors import ConfigurationError, WeightsError, nearest
from pfedst.seeds import derive_seed, seeded

LastBlock = Literal["class_token", "whole"]

open_clip.add_model_config(Path(__file__).parent / "models")

CLIP_MEAN, CLIP_STD = open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD
# a tower alone does not hold CLIP's scale; its training ends at the cap, 100
DEFAULT_LOGIT_SCALE = 100.0


class FrozenCLIP(Encoder):
    """A CLIP model, or the image tower of one alone.

    Attributes:
        tower: the image tower.
        text: the model with its text tower, if its weights are at hand.

    Args:
        model: an open_clip model (`ViT-B-16-quickgelu`), a hub repository (`hf-hub:org/name`), or a timm ViT
            (`timm/vit_base_patch14_dinov2`), which has no text tower.
        weights: a pretrained tag (`openai`; for `hf-hub:` and timm: `pretrained`), a .safetensors file with the
            whole model or the image tower alone, or `random`; with null, what the environment's
            PFEDST_ENCODER_WEIGHTS names.
        image_size: side of the square input in pixels, a multiple of the patch; default: the model's own. The
            position embedding is resampled.
        last_block: evaluate block L for the `class_token` alone, or as a `whole`: equal to 1e-5, at another cost.
        logit_scale: factor on cosines, > 0; default: the weights' own, or 100 for an image tower alone.

    Raises:
        WeightsError: unknown model, weights that do not fit or cannot be had, a tower without tokens.
        ConfigurationError: an image size that is no multiple of the patch.
    """

    def __init__(
        self,
        model: str = "ViT-B-16-quickgelu",
        weights: str | None = "openai",
        image_size: int | None = None,
        last_block: LastBlock = "class_token",
        logit_scale: float | None = None,
    ) -> None:
        if logit_scale is not None and not logit_scale > 0:
            raise ConfigurationError(f"--model.encoder.logit_scale {logit_scale}: must be above 0")
        weights = weights or os.environ.get("PFEDST_ENCODER_WEIGHTS")
        if not weights:
            raise WeightsError("--model.encoder.weights is not given: name a .safetensors file or a tag")
        self.model = model
        self.random_weights = weights == "random"
        self.last_block = last_block
        self.text: nn.Module | None = None
        self.logit_scale = DEFAULT_LOGIT_SCALE
        with seeded(derive_seed(0, "random encoder", model)):
            if model.startswith("timm/"):
                self.tower, mean, std = _timm_tower(model, weights, image_size)
            else:
                self.tower, mean, std = self._open_clip(model, weights, image_size)
        self.tower = frozen(self.tower)
        if logit_scale is not None:
            self.logit_scale = logit_scale
        size = _image_size(self.tower)
        self.spec = EncoderSpec(
            self.tower.width,
            len(self.tower.blocks),
            self.tower.tokens,
            self.tower.embedding,
            size,
            self.text is not None,
        )
        self.preprocessing = Preprocessing(size, mean, std)
        source = "RANDOM WEIGHTS" if self.random_weights else f"weights {Path(weights).name}"
        self.label = f"{model}, {source}, {size} px"

    def _open_clip(self, model: str, weights: str, image_size: int | None) -> tuple[ImageTower, Any, Any]:
        architecture, configuration = _open_clip_model(model, weights, image_size)
        tower = OpenCLIPTower(architecture.visual, model)
        mean, std = configuration.get("mean", CLIP_MEAN), configuration.get("std", CLIP_STD)
        if weights == "random":
            self.text = architecture
        else:
            file = Path(weights)
            if configuration:
                file = download(configuration, f"encoder {model} with weights {weights}")
            whole = _load_open_clip(architecture, file, model)
            self.text = architecture if whole else None
        if self.text is not None:
            self.text.eval().float().requires_grad_(False)
            if not architecture.logit_scale.is_meta:
                self.logit_scale = math.exp(float(architecture.logit_scale))
        return tower, tuple(mean), tuple(std)

    # -- use ---------------------------------------------------------------------------------------------------

    @property
    def device(self) -> torch.device:
        """Where the towers are."""
        return next(self.tower.parameters()).device

    def to(self, device: torch.device | str) -> FrozenCLIP:
        """Move the towers, if they are elsewhere."""
        if self.device != torch.device(device):
            self.tower.to(device)
            if self.text is not None:
                self.text.to(device)
        return self

    @torch.no_grad()
    def extract(self, images: Tensor, need: Need) -> Taps:
        """What an adapter needs of a batch of images (B, 3, H, W), normalised as `preprocessing` says.

        Raises:
            ConfigurationError: images of another shape.
        """
        size = self.spec.image_size
        if images.ndim != 4 or images.shape[1:] != (3, size, size):
            raise ConfigurationError(
                f"encoder {self.label}: images have shape {tuple(images.shape)}, expected (B, 3, {size}, {size})"
            )
        if need == "images":
            return Taps(need, (images,))
        taps = [self.tower.embed(images)]
        for block in list(self.tower.blocks)[:-1]:
            taps.append(block(taps[-1]))
        if need == "taps":
            return Taps(need, tuple(taps))
        if need == "tokens":
            return Taps(need, (self.tower.blocks[-1](taps[-1]),))
        return Taps(need, (self.finish(taps[-1]),))

    def finish(self, tokens: Tensor) -> Tensor:
        """What enters block L (B, N, D) -> image embeddings (B, E), not normalised; gradients pass to `tokens`."""
        if self.last_block == "whole":
            return self.tower.project(self.tower.blocks[-1](tokens)[:, 0])
        return self.tower.project(self.tower.last_block_class_token(tokens))

    def project(self, tokens: Tensor) -> Tensor:
        """Output of block L (..., D) -> (..., E): final norm and projection, of patch tokens as of the class token."""
        return self.tower.project(tokens)

    def block_weights(self, targets: Sequence[str]) -> list[dict[str, Tensor]]:
        """By block, target -> its weight (out, in), a view where a tower keeps several in one matrix."""
        return self.tower.target_weights(targets)

    def embed(self, images: Tensor, block_weights: Sequence[Mapping[str, Tensor]]) -> Tensor:
        """Images (B, 3, H, W) through the tower in which block l has `block_weights[l]`, target -> weight (out, in)."""
        replaced = self.tower.with_targets(block_weights)
        embeddings: Tensor = functional_call(self.tower, replaced, (images, self.last_block == "whole"))
        return embeddings

    @torch.no_grad()
    def encode_text(self, prompts: Sequence[str]) -> Tensor:
        """Unit embeddings (P, E) of P prompts.

        Raises:
            WeightsError: there is no text tower.
        """
        if self.text is None:
            raise WeightsError(
                f"encoder {self.label}: these weights have no text tower, so prompts mean nothing; use "
                f"--model.anchors prototypes or learned, or weights of the whole model"
            )
        tokens = self._tokenizer(list(prompts)).to(self.device)
        return F.normalize(self.text.encode_text(tokens), dim=-1)  # type: ignore[operator]

    def prompt_tower(self) -> PromptTower:
        """The text tower for learned prompts.

        Raises:
            ConfigurationError: the weights are those of an image tower alone, or the text tower is not CLIP's own.
        """
        if self.text is None:
            raise ConfigurationError(
                f"encoder {self.label}: these weights have no text tower, through which this method learns prompts; "
                f"give --model.encoder.weights of the whole model, or choose a method that needs no text tower"
            )
        return PromptTower(self.text, self._tokenizer, self.label)

    @cached_property
    def _tokenizer(self) -> Any:
        return open_clip.get_tokenizer(self.model)

    # -- identity ----------------------------------------------------------------------------------------------

    @cached_property
    def weights_hash(self) -> str:
        """SHA-256 of the image tower, computed once."""
        return self.compute_hash()

    def compute_hash(self) -> str:
        """SHA-256 over name, dtype, shape and bytes of every tensor of the image tower as it is now."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.tower.state_dict().items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()


def _open_clip_model(model: str, weights: str, image_size: int | None) -> tuple[Any, dict[str, Any]]:
    """An open_clip model at its random start, and how to get the weights of a tag (empty for files and random)."""
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
    """open_clip warns on the root logger that it loads nothing; that is done here, strictly, or said in the label."""
    root, level = logging.getLogger(), logging.getLogger().level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(level)


def _check_multiple(image_size: int | None, patch: int | None) -> None:
    if image_size is not None and patch and (image_size < patch or image_size % patch):
        raise ConfigurationError(f"--model.encoder.image_size {image_size}: must be a multiple of the patch, {patch}")


def _load_open_clip(architecture: Any, file: Path, model: str) -> bool:
    """Load a file with the whole model, or the image tower alone; True for the whole model."""
    state, metadata = read_file(file)
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


def _timm_tower(model: str, weights: str, image_size: int | None) -> tuple[ImageTower, Any, Any]:
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
        state, _ = read_file(Path(weights))
        state = {key: value for key, value in state.items() if not key.startswith(("head.", "mask_token"))}
        if "pos_embed" in state:
            state["pos_embed"] = resample_abs_pos_embed(
                state["pos_embed"],
                list(vit.patch_embed.grid_size),
                num_prefix_tokens=0 if vit.no_embed_class else vit.num_prefix_tokens,
            )
        load_strictly(vit, state, f"--model.encoder.weights {weights}")
    configuration = vit.pretrained_cfg
    return tower, tuple(configuration["mean"]), tuple(configuration["std"])


def _timm_class(name: str) -> type:
    """The class that a timm model has, without building its weights."""
    with torch.device("meta"):
        return type(timm.create_model(name, pretrained=False))


def _image_size(tower: ImageTower) -> int:
    if isinstance(tower, OpenCLIPTower):
        return int(tower.visual.image_size[0])
    assert isinstance(tower, TimmTower)
    return int(tower.vit.patch_embed.img_size[0])
