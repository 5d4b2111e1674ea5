"""LoRA beside a linear layer, behind a switch (Hu et al., ICLR 2022; placed as in the pFedST architecture figure)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pfedst.errors import ConfigurationError


class LoRALinear(nn.Linear):
    """A linear layer beside which a low-rank update can be attached: W_eff = W + (alpha / rank) B A.

    The update is merged into the weight once a forward pass, because W is trained anyway: equal to the two-branch
    form, without its activations for every token. State-dict names: `weight`, `bias`, and once attached `lora_A`
    (rank, in) and `lora_B` (out, rank).

    Attributes:
        switch_closed: while False ("open"), the layer answers as if nothing were attached.
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
        """Attach an update of `rank` >= 1 that starts at zero: A Kaiming uniform (a = sqrt 5), B zero.

        Raises:
            ConfigurationError: rank below 1 or above what the layer can hold.
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

    def forward(self, input: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        if self.lora_A is None or self.lora_B is None or not self.switch_closed:
            return F.linear(input, self.weight, self.bias)
        return F.linear(input, torch.addmm(self.weight, self.lora_B, self.lora_A, alpha=self.lora_scale), self.bias)


def lora_layers(module: nn.Module) -> list[tuple[str, LoRALinear]]:
    """Every layer of `module` beside which LoRA can be attached, with its name."""
    return [(name, layer) for name, layer in module.named_modules() if isinstance(layer, LoRALinear)]


@contextmanager
def switches_open(module: nn.Module) -> Iterator[None]:
    """Run a block with every LoRA of `module` switched off: the generic model."""
    layers = [layer for _, layer in lora_layers(module)]
    before = [layer.switch_closed for layer in layers]
    for layer in layers:
        layer.switch_closed = False
    try:
        yield
    finally:
        for layer, closed in zip(layers, before, strict=True):
            layer.switch_closed = closed
