"""The side network of pFedST: a ladder of small attention blocks beside the frozen tower.

Source: architecture figure of "Personalized Federated Side-Tuning for Medical Image Classification" (MICCAI 2025).
Shapes: B batch, N tokens (class token first), D tower width, W side width, L tower blocks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pfedst.adapters.adapter import Adapter
from pfedst.adapters.lora import LoRALinear
from pfedst.encoders import AnchorHead, Encoder, EncoderSpec, Taps
from pfedst.errors import ConfigurationError

TapNorm = Literal["frozen", "affine", "none"]
Gate = Literal["sum", "learned"]


class SideBlock(nn.Module):
    """A "pMHSA" block: S = X + O(MHSA(Norm(X))), with an optional feed-forward part.

    Args:
        width: W, channels of the side network.
        heads: number of attention heads; must divide `width`.
        feed_forward_ratio: hidden width of the feed-forward part, as a multiple of W; 0 for none.
    """

    def __init__(self, width: int, heads: int, feed_forward_ratio: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.o = LoRALinear(width, width)
        hidden = int(width * feed_forward_ratio)
        self.feed_forward = (
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))
            if hidden
            else None
        )

    def forward(self, x_BNW: Tensor) -> Tensor:
        """Map (B, N, W) to (B, N, W)."""
        B, N, W = x_BNW.shape
        q, k, v = self.qkv(self.norm(x_BNW)).view(B, N, 3, self.heads, W // self.heads).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(B, N, W)
        s_BNW: Tensor = x_BNW + self.o(attended)
        return s_BNW if self.feed_forward is None else s_BNW + self.feed_forward(s_BNW)


class Ladder(nn.Module):
    """Compute from the taps Z_0 .. Z_{L-1} the correction that is added to Z_{L-1}.

    P_i = down_i(Z_i);  X_1 = P_0;  X_{i+1} = S_i(X_i) + P_i  for i = 1 .. L-1;  correction = up(X_L).
    `up` starts at zero, so the correction of an untrained ladder is zero.
    """

    def __init__(
        self,
        spec: EncoderSpec,
        width: int,
        heads: int,
        tap_norm: TapNorm,
        gate: Gate,
        feed_forward_ratio: float,
    ) -> None:
        super().__init__()
        self.tap_norm = tap_norm
        self.down = nn.ModuleList(LoRALinear(spec.width, width) for _ in range(spec.layers))
        self.blocks = nn.ModuleList(SideBlock(width, heads, feed_forward_ratio) for _ in range(spec.layers - 1))
        self.up = LoRALinear(width, spec.width)
        if tap_norm == "affine":
            self.tap_norms = nn.ModuleList(nn.LayerNorm(spec.width) for _ in range(spec.layers))
        if gate == "learned":
            self.gates = nn.Parameter(torch.zeros(spec.layers - 1))
        self.gate = gate
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set truncated normal weights with standard deviation 1/sqrt(fan in), zero biases and a zero up-projection."""
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=layer.in_features**-0.5)
                nn.init.zeros_(layer.bias)
        nn.init.zeros_(self.up.weight)

    def project(self, index: int, z_BND: Tensor) -> Tensor:
        """Return P_i (B, N, W). The norm of the taps grows over the tower, so a LayerNorm precedes the projection."""
        if self.tap_norm == "frozen":
            z_BND = F.layer_norm(z_BND, z_BND.shape[-1:])
        elif self.tap_norm == "affine":
            z_BND = self.tap_norms[index](z_BND)
        projected: Tensor = self.down[index](z_BND)
        return projected

    def forward(self, taps: Sequence[Tensor]) -> Tensor:
        """Return the correction (B, N, D) for L taps (B, N, D)."""
        x_BNW = self.project(0, taps[0])
        for index, block in enumerate(self.blocks):
            s_BNW, p_BNW = block(x_BNW), self.project(index + 1, taps[index + 1])
            if self.gate == "learned":
                # 2 sigmoid(0) = 1: a gated ladder starts as the plain sum
                openness = 2 * torch.sigmoid(self.gates[index])
                x_BNW = openness * s_BNW + (2 - openness) * p_BNW
            else:
                x_BNW = s_BNW + p_BNW
        correction: Tensor = self.up(x_BNW)
        return correction


class SideNetwork(Adapter):
    """Add the correction of a ladder of small blocks to Z_{L-1}, then apply the FROZEN last block, norm and projection.

    Gradients pass through block L only. An untrained side network predicts exactly as the encoder does. State-dict
    names: `side.down.{l}.*`, `side.blocks.{j}.{norm,qkv,o}.*`, `side.up.*`, and `head.weight` with learned anchors.

    Args:
        encoder: the frozen encoder.
        head: the class anchors.
        width: W, channels of the side network. Default: D / 8, rounded up to a multiple of `head_width`.
        head_width: channels of one attention head; must divide `width`.
        tap_norm: LayerNorm before the down-projection of a tap: `frozen` (without parameters), `affine` (with
            parameters) or `none`.
        gate: how the output of a block and the next tap are combined: `sum`, as in the figure, or `learned`, a trained
            balance of the two.
        feed_forward_ratio: hidden width of a feed-forward part in each block, as a multiple of W; 0 for none.

    Raises:
        ConfigurationError: If `head_width` does not divide `width`, or the tower has fewer than two blocks.
    """

    needs = "taps"

    def __init__(
        self,
        encoder: Encoder,
        head: AnchorHead,
        width: int | None = None,
        head_width: int = 32,
        tap_norm: TapNorm = "frozen",
        gate: Gate = "sum",
        feed_forward_ratio: float = 0.0,
    ) -> None:
        super().__init__(encoder, head)
        spec = encoder.spec
        if head_width < 1:
            raise ConfigurationError(f"side network: head_width {head_width} must be 1 or more")
        if width is None:
            width = math.ceil(spec.width / 8 / head_width) * head_width
        if width < 1 or width % head_width:
            raise ConfigurationError(f"side network: width {width} is not a multiple of head_width {head_width}")
        if spec.layers < 2:
            raise ConfigurationError(f"side network: the tower has {spec.layers} block; at least 2 are needed")
        self.side = Ladder(spec, width, width // head_width, tap_norm, gate, feed_forward_ratio)

    def embed(self, taps: Taps) -> Tensor:
        """Return image embeddings (B, E) for L taps (B, N, D): the frozen block L applied to Z_{L-1} + correction."""
        return self.encoder.finish(taps.tensors[-1] + self.side(taps.tensors), taps.correction)
