"""FrozenCLIP: both towers of a CLIP model, or an image tower alone, never trained, sent or saved."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import open_clip
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from pfedst.encoders.encoder import Encoder
from pfedst.encoders.loading import image_size_of, load_open_clip, open_clip_model, timm_tower
from pfedst.encoders.spec import EncoderSpec, Need, Preprocessing, Taps
from pfedst.encoders.text import PromptTower
from pfedst.encoders.towers import ImageTower, OpenCLIPTower, frozen, pooled_patches
from pfedst.encoders.weights import download
from pfedst.errors import ConfigurationError, WeightsError
from pfedst.seeds import derive_seed, seeded

LastBlock = Literal["class_token", "whole"]

CLIP_MEAN, CLIP_STD = open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD
# a tower alone does not hold CLIP's scale; its training ends at the cap, 100
DEFAULT_LOGIT_SCALE = 100.0
IMAGES_AT_ONCE = 8
"""On a CPU the tower sees so many images, always: the last bits of a matrix product depend on its number of rows,
and an image must have the same taps in any batch, read from a cache or not. A larger number is no faster."""


WEIGHTS_VARIABLE = "PFEDST_ENCODER_WEIGHTS"
"""Of the environment: the file where no option names one."""


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
        token_grid: hand out tokens and taps with the patches averaged to so many a side, which makes a cache smaller
            and a side network faster, and is another model: the frozen block L then sees fewer tokens. An untrained
            side network still predicts as the encoder does. Default: all patches.

    Raises:
        WeightsError: unknown model, weights that do not fit or cannot be had, a tower without tokens.
        ConfigurationError: an image size that is no multiple of the patch, or an option out of its range.
    """

    def __init__(
        self,
        model: str = "ViT-B-16-quickgelu",
        weights: str | None = "openai",
        image_size: int | None = None,
        last_block: LastBlock = "class_token",
        logit_scale: float | None = None,
        token_grid: int | None = None,
    ) -> None:
        if logit_scale is not None and not logit_scale > 0:
            raise ConfigurationError(f"--model.encoder.logit_scale {logit_scale}: must be above 0")
        weights = weights or os.environ.get(WEIGHTS_VARIABLE)
        if not weights:
            raise WeightsError("--model.encoder.weights is not given: name a .safetensors file or a tag")
        self.model = model
        self.random_weights = weights == "random"
        self.last_block = last_block
        self.text: nn.Module | None = None
        self.logit_scale = DEFAULT_LOGIT_SCALE
        with seeded(derive_seed(0, "random encoder", model)):
            if model.startswith("timm/"):
                self.tower, mean, std = timm_tower(model, weights, image_size)
            else:
                self.tower, mean, std = self._open_clip(model, weights, image_size)
        self.tower = frozen(self.tower)
        if logit_scale is not None:
            self.logit_scale = logit_scale
        self.token_grid = token_grid
        size, tokens = image_size_of(self.tower), self.tower.tokens
        if token_grid is not None:
            tokens = _tokens_on_grid(self.tower, token_grid)
        self.spec = EncoderSpec(
            self.tower.width, len(self.tower.blocks), tokens, self.tower.embedding, size, self.text is not None
        )
        self.preprocessing = Preprocessing(size, mean, std)
        source = "RANDOM WEIGHTS" if self.random_weights else f"weights {Path(weights).name}"
        pooled = "" if token_grid is None else f", patches averaged to {token_grid}x{token_grid}"
        self.label = f"{model}, {source}, {size} px{pooled}"

    def _open_clip(self, model: str, weights: str, image_size: int | None) -> tuple[ImageTower, Any, Any]:
        architecture, configuration = open_clip_model(model, weights, image_size)
        tower = OpenCLIPTower(architecture.visual, model)
        mean, std = configuration.get("mean", CLIP_MEAN), configuration.get("std", CLIP_STD)
        if weights == "random":
            self.text = architecture
        else:
            file = Path(weights)
            if configuration:
                file = download(configuration, f"encoder {model} with weights {weights}")
            whole = load_open_clip(architecture, file, model)
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
    def encode(self, images: Tensor, needs: Collection[Need]) -> dict[Need, Taps]:
        """Several answers about a batch of images (B, 3, H, W), normalised as `preprocessing` says, in one pass.

        They are float32 whatever precision they were computed with. On a CPU the bits of an image's answer depend on
        nothing but the image and that precision.

        Raises:
            ConfigurationError: images of another shape.
        """
        size = self.spec.image_size
        if images.ndim != 4 or images.shape[1:] != (3, size, size):
            raise ConfigurationError(
                f"encoder {self.label}: images have shape {tuple(images.shape)}, expected (B, 3, {size}, {size})"
            )
        found: dict[Need, Taps] = {"images": Taps("images", (images,))} if "images" in needs else {}
        of_tower = [need for need in needs if need != "images"]
        if of_tower and images.device.type == "cpu":
            parts = [self._encode(_filled(part), of_tower) for part in torch.split(images, IMAGES_AT_ONCE)]
            found |= {need: _joined([part[need] for part in parts], len(images)) for need in of_tower}
        elif of_tower:
            found |= self._encode(images, of_tower)
        return found

    def _encode(self, images: Tensor, needs: Sequence[Need]) -> dict[Need, Taps]:
        z = [self.tower.embed(images).float()]
        for block in list(self.tower.blocks)[:-1]:
            z.append(block(z[-1]).float())
        found: dict[Need, Taps] = {}
        if "taps" in needs:
            found["taps"] = self._taps(z)
        if "tokens" in needs:
            found["tokens"] = Taps("tokens", (self._on_grid(self.tower.blocks[-1](z[-1]).float()),))
        if "pooled" in needs:
            with _one_thread():
                found["pooled"] = Taps("pooled", (self.finish(z[-1]).float(),))
        return found

    def _taps(self, z: Sequence[Tensor]) -> Taps:
        if self.token_grid is None:
            return Taps("taps", tuple(z))
        tensors = tuple(self._on_grid(tap) for tap in z)
        with _one_thread():
            return Taps("taps", tensors, (self._class_token(z[-1]) - self._class_token(tensors[-1])).float())

    def _on_grid(self, tokens: Tensor) -> Tensor:
        return tokens if self.token_grid is None else pooled_patches(tokens, self.tower.patches, self.token_grid)

    def _class_token(self, tokens: Tensor) -> Tensor:
        """Block L's output for the class token: (B, N, D) -> (B, D)."""
        if self.last_block == "class_token":
            return self.tower.last_block_class_token(tokens)
        token: Tensor = self.tower.blocks[-1](tokens)[:, 0]
        return token

    def finish(self, tokens: Tensor, correction: Tensor | None = None) -> Tensor:
        """What enters block L (B, N, D) -> image embeddings (B, E), not normalised; gradients pass to `tokens`.

        `correction` is that of the taps: see `Taps`.
        """
        token = self._class_token(tokens)
        return self.tower.project(token if correction is None else token + correction)

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

    @property
    def nbytes(self) -> int:
        """Bytes of the image tower."""
        return sum(tensor.nbytes for tensor in self.tower.state_dict().values())

    @property
    def identity(self) -> dict[str, str | int | None]:
        """All that an image's answers depend on, but for the image and the device."""
        device = self.device.type
        autocast = str(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else None
        return {
            "model": self.model,
            "weights": self.weights_hash,
            "image_size": self.spec.image_size,
            "last_block": self.last_block,
            "token_grid": self.token_grid,
            "autocast": autocast,
        }

    def compute_hash(self) -> str:
        """SHA-256 over name, dtype, shape and bytes of every tensor of the image tower as it is now."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.tower.state_dict().items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()


@contextmanager
def _one_thread() -> Iterator[None]:
    """For products of as few rows as there are images, whose last bits depend on how threads share the rows."""
    threads = torch.get_num_threads()
    if threads == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _filled(images: Tensor) -> Tensor:
    """A last, smaller batch, filled up with copies of its last image."""
    return torch.cat([images, images[-1:].expand(IMAGES_AT_ONCE - len(images), -1, -1, -1)])


def _joined(parts: Sequence[Taps], images: int) -> Taps:
    """One batch of the parts, without what filled up the last of them."""
    tensors = tuple(torch.cat(group)[:images] for group in zip(*(part.tensors for part in parts), strict=True))
    corrections = [part.correction for part in parts if part.correction is not None]
    return Taps(parts[0].kind, tensors, torch.cat(corrections)[:images] if corrections else None)


def _tokens_on_grid(tower: ImageTower, token_grid: int) -> int:
    side = round(tower.patches**0.5)
    if not 1 <= token_grid < side:
        raise ConfigurationError(
            f"--model.encoder.token_grid {token_grid}: this tower has {side}x{side} patches; give 1 to {side - 1}, or "
            f"leave it out"
        )
    return tower.tokens - tower.patches + token_grid**2
