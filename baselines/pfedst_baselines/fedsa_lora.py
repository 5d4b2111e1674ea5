"""FedSA-LoRA: only the LoRA factor A is shared."""

from pfedst.methods.interface import LocalModel
from pfedst.methods.partition import Rule
from pfedst_baselines.fedlora import FedLoRA


class FedSALoRA(FedLoRA):
    """LoRA in the image tower: A is averaged over clients; B and a linear head are personal.

    Why: the paper finds that A learns what sites have in common, and B what is specific to a site.
    Method: W = W0 + alpha / r * B_k A; mean of A over clients.
    When to use: as FedLoRA, if sites differ.
    Differs from the paper in: an image tower in place of a language model; the head starts at the class anchors.
    """

    source = "Guo et al., Selective Aggregation for Low-Rank Adaptation in Federated Learning, ICLR 2025"
    personalises = True

    def build(self, client: LocalModel) -> None:
        """Make the classifier trainable."""
        client.adapter.learn_head()

    def partition(self, client: LocalModel) -> list[Rule]:
        """A is shared, the rest personal."""
        return [("*.A", "shared"), ("*", "personal")]
