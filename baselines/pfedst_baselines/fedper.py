"""FedPer: a personal head on a shared body."""

from pfedst.methods.interface import FederatedMethod, LocalModel
from pfedst.methods.partition import Rule


class FedPer(FederatedMethod):
    """A shared body with a personal linear head, which starts at the class anchors; both are trained together.

    Why: sites may share features and differ in class frequencies and in how they label.
    Method: min over w and h_1 .. h_K of sum_k (n_k / n) f_k(w, h_k); only w is merged (Algorithms 1-2).
    When to use: sites differ in class frequencies or in labelling.
    Differs from the paper in: only the head is personal, not the last blocks too.
    """

    source = "Arivazhagan et al., Federated Learning with Personalization Layers, arXiv 1912.00818, 2019"

    @property
    def has_own_prior(self) -> bool:
        """The head is trained on the images of its site alone, and class frequencies are learned in the head."""
        return True

    def build(self, client: LocalModel) -> None:
        """Make the classifier trainable."""
        client.adapter.learn_head()

    def partition(self, client: LocalModel) -> list[Rule]:
        """The head is personal."""
        return [(client.adapter.head_keys, "personal"), ("*", "shared")]
