"""pFedMe: personal models as Moreau envelopes of the global one."""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call
from torch.optim import SGD

from pfedst.adapters import Adapter
from pfedst.errors import ConfigurationError
from pfedst.messages.payload import NET, Payload
from pfedst.methods.interface import Batch, FederatedMethod, LocalModel, ServerState


class PFedMe(FederatedMethod):
    """Each client keeps a personal model close to the global model; the global model moves towards the personal models.

    Why: it separates the personal problem from the federated one, with a proven rate of convergence.
    Method: theta ~ argmin f_k(theta) + lambda / 2 * ||theta - w_k||^2 by a few inner steps on the batch, then w_k goes
        along lambda (w_k - theta); w = (1 - beta) w + beta * mean of w_k (Algorithm 1).
    When to use: `inner_steps` times the computation is affordable.
    Differs from the paper in: theta continues from the client's last theta, not from w. It needs plain SGD, because the
        steps of Adam do not shrink with the pull.

    Args:
        lam: lambda, how close theta stays to w_k, > 0.
        inner_steps: gradient steps for theta a batch, >= 1.
        inner_learning_rate: learning rate of these steps, > 0. A schedule (`--coordinator.lr_schedule`) scales it
            too, so that the rates of theta and w keep their ratio.
        beta: share of the new mean in the server's model, in (0, 1].
        options: see FederatedMethod.
    """

    source = "Dinh et al., Personalized Federated Learning with Moreau Envelopes, NeurIPS 2020"

    def __init__(
        self,
        lam: float = 15.0,
        inner_steps: int = 5,
        inner_learning_rate: float = 0.01,
        beta: float = 1.0,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.lam, self.inner_steps, self.inner_learning_rate, self.beta = lam, inner_steps, inner_learning_rate, beta
        self.require("lam", lam > 0, "must be above 0")
        self.require("inner_steps", inner_steps >= 1, "must be 1 or more")
        self.require("beta", 0 < beta <= 1, "must be in (0, 1]")

    @property
    def has_own_prior(self) -> bool:
        """Theta follows the images of its site alone."""
        return True

    def loss(self, client: LocalModel, batch: Batch) -> Tensor:
        """lambda / 2 * ||w - theta||^2 with theta after its inner steps: the gradient is lambda (w - theta)."""
        own, theta, rate = client.shared_parameters(), self._theta(client), self.inner_learning_rate * client.lr_factor
        for _ in range(self.inner_steps):
            theta = {k: t.detach().requires_grad_() for k, t in theta.items()}
            logits = functional_call(client.adapter, theta, (batch.taps,))
            gradients = torch.autograd.grad(client.criterion(logits, batch.targets), list(theta.values()))
            with torch.no_grad():
                pulls = [g + self.lam * (t - own[k]) for (k, t), g in zip(theta.items(), gradients, strict=True)]
                theta = {k: t - rate * p for (k, t), p in zip(theta.items(), pulls, strict=True)}
        client.memo["theta"] = theta
        return self.lam / 2 * torch.stack([(p - theta[k]).square().sum() for k, p in own.items()]).sum()

    def edit_gradients(self, client: LocalModel) -> None:
        """Refuse an optimiser whose steps do not follow the size of lambda (w - theta)."""
        if not isinstance(client.optimizer, SGD):
            raise ConfigurationError("PFedMe needs SGD: add --model.optimizer SGD --model.optimizer.lr 0.005")

    def merge(self, server: ServerState, uploads: Mapping[str, Payload], weights: Mapping[str, float]) -> None:
        """Go a share beta of the way to the mean."""
        old = server[NET]
        super().merge(server, uploads, weights)
        new = server[NET]
        server[NET] = {k: old[k].lerp(v, self.beta) if v.is_floating_point() else v for k, v in new.items()}

    def personal_model(self, client: LocalModel) -> Adapter:
        """Return a copy of the adapter with theta."""
        model = copy.deepcopy(client.adapter)
        model.load_state_dict({key: tensor.detach() for key, tensor in self._theta(client).items()}, strict=False)
        return model

    def _theta(self, client: LocalModel) -> dict[str, Tensor]:
        """Return theta: the client's own, or before its first fit the w that it received."""
        w = client.received[NET]
        own: dict[str, Tensor] = client.memo.get("theta") or {key: w[key] for key in client.shared_parameters()}
        return own
