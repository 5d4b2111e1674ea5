"""LoRA for a linear layer, with a switch (Hu et al., ICLR 2022; placed as in the pFedST architecture figure)."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pfedst.errors import ConfigurationError

M = TypeVar("M", bound=nn.Module)


class LoRALinear(nn.Linear):
    """A linear layer to which a low-rank update can be attached: W_eff = W + (alpha / rank) B A.

    W is trained as well, so the update is merged into the weight once per forward pass. The result equals that of the
    two-branch form, without storing its activations for every token. State-dict names: `weight`, `bias`, and once
    attached `lora_A` (rank, in) and `lora_B` (out, rank).

    Attributes:
        switch_closed: if False (the switch is open), the update is not applied.
    """

    lora_A: nn.Parameter | None
    lora_B: nn.Parameter | None

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features)
        self.register_parameter("lora_A", None)
        self.register_parameter("lora_B", None)
        self.lora_scale = 0.0
        self.switch_closed = True

    def attach_lora(self, rank: int, alpha: float) -> None:
        """Attach an update of `rank` >= 1. A is Kaiming uniform (a = sqrt 5) and B is zero, so the update starts at
        zero.

        Raises:
            ConfigurationError: If the rank is below 1 or above the smaller dimension of the layer.
        """
        largest = min(self.in_features, self.out_features)
        if not 1 <= rank <= largest:
            raise ConfigurationError(
                f"LoRA rank {rank} does not fit a {self.in_features} -> {self.out_features} layer: "
                f"give a rank from 1 to {largest}"
            )
        self.lora_A = nn.Parameter(self.weight.new_empty(rank, self.in_features))
        self.lora_B = nn.Parameter(self.weight.new_zeros(self.out_features, rank))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))
        self.lora_scale = alpha / rank

    def effective_weight(self) -> Tensor:
        """Return W_eff (out, in), or W if no update is applied."""
        if self.lora_A is None or self.lora_B is None or not self.switch_closed:
            return self.weight
        return torch.addmm(self.weight, self.lora_B, self.lora_A, alpha=self.lora_scale)

    @torch.no_grad()
    def merge(self) -> None:
        """Replace W by W_eff and remove the update."""
        self.weight.copy_(self.effective_weight())
        self.lora_A = self.lora_B = None

    def forward(self, input: Tensor) -> Tensor:
        """Map (..., in) to (..., out)."""
        return F.linear(input, self.effective_weight(), self.bias)


def lora_layers(module: nn.Module) -> list[tuple[str, LoRALinear]]:
    """Return the name and layer of every `LoRALinear` in `module`."""
    return [(name, layer) for name, layer in module.named_modules() if isinstance(layer, LoRALinear)]


def with_lora_merged(module: M) -> M:
    """Return a copy of a module in which every `LoRALinear` has its update merged into its weight."""
    copied = copy.deepcopy(module)
    for _, layer in lora_layers(copied):
        layer.merge()
    return copied


@contextmanager
def switches_open(module: nn.Module) -> Iterator[None]:
    """Run a block with every LoRA update in `module` switched off (the generic model)."""
    layers = [layer for _, layer in lora_layers(module)]
    before = [layer.switch_closed for layer in layers]
    for layer in layers:
        layer.switch_closed = False
    try:
        yield
    finally:
        for layer, closed in zip(layers, before, strict=True):
            layer.switch_closed = closed
