"""APFL: a learned mixture of a global and a local model."""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from pfedst.adapters import Adapter
from pfedst.methods.interface import Batch, FederatedMethod, LocalModel


class APFL(FederatedMethod):
    """A global model by FedAvg and a local model; each client learns in which proportion it mixes their weights.

    Why: each client learns how much it uses of the global model.
    Method: v_bar = a v + (1 - a) w; w follows f_k(w), v and a follow f_k(v_bar), so that the gradient of a is
        <v - w, grad f_k(v_bar)> (Algorithm 1); a stays in [0, 1].
    When to use: some sites resemble the others, and some do not.
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

    @property
    def has_own_prior(self) -> bool:
        """The local model and its share are trained on the images of the site, as they predict."""
        return True

    def build(self, client: LocalModel) -> None:
        """Attach the local model and its share."""
        client.attach_twin()
        client.register_parameter("share", nn.Parameter(torch.tensor(float(self.alpha))))

    def loss(self, client: LocalModel, batch: Batch) -> Tensor:
        """Cross-entropy of the global model and of the mixture."""
        share = client.get_parameter("share")
        with torch.no_grad():  # the projection after the last step; in the graph a share at 0 or 1 would stay there
            share.clamp_(0, 1)
        mixed = functional_call(client.twin, self._mixture(client, share), (batch.taps,))
        return super().loss(client, batch) + client.criterion(mixed, batch.targets)

    def personal_model(self, client: LocalModel) -> Adapter:
        """Return a copy of the local model with the mixed weights."""
        mixed = copy.deepcopy(client.twin)
        weights = self._mixture(client, client.get_parameter("share").detach().clamp(0, 1))
        mixed.load_state_dict({key: value.detach() for key, value in weights.items()}, strict=False)
        return mixed

    def _mixture(self, client: LocalModel, share: Tensor) -> dict[str, Tensor]:
        """Mix the weights of both models; no gradient passes to the global model."""
        own = dict(client.adapter.named_parameters())
        return {k: share * v + (1 - share) * own[k].detach() for k, v in client.twin.named_parameters()}
