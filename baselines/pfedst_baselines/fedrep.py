"""FedRep: a personal head first, then the shared body."""

from typing import Any

from pfedst.methods.interface import LocalModel
from pfedst_baselines.fedper import FedPer


class FedRep(FedPer):
    """FedPer with alternating training: first the personal head with the body fixed, then the body with the head fixed.

    Why: if the head already fits its site, the body learns what sites have in common.
    Method: head epochs h_k = argmin f_k(w_t, h), then body epochs on w with h_k fixed; w is merged (Algorithm 1).
    When to use: as FedPer, with two or more local epochs a round.
    Differs from the paper in: no extra fine-tuning of heads after the last round.

    Args:
        head_epochs: local epochs of the head, >= 1; the rest of a round's local epochs trains the body.
        options: see FederatedMethod.
    """

    source = "Collins et al., Exploiting Shared Representations for Personalized Federated Learning, ICML 2021"

    def __init__(self, head_epochs: int = 1, **options: Any) -> None:
        super().__init__(**options)
        self.head_epochs = head_epochs
        self.require("head_epochs", head_epochs >= 1, "must be 1 or more")

    @property
    def fewest_local_epochs(self) -> int:
        """Both parts need an epoch."""
        return self.head_epochs + 1

    def trainable(self, client: LocalModel, key: str, epoch: int) -> bool:
        """Head first, then body; fine-tuning trains the head."""
        return (client.partition.kinds[key] == "personal") == (client.finetuning or epoch < self.head_epochs)
