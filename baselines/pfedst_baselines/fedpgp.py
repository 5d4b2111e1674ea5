"""FedPGP: a shared prompt and a personal low-rank part of it."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pfedst.adapters import Adapter, PromptLearner
from pfedst.encoders import AnchorHead, Encoder
from pfedst.methods.interface import Batch, FederatedMethod, LocalModel
from pfedst.methods.partition import Rule


class FedPGP(FederatedMethod):
    """A learned prompt sigma + U V: sigma is averaged over clients, the low-rank U V is personal.

    Why: a personal prompt of full rank can lose the generalisation of CLIP; low rank limits the change.
    Method: cross-entropy with the prompt sigma + U V, + mu * contrast: the text of sigma is pulled to the zero-shot
        text t0 and away from the personal text: CE([cos(t0, t_sigma), cos(t_sigma, t_p)] / tau, 0) for each class.
    When to use: as PromptFL, if sites differ. It costs two passes of the text tower in each step.
    Differs from the paper in: t0 is the configured class anchor (with --model.anchors text a hand-written prompt; its
        code encodes "X X .. X NAME."); any optimiser.

    Args:
        rank: b of U (p, b) and V (b, dt), >= 1.
        mu: weight of the contrast, >= 0.
        tau: its temperature, > 0.
        options: see FederatedMethod.
    """

    source = "Cui et al., Harmonizing Generalization and Personalization in Federated Prompt Learning, ICML 2024"
    requires = PromptLearner

    def __init__(self, rank: int = 4, mu: float = 1.0, tau: float = 0.5, **options: Any) -> None:
        super().__init__(**options)
        self.rank, self.mu, self.tau = rank, mu, tau
        self.require("mu", mu >= 0, "must be 0 or more")
        self.require("tau", tau > 0, "must be above 0")

    def default_adapter(self, encoder: Encoder, head: AnchorHead) -> Adapter:
        """A prompt of 16 words."""
        return PromptLearner(encoder, head)

    def build(self, client: LocalModel) -> None:
        """Attach U V."""
        assert isinstance(client.adapter, PromptLearner)
        client.adapter.attach_low_rank(self.rank)

    def partition(self, client: LocalModel) -> list[Rule]:
        """U and V are personal."""
        return [("left", "personal"), ("right", "personal"), ("*", "shared")]

    def loss(self, client: LocalModel, batch: Batch) -> Tensor:
        """Cross-entropy of the personal prompt, and the contrast."""
        adapter = client.adapter
        assert isinstance(adapter, PromptLearner)
        personal = adapter.features()
        logits = adapter.head.cosine_logits(adapter.embed(batch.taps), personal)
        loss = client.criterion(logits, batch.targets)
        if not self.mu:
            return loss
        general, start = adapter.features(low_rank=False), adapter.head.anchors
        pairs = torch.stack([(start * general).sum(-1), (general * personal).sum(-1)], -1) / self.tau
        return loss + self.mu * F.cross_entropy(pairs, pairs.new_zeros(len(pairs), dtype=torch.long))
