"""FrozenCLIP: both towers of a CLIP model, or the image tower alone; never trained, sent or saved."""

from __future__ import annotations

import copy
import hashlib
import math
import os
from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import open_clip
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from pfedst.encoders.encoder import Encoder
from pfedst.encoders.loading import load_open_clip, open_clip_model, open_clip_tower, timm_tower
from pfedst.encoders.one_by_one import one_by_one
from pfedst.encoders.preparation import named, of_tags, preprocessing_of
from pfedst.encoders.repositories import HUB
from pfedst.encoders.spec import EncoderSpec, Interpolation, Need, ResizeMode, Taps
from pfedst.encoders.text import PromptTower, token_ids
from pfedst.encoders.towers import ImageTower, frozen, pooled_patches
from pfedst.encoders.weights import download, hub_or_cache, unreachable
from pfedst.errors import ConfigurationError, WeightsError
from pfedst.options import FOLDER, WEIGHTS_VARIABLE
from pfedst.seeds import derive_seed, seeded

LastBlock = Literal["class_token", "whole"]

# used if the weights of an image tower hold no scale: CLIP's training ends at the cap, 100
DEFAULT_LOGIT_SCALE = 100.0


class FrozenCLIP(Encoder):
    """A CLIP model, or the image tower of a CLIP model alone.

    Attributes:
        tower: the image tower.
        text: the model with its text tower, or None if there are no weights for it.

    Args:
        model: an open_clip model (`ViT-B-16-quickgelu`), a repository of open_clip on the hub (`hf-hub:org/name`) or in
            a folder (`local-dir:FOLDER`), or a timm network (`timm/vit_base_patch14_dinov2`), which has no text tower.
            A tower without tokens of one width (a ResNet) offers the pooled embedding alone.
        weights: a pretrained tag (`openai`; for `hf-hub:`, `local-dir:` and timm: `pretrained`), a .safetensors file
            with the whole model or the image tower alone, in the layout of open_clip or of transformers' CLIP, or
            `random`. With null, the value of the environment variable PFEDST_ENCODER_WEIGHTS.
        image_size: side of the square input in pixels, a multiple of the patch size. The position embedding is
            resampled. Default: the size of the model.
        last_block: compute block L for the `class_token` alone, or as a `whole`. The results are equal to 1e-5; the
            cost differs. A tower that pools all its tokens needs the whole block.
        logit_scale: factor on cosines, > 0. Default: the scale in the weights, or 100 for an image tower alone.
        token_grid: side of the square grid to which the patches of tokens and taps are averaged. A cache becomes
            smaller and a side network faster. The result is another model, since the frozen block L sees fewer tokens.
            An untrained side network still predicts as the encoder does. Default: all patches.
        mean: value subtracted from red, green and blue in [0, 1]. Default of this and the next three: what the model's
            own configuration says, see `preparation.py`.
        std: value by which they are divided, > 0.
        interpolation: of resizing.
        resize_mode: how an image becomes a square: `shortest` side resized and the centre cut out, `longest` side
            resized and filled up with black, or `squash`.

    Raises:
        WeightsError: If the model is unknown, or the weights do not fit or cannot be loaded.
        ConfigurationError: If the image size is not a multiple of the patch size, or an option is out of range.
    """

    def __init__(
        self,
        model: str = "ViT-B-16-quickgelu",
        weights: str | None = "openai",
        image_size: int | None = None,
        last_block: LastBlock = "class_token",
        logit_scale: float | None = None,
        token_grid: int | None = None,
        mean: tuple[float, float, float] | None = None,
        std: tuple[float, float, float] | None = None,
        interpolation: Interpolation | None = None,
        resize_mode: ResizeMode | None = None,
    ) -> None:
        if logit_scale is not None and not logit_scale > 0:
            raise ConfigurationError(f"--model.encoder.logit_scale {logit_scale}: must be above 0")
        weights = weights or os.environ.get(WEIGHTS_VARIABLE)
        if not weights:
            raise WeightsError("--model.encoder.weights is not given: name a .safetensors file or a tag")
        # a folder lies elsewhere on another machine
        self.model = f"{FOLDER}{Path(model.removeprefix(FOLDER)).name}" if model.startswith(FOLDER) else model
        self.random_weights = weights == "random"
        self.text: nn.Module | None = None
        self._tokenizer_of = model
        self._without_text = "these weights have no text tower"
        self.logit_scale = DEFAULT_LOGIT_SCALE
        chosen = {"mean": mean, "std": std, "interpolation": interpolation, "resize_mode": resize_mode}
        given = {key: value for key, value in chosen.items() if value is not None}
        configuration: Mapping[str, Any]
        with seeded(derive_seed(0, "random encoder", self.model)):
            if model.startswith("timm/"):
                self.tower, configuration = timm_tower(model, weights, image_size)
            else:
                self.tower, configuration = self._open_clip(model, weights, image_size, given)
        self.tower = frozen(self.tower)
        if logit_scale is not None:
            self.logit_scale = logit_scale
        # a tower that pools all tokens needs them all
        self.last_block: LastBlock = last_block if self.tower.alone else "whole"
        self.offers, self.limits = _offers(self.tower), self.tower.limits
        self.token_grid = token_grid
        size, tokens = self.tower.image_size, self.tower.tokens
        if token_grid is not None:
            tokens = _tokens_on_grid(self.tower, token_grid)
        self.spec = EncoderSpec(
            self.tower.width, len(self.tower.blocks), tokens, self.tower.embedding, size, self.text is not None
        )
        self.preprocessing = preprocessing_of(self.model, size, configuration, given)
        source = "RANDOM WEIGHTS" if self.random_weights else f"weights {Path(weights).name}"
        pooled = "" if token_grid is None else f", patches averaged to {token_grid}x{token_grid}"
        self.label = f"{self.model}, {source}, {size} px{named(self.preprocessing)}{pooled}"

    def _open_clip(
        self, model: str, weights: str, image_size: int | None, given: Mapping[str, Any]
    ) -> tuple[ImageTower, Mapping[str, Any]]:
        """Return the tower with its weights and its preprocessing, and keep the text tower and the logit scale."""
        made = open_clip_model(model, weights, image_size)
        configuration = made.preprocessing
        tower = open_clip_tower(made.architecture.visual, model, image_size)
        text, scale = not made.without_text, None
        if weights == "random":
            own = made.architecture.logit_scale.detach()
            scale = math.exp(float(own)) if text and not own.is_meta else None
        else:
            file = made.pretrained.get("file") or Path(weights)
            if made.pretrained and "file" not in made.pretrained:
                file = download(made.pretrained, f"encoder {model} with weights {weights}")
            loaded = load_open_clip(made, file, model)
            text, scale, configuration = loaded.text, loaded.logit_scale, loaded.preprocessing or configuration
        if not configuration and not model.startswith((HUB, FOLDER)):
            configuration = of_tags(model, given)
        if text:
            self.text = made.architecture.eval().float().requires_grad_(False)
        elif made.without_text:
            self._without_text = made.without_text
        self.logit_scale = scale or DEFAULT_LOGIT_SCALE
        return tower, configuration

    # -- use ---------------------------------------------------------------------------------------------------

    @property
    def device(self) -> torch.device:
        """The device of the towers."""
        return next(self.tower.parameters()).device

    def to(self, device: torch.device | str) -> FrozenCLIP:
        """Move the towers to a device if they are on another one."""
        if self.device != torch.device(device):
            self.tower.to(device)
            if self.text is not None:
                self.text.to(device)
        return self

    def encode(self, images: Tensor, needs: Collection[Need]) -> dict[Need, Taps]:
        """Return several kinds of output for images (B, 3, H, W), normalised as in `preprocessing`, in one pass.

        The output is float32 whatever precision it was computed with. On a CPU the bits of the output for an image
        depend only on the image and that precision.

        Raises:
            ConfigurationError: If the images have another shape.
        """
        of_tower = [need for need in needs if need != "images"]
        if not of_tower or images.device.type != "cpu":
            return self.encode_batch(images, needs)
        self._check_shape(images)
        parts = one_by_one(lambda image: self._encode(image, of_tower), images)
        found: dict[Need, Taps] = {need: _joined([part[need] for part in parts]) for need in of_tower}
        return found | self.encode_batch(images, [need for need in needs if need == "images"])

    def encode_batch(self, images: Tensor, needs: Collection[Need]) -> dict[Need, Taps]:
        """Return what `encode` returns, computed as one batch: the last bits may depend on the other images.

        Raises:
            ConfigurationError: If the images have another shape.
        """
        self._check_shape(images)
        found: dict[Need, Taps] = {"images": Taps("images", (images,))} if "images" in needs else {}
        of_tower = [need for need in needs if need != "images"]
        return found | (self._encode(images, of_tower) if of_tower else {})

    def _check_shape(self, images: Tensor) -> None:
        size = self.spec.image_size
        if images.ndim != 4 or images.shape[1:] != (3, size, size):
            raise ConfigurationError(
                f"encoder {self.label}: images have shape {tuple(images.shape)}, expected (B, 3, {size}, {size})"
            )

    @torch.no_grad()
    def _encode(self, images: Tensor, needs: Sequence[Need]) -> dict[Need, Taps]:
        if not self.spec.layers:
            return {"pooled": Taps("pooled", (self.tower(images).float(),))}
        z = [self.tower.embed(images).float()]
        for index in range(self.spec.layers - 1):
            z.append(self.tower.run_block(index, z[-1]).float())
        found: dict[Need, Taps] = {}
        if "taps" in needs:
            found["taps"] = self._taps(z)
        if "tokens" in needs:
            found["tokens"] = Taps("tokens", (self._on_grid(self.tower.run_block(-1, z[-1]).float()),))
        if "pooled" in needs:
            found["pooled"] = Taps("pooled", (self.finish(z[-1]).float(),))
        return found

    def _taps(self, z: Sequence[Tensor]) -> Taps:
        if self.token_grid is None:
            return Taps("taps", tuple(z))
        tensors = tuple(self._on_grid(tap) for tap in z)
        return Taps("taps", tensors, (self._summary(z[-1]) - self._summary(tensors[-1])).float())

    def _on_grid(self, tokens: Tensor) -> Tensor:
        return tokens if self.token_grid is None else pooled_patches(tokens, self.tower.patches, self.token_grid)

    def _summary(self, tokens: Tensor) -> Tensor:
        """Return what is projected to the embedding, (B, D), for the input (B, N, D) of block L."""
        return self.tower.summary(tokens, self.last_block == "whole")

    def finish(self, tokens: Tensor, correction: Tensor | None = None) -> Tensor:
        """Return image embeddings (B, E), not normalised, for the input (B, N, D) of block L.

        Gradients pass to `tokens`. `correction` is the correction of the taps, see `Taps`.
        """
        summary = self._summary(tokens)
        return self.tower.project(summary if correction is None else summary + correction)

    def project(self, tokens: Tensor) -> Tensor:
        """Apply the final norm and projection, (..., D) to (..., E), to patch or class tokens of block L."""
        return self.tower.project(tokens)

    def block_weights(self, targets: Sequence[str]) -> list[dict[str, Tensor]]:
        """Return the weights (out, in) of each block by target, as views if the tower stores several in one matrix."""
        return self.tower.target_weights(targets)

    def embed(self, images: Tensor, block_weights: Sequence[Mapping[str, Tensor]]) -> Tensor:
        """Return embeddings (B, E) of images (B, 3, H, W) through the tower with replaced block weights.

        Args:
            images: normalised images (B, 3, H, W).
            block_weights: for each block, target -> weight (out, in).
        """
        replaced = self.tower.with_targets(block_weights)
        embeddings: Tensor = functional_call(self.tower, replaced, (images, self.last_block == "whole"))
        return embeddings

    def with_block_weights(self, block_weights: Sequence[Mapping[str, Tensor]]) -> FrozenCLIP:
        """Return an encoder with a copy of the image tower in which some weights of blocks are replaced.

        Args:
            block_weights: for each block, target -> weight (out, in).
        """
        changed = copy.copy(self)
        vars(changed).pop("weights_hash", None)  # of the tower before
        changed.tower = copy.deepcopy(self.tower)
        replaced = changed.tower.with_targets(block_weights)
        changed.tower.load_state_dict({name: weight.detach() for name, weight in replaced.items()}, strict=False)
        return changed

    @torch.no_grad()
    def encode_text(self, prompts: Sequence[str]) -> Tensor:
        """Return unit embeddings (P, E) of P prompts.

        Raises:
            WeightsError: If there is no text tower.
            ConfigurationError: If a prompt is longer than the context of the text tower.
        """
        if self.text is None:
            raise WeightsError(
                f"encoder {self.label}: {self._without_text}, so text prompts cannot be used; use --model.anchors "
                f"prototypes or learned, or weights of the whole model"
            )
        tokens = token_ids(self._tokenizer, prompts, self.label).to(self.device)
        return F.normalize(self.text.encode_text(tokens), dim=-1)  # type: ignore[operator]

    def prompt_tower(self) -> PromptTower:
        """Return the text tower for learned prompts.

        Raises:
            ConfigurationError: If the weights are those of an image tower alone, or the text tower is not CLIP's own.
        """
        if self.text is None:
            raise ConfigurationError(
                f"encoder {self.label}: {self._without_text}, through which this method learns prompts; give "
                f"--model.encoder.weights of the whole model, or choose a method that needs no text tower"
            )
        return PromptTower(self.text, self._tokenizer, self.label)

    @cached_property
    def _tokenizer(self) -> Any:
        try:
            with hub_or_cache():
                return open_clip.get_tokenizer(self._tokenizer_of)
        except (OSError, ValueError, RuntimeError, ImportError) as error:
            raise unreachable(f"tokenizer of encoder {self.model}", self._tokenizer_of, error) from error

    # -- identity ----------------------------------------------------------------------------------------------

    @property
    def nbytes(self) -> int:
        """Size of the image tower in bytes."""
        return sum(tensor.nbytes for tensor in self.tower.state_dict().values())

    @property
    def identity(self) -> dict[str, str | int | None]:
        """Everything that the output for an image depends on, except the image and the device."""
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
        """Return the SHA-256 over name, dtype, shape and bytes of every current tensor of the image tower."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.tower.state_dict().items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()


def _joined(parts: Sequence[Taps]) -> Taps:
    """Join the outputs of single images to one batch."""
    tensors = tuple(torch.cat(group) for group in zip(*(part.tensors for part in parts), strict=True))
    corrections = [part.correction for part in parts if part.correction is not None]
    return Taps(parts[0].kind, tensors, torch.cat(corrections) if corrections else None)


def _offers(tower: ImageTower) -> tuple[Need, ...]:
    """Return the kinds of output that a tower has. Tokens are the output of block L with a class token in front."""
    if not tower.blocks:
        return ("pooled",)
    return ("pooled", "tokens", "taps", "images") if tower.class_token else ("pooled", "taps", "images")


def _tokens_on_grid(tower: ImageTower, token_grid: int) -> int:
    if not tower.patches:
        raise ConfigurationError(f"--model.encoder.token_grid {token_grid}: {tower.limits}")
    side = round(tower.patches**0.5)
    if not 1 <= token_grid < side:
        raise ConfigurationError(
            f"--model.encoder.token_grid {token_grid}: this tower has {side}x{side} patches; give 1 to {side - 1}, or "
            f"leave it out"
        )
    return tower.tokens - tower.patches + token_grid**2
