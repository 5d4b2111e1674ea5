"""LoRA inside the frozen image tower (Hu et al., ICLR 2022). Gradients pass through every block above the first update.

Shapes: B images, E embedding, L blocks, r rank.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn

from pfedst.adapters.adapter import Adapter
from pfedst.adapters.embedding import PooledHead
from pfedst.encoders import AnchorHead, Encoder, Taps
from pfedst.errors import ConfigurationError

Target = Literal["q", "k", "v", "o", "mlp_in", "mlp_out"]


class LowRank(nn.Module):
    """A low-rank update scale * B A of a weight (out, in): A (r, in) is Kaiming uniform, B (out, r) is zero."""

    def __init__(self, weight: Tensor, rank: int) -> None:
        super().__init__()
        out_features, in_features = weight.shape
        self.A = nn.Parameter(torch.empty(rank, in_features))
        self.B = nn.Parameter(torch.zeros(out_features, rank))
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))

    def added_to(self, weight: Tensor, scale: float) -> Tensor:
        """Return weight + scale * B A."""
        return torch.addmm(weight, self.B, self.A, alpha=scale)


class LoRATower(Adapter):
    """Apply low-rank updates to linear layers of the image tower, and return the embedding of the tower.

    All clients share the tower. In each forward pass the update is added to a copy of each changed weight, and the
    tower itself is never modified. The result equals that of the two-branch form.

    A branch is a set of updates; branches add up. The first branch is named `lora`, and a method may add others.
    State-dict names: `BRANCH.{block}.{target}.{A,B}`.

    Attributes:
        strengths: factor on each branch, by name.

    Args:
        encoder: the frozen encoder.
        head: the class anchors.
        rank: r of every update, >= 1.
        alpha: scale; an update is alpha / rank * B A.
        targets: layers to update: q, k, v, o of the attention, mlp_in, mlp_out.
        last_blocks: number of blocks to update, counted from the last block, >= 1. Default: all blocks. Gradients do
            not pass below these blocks.

    Raises:
        ConfigurationError: If an option is out of range, or the encoder has no tower.
    """

    needs = "images"

    def __init__(
        self,
        encoder: Encoder,
        head: AnchorHead,
        rank: int = 8,
        alpha: float = 8.0,
        targets: Sequence[Target] = ("q", "v"),
        last_blocks: int | None = None,
    ) -> None:
        super().__init__(encoder, head)
        L = encoder.spec.layers
        last_blocks = L if last_blocks is None else last_blocks
        if not 1 <= last_blocks <= L:
            raise ConfigurationError(f"--model.adapter.last_blocks {last_blocks}: must be from 1 to {L}, the tower's")
        if not targets or len(set(targets)) != len(targets):
            raise ConfigurationError(f"--model.adapter.targets {list(targets)}: name each layer once, at least one")
        self.targets, self.rank, self.scale = tuple(targets), rank, alpha / rank if rank else 0.0
        self.first = L - last_blocks
        self.strengths: dict[str, float] = {}
        self.add_branch("lora")

    def add_branch(self, name: str) -> None:
        """Add a branch with updates of the same shapes. The updates start at zero."""
        updates = nn.ModuleDict()
        for index, weights in enumerate(self.encoder.block_weights(self.targets)):
            if index < self.first:
                continue
            largest = min(min(weight.shape) for weight in weights.values())
            if not 1 <= self.rank <= largest:
                raise ConfigurationError(f"--model.adapter.rank {self.rank}: must be from 1 to {largest}")
            updates[str(index)] = nn.ModuleDict({t: LowRank(weight, self.rank) for t, weight in weights.items()})
        self.add_module(name, updates)
        self.strengths[name] = 1.0

    @contextmanager
    def strength(self, **factors: float) -> Iterator[None]:
        """Run a block with other factors on the named branches: `strength(lora=0.5, personal=0.5)`."""
        before = dict(self.strengths)
        self.strengths |= factors
        try:
            yield
        finally:
            self.strengths = before

    def weights(self) -> list[dict[str, Tensor]]:
        """Return the updated weights (out, in) of each block, by target. Unchanged blocks have no entries."""
        changed = self.encoder.block_weights(self.targets)
        for index, weights in enumerate(changed):
            if index < self.first:
                weights.clear()
            for target, weight in weights.items():
                for name, factor in self.strengths.items():
                    if factor:
                        update = self.get_submodule(f"{name}.{index}.{target}")
                        assert isinstance(update, LowRank)
                        weight = update.added_to(weight, factor * self.scale)
                weights[target] = weight
        return changed

    @torch.no_grad()
    def merged(self) -> Adapter:
        """Return the head of this adapter on an encoder of its own, to whose weights the updates are added."""
        return PooledHead(self.encoder.with_block_weights(self.weights()), copy.deepcopy(self.head)).eval()

    def embed(self, taps: Taps) -> Tensor:
        """Return embeddings (B, E) of the updated tower for images (B, 3, H, W)."""
        return self.encoder.embed(taps.tensors[0], self.weights())
