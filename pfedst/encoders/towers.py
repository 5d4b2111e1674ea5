"""Image towers with access to single blocks: a common interface for open_clip and timm VisionTransformers.

Shapes: B images, N tokens (class token first), D width, E embedding, L blocks.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from open_clip.transformer import ResidualAttentionBlock
from open_clip.transformer import VisionTransformer as OpenCLIPVisionTransformer
from timm.layers.attention import Attention
from timm.models.vision_transformer import Block
from timm.models.vision_transformer import VisionTransformer as TimmVisionTransformer
from torch import Tensor, nn

from pfedst.errors import WeightsError


class ImageTower(nn.Module):
    """A frozen transformer with the same token width in all blocks. The class token gives the image embedding.

    Attributes:
        blocks: the L blocks.
        width, tokens, embedding: D, N, E.
        patches: number of patches among the N tokens; the patches come last.
        targets: the linear layers of a block that a low-rank update may change: queries, keys, values, attention
            output, and the two layers of the MLP. Each entry names a weight of the block and, if the weight holds
            several targets, the index of the part.
    """

    width: int
    tokens: int
    patches: int
    embedding: int
    targets: ClassVar[Mapping[str, tuple[str, int | None]]]

    @property
    @abstractmethod
    def blocks(self) -> nn.ModuleList:
        """The L blocks, each (B, N, D) -> (B, N, D)."""

    @abstractmethod
    def embed(self, images: Tensor) -> Tensor:
        """Return Z_0 (B, N, D) for images (B, 3, H, W): patches, class token, positions, norm."""

    @abstractmethod
    def last_block_class_token(self, tokens: Tensor) -> Tensor:
        """Compute block L for the class token alone: (B, N, D) to (B, D).

        Only this token of the output of block L is used. Queries, output projection and MLP are computed for one token,
        keys and values for all. The result equals that of the whole block at about a sixth of the cost.
        """

    @abstractmethod
    def project(self, class_token: Tensor) -> Tensor:
        """Apply the final norm and projection: (B, D) to (B, E)."""

    def forward(self, images: Tensor, whole_last_block: bool = False) -> Tensor:
        """Return embeddings (B, E), not normalised, of images (B, 3, H, W)."""
        *blocks, last = self.blocks
        tokens = self.embed(images)
        for block in blocks:
            tokens = block(tokens)
        return self.project(last(tokens)[:, 0] if whole_last_block else self.last_block_class_token(tokens))

    def target_weights(self, targets: Sequence[str]) -> list[dict[str, Tensor]]:
        """Return the frozen weights (out, in) of each block, by target."""
        return [{target: self._part(block, target) for target in targets} for block in self.blocks]

    def with_targets(self, block_weights: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """Return parameters of this tower, by name, with the given weights for some targets of some blocks."""
        names = {id(parameter): name for name, parameter in self.named_parameters()}
        replaced: dict[str, Tensor] = {}
        for block, weights in zip(self.blocks, block_weights, strict=True):
            for key in dict.fromkeys(self.targets[target][0] for target in weights):
                parts = [target for target, (name, _) in self.targets.items() if name == key]
                joined = [weights[part] if part in weights else self._part(block, part) for part in parts]
                replaced[names[id(block.get_parameter(key))]] = torch.cat(joined) if len(joined) > 1 else joined[0]
        return replaced

    def _part(self, block: nn.Module, target: str) -> Tensor:
        key, part = self.targets[target]
        weight = block.get_parameter(key).detach()
        return weight if part is None else weight.chunk(3)[part]


def _heads(x: Tensor, heads: int) -> Tensor:
    B, N, D = x.shape
    return x.reshape(B, N, heads, D // heads).transpose(1, 2)


class OpenCLIPTower(ImageTower):
    """The image tower of an open_clip model.

    Raises:
        WeightsError: If the tower has no class token, or no tokens of constant width.
    """

    targets: ClassVar[Mapping[str, tuple[str, int | None]]] = {
        "q": ("attn.in_proj_weight", 0),
        "k": ("attn.in_proj_weight", 1),
        "v": ("attn.in_proj_weight", 2),
        "o": ("attn.out_proj.weight", None),
        "mlp_in": ("mlp.c_fc.weight", None),
        "mlp_out": ("mlp.c_proj.weight", None),
    }

    def __init__(self, visual: nn.Module, model: str) -> None:
        super().__init__()
        if not isinstance(visual, OpenCLIPVisionTransformer):
            raise refused(model, type(visual).__name__)
        if visual.attn_pool is not None or visual.pool_type != "tok" or visual.proj is None:
            raise WeightsError(f"encoder {model}: it pools all tokens; pfedst needs a class token as the answer")
        if type(visual.transformer.resblocks[-1]) is not ResidualAttentionBlock:
            raise WeightsError(f"encoder {model}: custom attention blocks are not supported")
        self.visual: Any = visual
        self.width = visual.conv1.out_channels
        self.tokens = visual.positional_embedding.shape[0]
        self.patches = self.tokens - 1
        self.embedding = visual.output_dim

    @property
    def blocks(self) -> nn.ModuleList:
        """The residual attention blocks."""
        found: nn.ModuleList = self.visual.transformer.resblocks
        return found

    def embed(self, images: Tensor) -> Tensor:
        """Apply convolution, class token, positions and ln_pre."""
        z_0: Tensor = self.visual._embeds(images)
        return z_0

    def last_block_class_token(self, tokens: Tensor) -> Tensor:
        """Compute the last residual attention block for the class token alone."""
        block: Any = self.blocks[-1]
        attention, D = block.attn, self.width
        y = block.ln_1(tokens)
        weight, bias = attention.in_proj_weight, attention.in_proj_bias
        q = F.linear(y[:, :1], weight[:D], bias[:D])
        k, v = F.linear(y, weight[D:], bias[D:]).chunk(2, -1)
        q, k, v = (_heads(x, attention.num_heads) for x in (q, k, v))
        attended = F.scaled_dot_product_attention(q, k, v)
        token = tokens[:, 0] + block.ls_1(attention.out_proj(attended.transpose(1, 2).flatten(1)))
        result: Tensor = token + block.ls_2(block.mlp(block.ln_2(token)))
        return result

    def project(self, class_token: Tensor) -> Tensor:
        """Apply ln_post, then the projection."""
        projected: Tensor = self.visual.ln_post(class_token) @ self.visual.proj
        return projected


class TimmTower(ImageTower):
    """A plain timm VisionTransformer with a class token (DINOv2, RETFound-like).

    Raises:
        WeightsError: If the architecture is another one, there is no class token, or a block is not a plain block.
    """

    targets: ClassVar[Mapping[str, tuple[str, int | None]]] = {
        "q": ("attn.qkv.weight", 0),
        "k": ("attn.qkv.weight", 1),
        "v": ("attn.qkv.weight", 2),
        "o": ("attn.proj.weight", None),
        "mlp_in": ("mlp.fc1.weight", None),
        "mlp_out": ("mlp.fc2.weight", None),
    }

    def __init__(self, vit: nn.Module, model: str) -> None:
        super().__init__()
        if not isinstance(vit, TimmVisionTransformer):
            raise refused(model, type(vit).__name__)
        last: Any = vit.blocks[-1]
        if not vit.has_class_token or type(last) is not Block or type(last.attn) is not Attention:
            raise WeightsError(f"encoder {model}: pfedst needs a class token and plain attention blocks")
        if last.attn.gate is not None:
            raise WeightsError(f"encoder {model}: gated attention is not supported")
        vit.reset_classifier(0)
        self.vit: Any = vit
        self.width = self.embedding = vit.embed_dim
        self.patches = vit.patch_embed.num_patches
        self.tokens = self.patches + vit.num_prefix_tokens

    @property
    def blocks(self) -> nn.ModuleList:
        """The blocks."""
        return nn.ModuleList(self.vit.blocks)

    def embed(self, images: Tensor) -> Tensor:
        """Apply patch embedding, class and register tokens and positions."""
        z_0: Tensor = self.vit.norm_pre(self.vit._pos_embed(self.vit.patch_embed(images)))
        return z_0

    def last_block_class_token(self, tokens: Tensor) -> Tensor:
        """Compute the last block for the class token alone."""
        block: Any = self.blocks[-1]
        attention = block.attn
        y = block.norm1(tokens)
        qkv, D = attention.qkv, attention.attn_dim
        bias = (None, None) if qkv.bias is None else (qkv.bias[:D], qkv.bias[D:])
        q = F.linear(y[:, :1], qkv.weight[:D], bias[0])
        k, v = F.linear(y, qkv.weight[D:], bias[1]).chunk(2, -1)
        q, k, v = (_heads(x, attention.num_heads) for x in (q, k, v))
        attended = F.scaled_dot_product_attention(attention.q_norm(q), attention.k_norm(k), v)
        attended = attention.proj(attention.norm(attended.transpose(1, 2).flatten(1)))
        token = tokens[:, 0] + block.ls1(attended)
        result: Tensor = token + block.ls2(block.mlp(block.norm2(token)))
        return result

    def project(self, class_token: Tensor) -> Tensor:
        """Apply the final norm; there is no projection."""
        projected: Tensor = self.vit.fc_norm(self.vit.norm(class_token))
        return projected


def refused(model: str, architecture: str) -> WeightsError:
    """Return the error for a tower without tokens of constant width."""
    return WeightsError(
        f"encoder {model}: its image tower is a {architecture}, which has no tokens of one width from block to "
        f"block, so that a side network has nothing to tap; choose a ViT (ViT-B-16-quickgelu, timm/vit_*)"
    )


def frozen(tower: ImageTower) -> ImageTower:
    """Return the tower in eval mode, float32, without gradients."""
    return tower.eval().float().requires_grad_(False)


def pooled_patches(tokens: Tensor, patches: int, grid: int) -> Tensor:
    """Average the last `patches` tokens of (B, N, D), which form a square, over a grid of grid x grid."""
    prefix, square = tokens[:, :-patches], tokens[:, -patches:]
    side = round(patches**0.5)
    image = square.transpose(1, 2).reshape(len(tokens), -1, side, side)
    averages = F.adaptive_avg_pool2d(image, grid).flatten(2).transpose(1, 2)
    return torch.cat([prefix, averages], 1)


def lie_on_square(positions: Tensor, prefix: int) -> bool:
    """Return True if positions (..., tokens, D), without the first `prefix` tokens, form a square grid."""
    if positions.ndim < 2 or not positions.numel():
        return False
    patches = positions.shape[-2] - prefix
    return patches > 0 and math.isqrt(patches) ** 2 == patches


def resized_positions(positions: Tensor, tokens: int) -> Tensor:
    """Resample the position embedding (1 + g*g, D) of a class token and a square grid to 1 + h*h = `tokens` rows.

    Bicubic with antialiasing, as open_clip does on loading. Positions that do not form a square are returned unchanged;
    the caller reports that they do not fit.
    """
    if positions.shape[0] == tokens or not lie_on_square(positions, 1):
        return positions
    old, new = math.isqrt(positions.shape[0] - 1), math.isqrt(tokens - 1)
    grid = positions[1:].reshape(1, old, old, -1).permute(0, 3, 1, 2).float()
    grid = F.interpolate(grid, size=(new, new), mode="bicubic", antialias=True, align_corners=False)
    return torch.cat([positions[:1].float(), grid.permute(0, 2, 3, 1).reshape(new * new, -1)])
