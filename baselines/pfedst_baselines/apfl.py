"""APFL: a learned mixture of a global and a local model."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from pfedst.client.module import FederatedClient
from pfedst.encoders import Taps
from pfedst.methods.interface import Batch, FederatedMethod


class APFL(FederatedMethod):
    """A global model by FedAvg, a local one, and a learned share of each in the weights that predict.

    Why: each client finds out by itself how much of the federation it needs.
    Method: v_bar = a v + (1 - a) w; w follows f_k(w), v and a follow f_k(v_bar), so that the gradient of a is
        <v - w, grad f_k(v_bar)> (Algorithm 1); a stays in [0, 1].
    When to use: sites that differ in how much they differ.
    Differs from the paper in: the mixture share follows the same optimiser as the weights, at every step.

    Args:
        alpha: first share of the local model, in [0, 1].
        options: see FederatedMethod.
    """

    source = "Deng et al., Adaptive Personalized Federated Learning, arXiv 2003.13461, 2020"

    def __init__(self, alpha: float = 0.5, **options: Any) -> None:
        super().__init__(**options)
        self.alpha = alpha
        self.require("alpha", 0 <= alpha <= 1, "must be in [0, 1]")

    def build(self, client: FederatedClient) -> None:
        """Attach the local model and its share."""
        client.attach_twin()
        client.share = nn.Parameter(torch.tensor(float(self.alpha)))

    def loss(self, client: FederatedClient, batch: Batch) -> Tensor:
        """Cross-entropy of the global model and of the mixture."""
        return super().loss(client, batch) + F.cross_entropy(self.predict(client, batch.taps), batch.targets)

    def predict(self, client: FederatedClient, taps: Taps) -> Tensor:
        """Logits of the mixed weights; no gradient passes to the global model."""
        share, own = client.get_parameter("share"), dict(client.adapter.named_parameters())
        with torch.no_grad():  # within the graph a share at 0 or 1 would have no gradient and stay there
            share.clamp_(0, 1)
        mixed = {k: share * v + (1 - share) * own[k].detach() for k, v in client.twin.named_parameters()}
        logits: Tensor = functional_call(client.twin, mixed, (taps,))
        return logits
