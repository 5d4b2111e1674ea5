"""FedCLIP: attention over the channels of CLIP's image embedding."""

from typing import Any, Literal

from torch import Tensor

from pfedst.adapters import Adapter, AttentionAdapter
from pfedst.encoders import AnchorHead, Encoder
from pfedst.methods.interface import Batch, FederatedMethod, LocalModel, Weighting
from pfedst.methods.losses import in_batch_contrastive

Objective = Literal["class_ce", "infonce"]


class FedCLIP(FederatedMethod):
    """An attention adapter behind the frozen image tower, averaged over clients.

    Why: CLIP is too large to send and overfits. An adapter of half a million numbers behind it trains in seconds.
    Method: f' = softmax(W2 tanh(W1 f + b1) + b2) * f, then cosines to the class texts; uniform mean.
    When to use: little memory; embeddings can be computed once.
    Differs from the paper in: cross-entropy over the classes by default. The paper's in-batch contrastive loss
        (`infonce`) treats images of the same class as negatives; with B images its minimum is
        sum_c n_c / B * log n_c, not 0. Any optimiser.

    Args:
        objective: `class_ce`, or the paper's `infonce`.
        weighting: see FederatedMethod; the paper's is `uniform`.
        options: see FederatedMethod.
    """

    source = "Lu et al., FedCLIP: Fast Generalization and Personalization for CLIP in Federated Learning, 2023"
    personalises = False

    requires = AttentionAdapter

    def __init__(self, objective: Objective = "class_ce", weighting: Weighting = "uniform", **options: Any) -> None:
        super().__init__(weighting, **options)
        self.objective = objective

    def default_adapter(self, encoder: Encoder, head: AnchorHead) -> Adapter:
        """Attention with tanh."""
        return AttentionAdapter(encoder, head)

    def loss(self, client: LocalModel, batch: Batch) -> Tensor:
        """Cross-entropy over the classes, or both ways over the batch."""
        return self.objective_of(client, client.adapter.embed(batch.taps), batch.targets)

    @property
    def uses_criterion(self) -> bool:
        """The contrastive objective has no logits of classes."""
        return self.objective == "class_ce"

    def objective_of(self, client: LocalModel, embedding: Tensor, targets: Tensor) -> Tensor:
        """Either of the two, of embeddings (B, E)."""
        head = client.adapter.head
        if self.objective == "class_ce":
            return client.criterion(head(embedding), targets)
        return in_batch_contrastive(embedding, head, targets)
