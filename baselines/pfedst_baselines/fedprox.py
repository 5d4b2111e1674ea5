"""FedProx: averaging with a pull towards the received model."""

from typing import Any

from pfedst.messages.payload import NET
from pfedst.methods.interface import FederatedMethod, LocalModel, pull_towards


class FedProx(FederatedMethod):
    """Federated averaging with a penalty on the distance of a client from the model that it received.

    Why: after long local training on skewed data the clients' models differ so much that their mean fits none of them.
    Method: f_k(w) + mu / 2 * ||w - w_t||^2 with the received model w_t (Eq. 2); merged as FedAvg.
    When to use: many local epochs, or sites with different classes; choose mu on validation.
    Differs from the paper in: all drawn clients finish their local epochs.

    Args:
        mu: strength of the pull, >= 0; 0 is FedAvg, bit for bit.
        options: see FederatedMethod.
    """

    source = "Li et al., Federated Optimization in Heterogeneous Networks, MLSys 2020"
    personalises = False

    def __init__(self, mu: float = 0.01, **options: Any) -> None:
        super().__init__(**options)
        self.mu = mu
        self.require("mu", mu >= 0, "must be 0 or more")

    def edit_gradients(self, client: LocalModel) -> None:
        """Gradient of the proximal term: mu (w - w_t)."""
        if self.mu:
            pull_towards(client.shared_parameters(), client.received[NET], self.mu)
