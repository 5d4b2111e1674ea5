"""SCAFFOLD: control variates against client drift."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from pfedst.messages.payload import NET, Payload
from pfedst.methods.interface import FederatedMethod, LocalModel, ServerState, Start, Weighting


class SCAFFOLD(FederatedMethod):
    """Federated averaging with control variates: each gradient is corrected by how the client differs from the mean.

    Why: the mean of clients that drift apart is not the optimum of the sum; the correction removes the drift.
    Method: steps along g - c_k + c. Then c_k becomes the round's mean gradient, which for plain SGD is Option
        II of Algorithm 1, c_k - c + (w_t - w_k) / (K eta); w += eta_g mean(w_k - w), c += |S| / N mean change of c_k.
    When to use: one model for skewed sites, with plain SGD. With Adam the correction enters the moments, which theory
        does not cover.
    Differs from the paper in: c_k is the mean gradient for any optimiser; the weights of the mean are an option.

    Args:
        server_learning_rate: eta_g, in (0, 1].
        weighting: see FederatedMethod; the paper's is `uniform`.
        options: see FederatedMethod.
    """

    source = "Karimireddy et al., SCAFFOLD: Stochastic Controlled Averaging for Federated Learning, ICML 2020"
    personalises = False
    extra_messages = ("control",)

    def __init__(self, server_learning_rate: float = 1.0, weighting: Weighting = "uniform", **options: Any) -> None:
        super().__init__(weighting, **options)
        self.server_learning_rate = server_learning_rate
        self.require("server_learning_rate", 0 < server_learning_rate <= 1, "must be in (0, 1]")

    def build(self, client: LocalModel) -> None:
        """c_k starts at zero."""
        zeros = {key: torch.zeros_like(parameter.detach()) for key, parameter in client.adapter.named_parameters()}
        client.memo |= {"control": zeros, "gradients": dict(zeros), "steps": torch.zeros(())}

    def setup(self, server: ServerState, start: Start, names: Sequence[str]) -> None:
        """Start c at zero, for parameters alone; keep N beside it."""
        super().setup(server, start, names)
        server["control"] = {key: torch.zeros_like(start.state[key]) for key in start.parameter_keys}
        server["clients"] = {"number": torch.tensor(len(names))}

    def broadcast(self, server: ServerState, name: str) -> Payload:
        """Send w and c."""
        return super().broadcast(server, name) | {"control": server["control"]}

    def edit_gradients(self, client: LocalModel) -> None:
        """Sum up g, then correct it."""
        memo = client.memo
        memo["steps"] = memo["steps"] + 1
        for key, p in client.shared_parameters().items():
            if p.grad is not None:
                memo["gradients"][key] = memo["gradients"][key] + p.grad
                p.grad.add_(client.received["control"][key] - memo["control"][key])

    def upload(self, client: LocalModel) -> Payload:
        """w_k and the change of c_k."""
        memo, keys = client.memo, list(client.received["control"])
        new = {key: memo["gradients"][key] / memo["steps"].clamp_min(1) for key in keys}
        change = {key: new[key] - memo["control"][key] for key in keys}
        memo |= {
            "control": new,
            "gradients": {k: torch.zeros_like(v) for k, v in new.items()},
            "steps": torch.zeros(()),
        }
        return super().upload(client) | {"control": change}

    def merge(self, server: ServerState, uploads: Mapping[str, Payload], weights: Mapping[str, float]) -> None:
        """Move w by eta_g of the mean change, c by the share of clients that reported."""
        old, share = server[NET], len(uploads) / int(server["clients"]["number"])
        super().merge(server, uploads, weights)
        new, eta = server[NET], self.server_learning_rate
        server[NET] = {k: old[k].lerp(v, eta) if v.is_floating_point() else v for k, v in new.items()}
        change = self.average((upload["control"] for upload in uploads.values()), weights)
        server["control"] = {key: c + share * change[key] for key, c in server["control"].items()}
