"""The VisionTransformers of timm, alone or as the trunk of an open_clip model, with or without rotary positions.

Shapes: B images, N tokens (class token first, if there is one), D width, E embedding, L blocks.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers.attention import Attention, AttentionRope
from timm.layers.pos_embed import resample_abs_pos_embed
from timm.layers.pos_embed_sincos import apply_rot_embed_cat
from timm.models.eva import Eva, EvaAttention, EvaBlock
from timm.models.vision_transformer import Block
from timm.models.vision_transformer import VisionTransformer as TimmVisionTransformer
from torch import Tensor, nn

from pfedst.encoders.towers import ImageTower, lie_on_square, split_heads

TARGETS: Mapping[str, tuple[tuple[str, int | None], ...]] = {
    "q": (("attn.qkv.weight", 0), ("attn.q_proj.weight", None)),
    "k": (("attn.qkv.weight", 1), ("attn.k_proj.weight", None)),
    "v": (("attn.qkv.weight", 2), ("attn.v_proj.weight", None)),
    "o": (("attn.proj.weight", None),),
    "mlp_in": (("mlp.fc1.weight", None),),
    "mlp_out": (("mlp.fc2.weight", None),),
}
"""The weights of timm's blocks by target: queries, keys and values lie in one matrix or in three. SwiGLU has no one
`mlp_in`."""
POOLINGS = {"avg": "averages its patches", "map": "pools its tokens by attention"}


class TimmTower(ImageTower):
    """A VisionTransformer or Eva of timm: DINOv2 and DINOv3, BiomedCLIP, SigLIP, EVA02, PE-Core.

    With rotary positions, averaged patches (`token_grid`) get the positions of an image of so many patches.

    Args:
        vit: the transformer, for which `runs_block_by_block` is True.
        head: open_clip's projection after the transformer, if there is one.
    """

    def __init__(self, vit: Any, head: nn.Module | None = None) -> None:
        super().__init__()
        self.vit: Any = vit
        self.head = head
        self.width = vit.embed_dim
        self.patches = vit.patch_embed.num_patches
        self.tokens = self.patches + vit.num_prefix_tokens
        self.image_size = int(vit.patch_embed.img_size[0])
        layers = [*vit.head.modules(), *(head or nn.Identity()).modules()]
        linear = [layer for layer in layers if isinstance(layer, nn.Linear)]
        self.embedding = linear[-1].out_features if linear else self.width
        self.class_token = vit.global_pool == "token" and vit.attn_pool is None
        self.alone = self.class_token and _is_plain(vit.blocks[-1])
        if not self.class_token:
            pools = POOLINGS.get(vit.global_pool, "pools its tokens")
            self.limits = f"its image tower {pools}, so that no class token is the embedding"
        names = {name for name, _ in vit.blocks[-1].named_parameters()}
        self.targets = {
            target: next(place for place in places if place[0] in names)
            for target, places in TARGETS.items()
            if any(key in names for key, _ in places)
        }
        self._coarse: dict[int, Any] = {}

    @property
    def blocks(self) -> nn.ModuleList:
        """The blocks."""
        return nn.ModuleList(self.vit.blocks)

    def embed(self, images: Tensor) -> Tensor:
        """Apply patch embedding, class and register tokens and positions."""
        tokens = self.vit._pos_embed(self.vit.patch_embed(images))
        z_0: Tensor = self.vit.norm_pre(tokens[0] if isinstance(tokens, tuple) else tokens)
        return z_0

    def run_block(self, index: int, tokens: Tensor) -> Tensor:
        """Return the output (B, N, D) of a block for its input (B, N, D)."""
        block, positions = self.vit.blocks[index], self._rotary(index, tokens)
        output: Tensor = block(tokens) if positions is None else block(tokens, rope=positions)
        return output

    def _rotary(self, index: int, tokens: Tensor) -> Tensor | None:
        """Return the rotary positions of the patches among the tokens, or None if the tower has none."""
        rope = getattr(self.vit, "rope", None)
        if rope is None:
            return None
        patches = tokens.shape[1] - self.vit.num_prefix_tokens
        grid = list(self.vit.patch_embed.grid_size)
        if patches != self.patches:
            grid = [math.isqrt(patches)] * 2
            if grid[0] not in self._coarse:
                self._coarse[grid[0]] = copy.deepcopy(rope)
                if hasattr(rope, "update_feat_shape"):
                    self._coarse[grid[0]].update_feat_shape(grid)
            rope = self._coarse[grid[0]].to(tokens.device)
        # as timm: positions of a fixed size are kept, and `shape` would be ignored
        known = hasattr(rope, "feat_shape") and not self.vit.dynamic_img_size
        positions: Tensor = rope.get_embed() if known else rope.get_embed(shape=grid)
        return positions[index] if getattr(self.vit, "rope_mixed", False) else positions

    def last_block_class_token(self, tokens: Tensor) -> Tensor:
        """Compute the last block for the class token alone. Rotary positions turn patches and no prefix token."""
        block: Any = self.vit.blocks[-1]
        attended = self._class_token_attention(block.attn, block.norm1(tokens), self._rotary(-1, tokens))
        if isinstance(block, EvaBlock):
            token = tokens[:, 0] + (attended if block.gamma_1 is None else block.gamma_1 * attended)
            changed = block.mlp(block.norm2(token))
            changed = changed if block.gamma_2 is None else block.gamma_2 * changed
        else:
            token = tokens[:, 0] + block.ls1(attended)
            changed = block.ls2(block.mlp(block.norm2(token)))
        result: Tensor = token + changed
        return result

    @staticmethod
    def _class_token_attention(attention: Any, y: Tensor, positions: Tensor | None) -> Tensor:
        """Return the output (B, D) of an attention for the class token of its input (B, N, D)."""
        q, k, v = _queries_keys_values(attention, y)
        q, k = attention.q_norm(q), attention.k_norm(k)
        if positions is not None:
            prefix = attention.num_prefix_tokens
            turned = apply_rot_embed_cat(k[:, :, prefix:], positions, half=attention.rotate_half)
            k = torch.cat([k[:, :, :prefix], turned], 2).type_as(v)
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(1)
        output: Tensor = attention.proj(attention.norm(attended))
        return output

    def pool(self, tokens: Tensor) -> Tensor:
        """Return the class token, or apply timm's final norm and pooling."""
        pooled: Tensor = tokens[:, 0] if self.class_token else self.vit.pool(self.vit.norm(tokens))
        return pooled

    def project(self, summary: Tensor) -> Tensor:
        """Apply the final norm to a class token, then timm's head and open_clip's projection, if there are any."""
        normed = self.vit.norm(summary) if self.class_token else summary
        projected: Tensor = self.vit.head(self.vit.fc_norm(normed))
        return projected if self.head is None else self.head(projected)


def runs_block_by_block(network: nn.Module) -> bool:
    """Return True if a timm network is a VisionTransformer or Eva that passes its tokens through as these do."""
    for base in (TimmVisionTransformer, Eva):
        if isinstance(network, base):
            changed = [getattr(type(network), name) is not getattr(base, name) for name in ("forward_features", "pool")]
            return not any(changed) and type(network).forward_head is base.forward_head
    return False


def take_class_token(vit: Any) -> None:
    """Let a transformer without a head answer with its class token, if it averages patches by default only.

    timm averages the patches of DINOv3; its publisher and timm's own note take the class token. Where a norm was
    trained after the average, the average is the answer.
    """
    if vit.global_pool == "avg" and vit.cls_token is not None:
        averaged_first = not isinstance(vit.fc_norm, nn.Identity) or isinstance(vit.norm, nn.Identity)
        if not averaged_first:
            vit.reset_classifier(0, "token")


def fit_positions(state: dict[str, Tensor], vit: Any, key: str) -> None:
    """Resample the learned positions of a file to the image size of the tower, as timm does."""
    positions = state.get(key)
    prefix = 0 if vit.no_embed_class else vit.num_prefix_tokens
    if positions is not None and positions.ndim == 3 and lie_on_square(positions, prefix):
        grid = list(vit.patch_embed.grid_size)
        state[key] = resample_abs_pos_embed(positions, grid, num_prefix_tokens=prefix)


def _is_plain(block: Any) -> bool:
    if type(block) is Block:
        return type(block.attn) is Attention and block.attn.gate is None
    return type(block) is EvaBlock and type(block.attn) in (EvaAttention, AttentionRope) and block.attn.gate is None


def _queries_keys_values(attention: Any, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return queries of the first token and keys and values of all: (B, heads, 1 or N, D / heads) each."""
    heads = attention.num_heads
    if attention.qkv is None:
        groups = heads // getattr(attention, "num_kv_heads", heads)
        q = split_heads(attention.q_proj(y[:, :1]), heads)
        k, v = (split_heads(layer(y), heads // groups) for layer in (attention.k_proj, attention.v_proj))
        return q, k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    weight, bias = attention.qkv.weight, attention.qkv.bias
    if getattr(attention, "q_bias", None) is not None:
        bias = torch.cat([attention.q_bias, attention.k_bias, attention.v_bias])
    D = len(weight) // 3
    parts = (None, None) if bias is None else (bias[:D], bias[D:])
    q = split_heads(F.linear(y[:, :1], weight[:D], parts[0]), heads)
    k, v = (split_heads(x, heads) for x in F.linear(y, weight[D:], parts[1]).chunk(2, -1))
    return q, k, v
