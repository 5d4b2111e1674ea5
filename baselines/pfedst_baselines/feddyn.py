"""FedDyn: dynamic regularisation."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from pfedst.messages.payload import NET, Payload
from pfedst.methods.interface import FederatedMethod, LocalModel, ServerState, Start, Weighting, pull_towards


class FedDyn(FederatedMethod):
    """Federated averaging with a dynamic regulariser: the optima of the clients agree with the optimum of their sum.

    Why: the fixed point of FedProx is not the optimum of the sum; a linear term that is learned corrects this.
    Method: w_k minimises f_k(w) - <g_k, w> + alpha / 2 * ||w - w_t||^2; g_k -= alpha (w_k - w_t);
        h -= alpha / N * sum over S of (w_k - w_t); w = mean of w_k - h / alpha (Algorithm 1).
    When to use: one model, many rounds, most clients in each round. The server extrapolates, so it can diverge with few
        clients.
    Differs from the paper in: buffers are averaged, never extrapolated; weights of the mean are an option.

    Args:
        alpha: strength of the regularisation, > 0.
        weighting: see FederatedMethod; the paper's is `uniform`.
        options: see FederatedMethod.
    """

    source = "Acar et al., Federated Learning Based on Dynamic Regularization, ICLR 2021"
    personalises = False

    def __init__(self, alpha: float = 0.01, weighting: Weighting = "uniform", **options: Any) -> None:
        super().__init__(weighting, **options)
        self.alpha = alpha
        self.require("alpha", alpha > 0, "must be above 0")

    def build(self, client: LocalModel) -> None:
        """g_k starts at zero."""
        client.memo["g"] = {key: torch.zeros_like(p.detach()) for key, p in client.adapter.named_parameters()}

    def setup(self, server: ServerState, start: Start, names: Sequence[str]) -> None:
        """Start h at zero, for parameters alone; keep N beside it."""
        super().setup(server, start, names)
        server["h"] = {key: torch.zeros_like(start.state[key]) for key in start.parameter_keys}
        server["clients"] = {"number": torch.tensor(len(names))}

    def edit_gradients(self, client: LocalModel) -> None:
        """alpha (w - w_t) - g_k."""
        pull_towards(client.shared_parameters(), client.received[NET], self.alpha)
        for key, p in client.shared_parameters().items():
            if p.grad is not None:
                p.grad.sub_(client.memo["g"][key])

    def upload(self, client: LocalModel) -> Payload:
        """Move g_k, send w_k."""
        for key, p in client.shared_parameters().items():
            client.memo["g"][key] = client.memo["g"][key] - self.alpha * (p.detach() - client.received[NET][key])
        return super().upload(client)

    def merge(self, server: ServerState, uploads: Mapping[str, Payload], weights: Mapping[str, float]) -> None:
        """Move h, then correct the mean by it."""
        old, share = server[NET], len(uploads) / int(server["clients"]["number"])
        super().merge(server, uploads, weights)
        mean = server[NET]
        server["h"] = h = {k: v - self.alpha * share * (mean[k] - old[k]) for k, v in server["h"].items()}
        server[NET] = {key: v - h[key] / self.alpha if key in h else v for key, v in mean.items()}
