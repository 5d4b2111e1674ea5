"""Image towers with access to single blocks: a common interface, and the towers of open_clip.

Shapes: B images, N tokens (class token first, if there is one), D width, E embedding, L blocks.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from open_clip.transformer import ResidualAttentionBlock
from open_clip.transformer import VisionTransformer as OpenCLIPVisionTransformer
from torch import Tensor, nn

from pfedst.errors import ConfigurationError


class ImageTower(nn.Module):
    """A frozen image tower: tokens of one width in L blocks, and one embedding per image.

    Attributes:
        blocks: the L blocks; empty if the tower cannot be run block by block (`PooledTower`).
        width, tokens, embedding: D, N, E.
        patches: number of patches among the N tokens; the patches come last.
        image_size: side of the square input in pixels.
        class_token: True if the embedding is that of the class token, False if it is pooled over tokens.
        alone: True if block L can be computed for the class token alone.
        limits: what this tower cannot do and why, as a sentence; empty for a tower with a class token.
        targets: the linear layers of a block that a low-rank update may change: queries, keys, values, attention
            output, and the two layers of the MLP. Each entry names a weight of the block and, if the weight holds
            several targets, the index of the part.
    """

    width: int
    tokens: int
    patches: int
    embedding: int
    image_size: int
    class_token: bool = True
    alone: bool = True
    limits: str = ""
    targets: Mapping[str, tuple[str, int | None]]

    @property
    @abstractmethod
    def blocks(self) -> nn.ModuleList:
        """The L blocks, each (B, N, D) -> (B, N, D)."""

    @abstractmethod
    def embed(self, images: Tensor) -> Tensor:
        """Return Z_0 (B, N, D) for images (B, 3, H, W): patches, class token, positions, norm."""

    def run_block(self, index: int, tokens: Tensor) -> Tensor:
        """Return the output (B, N, D) of a block for its input (B, N, D)."""
        output: Tensor = self.blocks[index](tokens)
        return output

    @abstractmethod
    def last_block_class_token(self, tokens: Tensor) -> Tensor:
        """Compute block L for the class token alone: (B, N, D) to (B, D).

        Only this token of the output of block L is used. Queries, output projection and MLP are computed for one token,
        keys and values for all. The result equals that of the whole block at about a sixth of the cost.
        """

    def pool(self, tokens: Tensor) -> Tensor:
        """Return the class token (B, D) of the output (B, N, D) of block L, or pool its tokens after the final norm."""
        return tokens[:, 0]

    def summary(self, tokens: Tensor, whole_last_block: bool) -> Tensor:
        """Return what `project` maps to the embedding, (B, D), for the input (B, N, D) of block L."""
        if self.alone and not whole_last_block:
            return self.last_block_class_token(tokens)
        return self.pool(self.run_block(-1, tokens))

    @abstractmethod
    def project(self, summary: Tensor) -> Tensor:
        """Apply the projection, and the final norm to a class token: (B, D) to (B, E)."""

    def forward(self, images: Tensor, whole_last_block: bool = False) -> Tensor:
        """Return embeddings (B, E), not normalised, of images (B, 3, H, W)."""
        tokens = self.embed(images)
        for index in range(len(self.blocks) - 1):
            tokens = self.run_block(index, tokens)
        return self.project(self.summary(tokens, whole_last_block))

    def target_weights(self, targets: Sequence[str]) -> list[dict[str, Tensor]]:
        """Return the frozen weights (out, in) of each block, by target.

        Raises:
            ConfigurationError: If the blocks have no such layer.
        """
        if absent := [target for target in targets if target not in self.targets]:
            raise ConfigurationError(
                f"the blocks of this image tower have no single layer {absent[0]!r} that a low-rank update could "
                f"change; choose from {', '.join(self.targets) or 'none'}"
            )
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


def split_heads(x: Tensor, heads: int) -> Tensor:
    """Return (B, heads, N, D / heads) for (B, N, D)."""
    B, N, D = x.shape
    return x.reshape(B, N, heads, D // heads).transpose(1, 2)


OPEN_CLIP_TARGETS: Mapping[str, tuple[str, int | None]] = {
    "q": ("attn.in_proj_weight", 0),
    "k": ("attn.in_proj_weight", 1),
    "v": ("attn.in_proj_weight", 2),
    "o": ("attn.out_proj.weight", None),
    "mlp_in": ("mlp.c_fc.weight", None),
    "mlp_out": ("mlp.c_proj.weight", None),
}


class OpenCLIPTower(ImageTower):
    """The VisionTransformer of open_clip. CLIP answers with its class token; CoCa and CLIPA pool their tokens."""

    def __init__(self, visual: OpenCLIPVisionTransformer) -> None:
        super().__init__()
        self.visual: Any = visual
        self.width = visual.conv1.out_channels
        self.tokens = visual.positional_embedding.shape[0]
        self.patches = self.tokens - 1
        self.embedding = visual.output_dim
        self.image_size = int(visual.image_size[0])
        self.class_token = visual.attn_pool is None and visual.pool_type == "tok"
        self.alone = self.class_token and type(self.blocks[-1]) is ResidualAttentionBlock
        self.targets = OPEN_CLIP_TARGETS
        if not self.class_token:
            self.limits = "its image tower pools all tokens to the embedding, and its class token is not the embedding"

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
        q, k, v = (split_heads(x, attention.num_heads) for x in (q, k, v))
        attended = F.scaled_dot_product_attention(q, k, v)
        token = tokens[:, 0] + block.ls_1(attention.out_proj(attended.transpose(1, 2).flatten(1)))
        result: Tensor = token + block.ls_2(block.mlp(block.ln_2(token)))
        return result

    def pool(self, tokens: Tensor) -> Tensor:
        """Return the class token, or apply open_clip's norm and pooling."""
        return tokens[:, 0] if self.class_token else self.visual._pool(tokens)[0]

    def project(self, summary: Tensor) -> Tensor:
        """Apply ln_post to a class token, then the projection."""
        normed: Tensor = self.visual.ln_post(summary) if self.class_token else summary
        return normed if self.visual.proj is None else normed @ self.visual.proj


class PooledTower(ImageTower):
    """A tower that is run as a whole, such as a ResNet or a Swin transformer. It has an embedding and nothing else.

    Args:
        network: images (B, 3, H, W) to embeddings (B, E).
        image_size: side of the square input in pixels.
        limits: why there are no tokens to tap, as a sentence.
    """

    class_token = False
    alone = False

    def __init__(self, network: nn.Module, image_size: int, limits: str) -> None:
        super().__init__()
        self.network = network.eval()
        self.image_size = image_size
        self.limits = limits
        self.targets = {}
        self.width = self.tokens = self.patches = 0
        with torch.no_grad():
            self.embedding = int(network(torch.zeros(1, 3, image_size, image_size)).shape[-1])

    @property
    def blocks(self) -> nn.ModuleList:
        """No blocks."""
        return nn.ModuleList()

    def embed(self, images: Tensor) -> Tensor:
        """Raise ConfigurationError: there are no tokens."""
        raise ConfigurationError(self.limits)

    def last_block_class_token(self, tokens: Tensor) -> Tensor:
        """Raise ConfigurationError: there are no tokens."""
        raise ConfigurationError(self.limits)

    def project(self, summary: Tensor) -> Tensor:
        """Raise ConfigurationError: there are no tokens."""
        raise ConfigurationError(self.limits)

    def forward(self, images: Tensor, whole_last_block: bool = False) -> Tensor:
        """Return embeddings (B, E), not normalised, of images (B, 3, H, W)."""
        embeddings: Tensor = self.network(images)
        return embeddings


def why_no_tokens(network: Any) -> str:
    """Return why a network cannot be tapped block by block: its widths, or its class."""
    name = type(network).__name__
    widths = [stage["num_chs"] for stage in getattr(network, "feature_info", None) or []]
    if name == "ModifiedResNet":
        widths = [getattr(network, f"layer{stage}")[-1].bn3.num_features for stage in range(1, 5)]
    if len(set(widths)) > 1:
        return (
            f"its image tower is a {name}, whose stages have {', '.join(map(str, widths))} channels: a side network "
            f"needs tokens of one width"
        )
    return f"its image tower is a {name}, whose blocks pfedst does not run one by one"


def frozen(tower: ImageTower) -> ImageTower:
    """Return the tower in eval mode, float32, without gradients."""
    return tower.eval().float().requires_grad_(False)


def pooled_patches(tokens: Tensor, patches: int, grid: int) -> Tensor:
    """Average the last `patches` tokens of (B, N, D), which form a square, over a grid of grid x grid."""
    prefix, square = tokens[:, :-patches], tokens[:, -patches:]
    side = round(patches**0.5)
    # not len(tokens): it is a number, which an exported graph would keep
    image = square.transpose(1, 2).reshape(tokens.shape[0], -1, side, side)
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
