"""pFedST: a shared side network with personal LoRA inside it."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, Literal

from torch import Tensor

from pfedst.adapters import Adapter, lora_layers, switches_open
from pfedst.errors import ConfigurationError
from pfedst.methods.interface import Batch, FederatedMethod, LocalModel
from pfedst.methods.partition import Rule

Schedule = Literal["joint", "alternate"]


def _is_lora(key: str) -> bool:
    return key.rsplit(".", 1)[-1] in ("lora_A", "lora_B")


class PFedST(FederatedMethod):
    """Personalised federated side-tuning: a shared side network with personal LoRA beside its projections.

    Why: hospitals share the task and differ in cameras, light and case mix. Personal low-rank updates absorb these
        differences, so that they do not enter the merge. Gradients pass through only one block of the frozen tower.
    Method: every client trains the whole side network. Its LoRA (beside every down-projection, every attention output
        O, and the up-projection) never leaves the hospital; the rest is averaged over clients.
    When to use: sites that differ, little memory (one block of the tower is trained through), a few megabytes a round.
    Differs from the paper in: details that the paper does not give (widths, rank, initialisation, schedule) are
        options, with our own defaults.

    Args:
        rank: rank of every personal LoRA, >= 1. A higher rank fits small sites too closely: see benchmarks/recipe.py.
        alpha: scale of the LoRA; the update is alpha / rank * B A.
        schedule: `joint` trains both parts together. `alternate` trains the shared part with the LoRA switched
            off in the first `shared_epochs` local epochs of a round, then the LoRA alone.
        shared_epochs: epochs of the shared part in `alternate`, >= 1; a round needs at least one more epoch.
        lora_learning_rate_scale: factor on the learning rate of the LoRA, > 0.
        strength: factor on the LoRA in predictions, in [0, 1]; training uses the full LoRA. 1: as trained; 0: the
            merged part alone. Values between them interpolate the weights.
        options: see FederatedMethod.
    """

    source = "Personalized Federated Side-Tuning for Medical Image Classification, MICCAI 2025"

    def __init__(
        self,
        rank: int = 2,
        alpha: float = 2.0,
        schedule: Schedule = "joint",
        shared_epochs: int = 1,
        lora_learning_rate_scale: float = 1.0,
        strength: float = 1.0,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.rank = rank
        self.alpha = alpha
        self.schedule = schedule
        self.shared_epochs = shared_epochs
        self.lora_learning_rate_scale = lora_learning_rate_scale
        self.strength = strength
        self.require("shared_epochs", shared_epochs >= 1, "must be 1 or more")
        self.require("lora_learning_rate_scale", lora_learning_rate_scale > 0, "must be above 0")
        self.require("strength", 0 <= strength <= 1, "must be in [0, 1]")

    def partition(self, client: LocalModel) -> Sequence[Rule]:
        """LoRA is personal, the rest shared."""
        return [("*.lora_[AB]", "personal"), ("*", "shared")]

    @property
    def fewest_local_epochs(self) -> int:
        """`alternate` needs an epoch for each of the two parts."""
        return self.shared_epochs + 1 if self.schedule == "alternate" else 1

    def trainable(self, client: LocalModel, key: str, epoch: int) -> bool:
        """All at once (joint), or shared first, then personal (alternate)."""
        return self.schedule == "joint" or _is_lora(key) == (epoch >= self.shared_epochs)

    def learning_rate_scale(self, key: str) -> float:
        """The LoRA may have a learning rate of its own."""
        return self.lora_learning_rate_scale if _is_lora(key) else 1.0

    def build(self, client: LocalModel) -> None:
        """Attach the personal LoRA; it starts at zero."""
        layers = lora_layers(client.adapter)
        if not layers:
            raise ConfigurationError(
                f"PFedST: {type(client.adapter).__name__} has no layer for a personal LoRA; use "
                f"--model.adapter SideNetwork"
            )
        for _, layer in layers:
            layer.attach_lora(self.rank, self.alpha)

    def loss(self, client: LocalModel, batch: Batch) -> Tensor:
        """Cross-entropy; with the LoRA switched off while `alternate` trains the shared part."""
        shared_phase = self.schedule == "alternate" and client.local_epoch < self.shared_epochs
        with switches_open(client.adapter) if shared_phase else nullcontext():
            return super().loss(client, batch)

    def personal_model(self, client: LocalModel) -> Adapter:
        """The side network with the client's LoRA, at the chosen strength."""
        if self.strength == 1:
            return client.adapter
        adapter = copy.deepcopy(client.adapter)
        for _, layer in lora_layers(adapter):
            layer.lora_scale *= self.strength
        return adapter
