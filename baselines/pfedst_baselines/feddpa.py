"""FedDPA: a shared and a personal LoRA in the image tower."""

import copy
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

from torch import Tensor

from pfedst.adapters import Adapter, LoRATower
from pfedst.methods.interface import Batch, LocalModel, Weighting
from pfedst.methods.partition import Rule
from pfedst_baselines.fedlora import FedLoRA


class FedDPA(FedLoRA):
    """Dual LoRA: two sets of updates in the image tower; one is averaged over clients, the other is personal.

    Why: it is the published method that is closest to pFedST: personal low-rank updates, but inside the tower.
    Method: `joint` (dual LoRA) trains W0 + B A + B_k A_k at once. `alternate` (FedDPA-T) first trains the personal
        part of an equal mix of both with the shared part fixed, then the shared part alone. Uniform mean.
    When to use: as FedLoRA, if sites differ. It trains twice as many numbers and sends as many.
    Differs from the paper in: the joint form is the default; `alternate` predicts with a fixed equal mix. The paper
        weighs the mix for each image by its similarity to five local images.

    Args:
        schedule: `joint`, or `alternate`.
        personal_epochs: first local epochs of a round that train the personal part in `alternate`, >= 1.
        weighting: see FederatedMethod; the paper's is `uniform`.
        options: see FederatedMethod.
    """

    source = "Yang et al., Dual-Personalizing Adapter for Federated Foundation Models, NeurIPS 2024"
    personalises = True

    def __init__(
        self,
        schedule: Literal["joint", "alternate"] = "joint",
        personal_epochs: int = 1,
        weighting: Weighting = "uniform",
        **options: Any,
    ) -> None:
        super().__init__(weighting, **options)
        self.schedule, self.personal_epochs = schedule, personal_epochs
        self.require("personal_epochs", personal_epochs >= 1, "must be 1 or more")

    @property
    def fewest_local_epochs(self) -> int:
        """`alternate` needs an epoch for each part."""
        return self.personal_epochs + 1 if self.schedule == "alternate" else 1

    def build(self, client: LocalModel) -> None:
        """Attach the personal updates."""
        assert isinstance(client.adapter, LoRATower)
        client.adapter.add_branch("personal")

    def partition(self, client: LocalModel) -> list[Rule]:
        """The second set is personal."""
        return [("personal.*", "personal"), ("*", "shared")]

    def trainable(self, client: LocalModel, key: str, epoch: int) -> bool:
        """Both at once, or personal first, then shared."""
        return self.schedule == "joint" or key.startswith("personal.") == (epoch < self.personal_epochs)

    def loss(self, client: LocalModel, batch: Batch) -> Tensor:
        """Cross-entropy; of the shared part alone while `alternate` trains it."""
        alone = client.local_epoch >= self.personal_epochs
        with self._mix(client, lora=1.0, personal=0.0) if alone else self._mix(client, lora=0.5, personal=0.5):
            return super().loss(client, batch)

    def personal_model(self, client: LocalModel) -> Adapter:
        """Return the adapter with both parts; in `alternate` a copy with half of each."""
        if self.schedule == "joint":
            return client.adapter
        mixed = copy.deepcopy(client.adapter)
        assert isinstance(mixed, LoRATower)
        mixed.strengths = mixed.strengths | {"lora": 0.5, "personal": 0.5}
        return mixed

    def _mix(self, client: LocalModel, **strengths: float) -> AbstractContextManager[None]:
        assert isinstance(client.adapter, LoRATower)
        return client.adapter.strength(**strengths) if self.schedule == "alternate" else nullcontext()
