"""FedPer: a personal head on a shared body."""

from pfedst.methods.interface import FederatedMethod, LocalModel
from pfedst.methods.partition import Rule


class FedPer(FederatedMethod):
    """A shared body under a personal linear head (started at the class anchors), trained together.

    Why: sites may agree on what to see and differ in how often, and under which name, they see it.
    Method: min over w and h_1 .. h_K of sum_k (n_k / n) f_k(w, h_k); only w is merged (Algorithms 1-2).
    When to use: sites with other class frequencies or label habits.
    Differs from the paper in: the head alone is personal, not the last blocks.
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
