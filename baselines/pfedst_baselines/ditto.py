"""Ditto: a personal twin beside the global model."""

from typing import Any

from torch import Tensor

from pfedst.adapters import Adapter
from pfedst.messages.payload import NET
from pfedst.methods.interface import Batch, FederatedMethod, LocalModel, pull_towards


class Ditto(FederatedMethod):
    """A global model by FedAvg, and for each client a personal copy that is pulled towards the received model.

    Why: one number, lambda, sets the personal model between purely local (0) and global (large).
    Method: w by FedAvg; v_k minimises f_k(v) + lambda / 2 * ||v - w_t||^2 (Algorithm 1). The two share no parameter,
        so one fit trains both by adding their losses, and the path of w is FedAvg's, bit for bit.
    When to use: enough memory and time for two adapters; fairness between sites matters.
    Differs from the paper in: both models see the same batches. Clipping by global norm couples them.

    Args:
        lam: lambda, strength of the pull of the personal copy towards the received model, >= 0.
        options: see FederatedMethod.
    """

    source = "Li et al., Ditto: Fair and Robust Federated Learning Through Personalization, ICML 2021"

    def __init__(self, lam: float = 0.1, **options: Any) -> None:
        super().__init__(**options)
        self.lam = lam
        self.require("lam", lam >= 0, "must be 0 or more")

    @property
    def has_own_prior(self) -> bool:
        """The twin is trained on the images of its site alone."""
        return True

    def build(self, client: LocalModel) -> None:
        """Attach the twin."""
        client.attach_twin()

    def loss(self, client: LocalModel, batch: Batch) -> Tensor:
        """Cross-entropy of both models."""
        return super().loss(client, batch) + client.criterion(client.twin(batch.taps), batch.targets)

    def edit_gradients(self, client: LocalModel) -> None:
        """The twin's pull: lambda (v - w_t)."""
        anchor = client.received[NET]
        pull_towards({k: p for k, p in client.twin.named_parameters() if k in anchor}, anchor, self.lam)

    def personal_model(self, client: LocalModel) -> Adapter:
        """Return the twin."""
        return client.twin
