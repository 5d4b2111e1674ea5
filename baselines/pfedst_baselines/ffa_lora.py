"""FFA-LoRA: averaged LoRA with the first factor frozen."""

from pfedst.methods.interface import LocalModel
from pfedst.methods.partition import Rule
from pfedst_baselines.fedlora import FedLoRA


class FFALoRA(FedLoRA):
    """FedLoRA in which A is frozen at a start that all clients share, and only B is trained and averaged.

    Why: with one A for all, the mean of B A is (mean of B) A: the merge is exact, at half the bytes.
    Method: W = W0 + alpha / r * B A0 with A0 drawn from the run's seed, the same everywhere; mean of B, n_k / n.
    When to use: as FedLoRA, with skewed sites or noise added for privacy.
    Differs from the paper in: an image tower in place of a language model; the framework's optimiser.
    """

    source = "Sun et al., Improving LoRA in Privacy-preserving Federated Learning, ICLR 2024"

    def partition(self, client: LocalModel) -> list[Rule]:
        """A is frozen."""
        return [("*.A", "frozen"), ("*", "shared")]
