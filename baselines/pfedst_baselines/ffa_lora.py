"""FFA-LoRA: averaged LoRA with the first factor frozen."""

from pfedst.methods.interface import LocalModel
from pfedst.methods.partition import Rule
from pfedst_baselines.fedlora import FedLoRA


class FFALoRA(FedLoRA):
    """FedLoRA with A frozen at a random start that all clients share; only B is trained and averaged.

    Why: with the same A at all clients the mean of B A is (mean of B) A: the merge is exact, with half the bytes.
    Method: W = W0 + alpha / r * B A0 with A0 drawn from the run's seed; mean of B over clients.
    When to use: as FedLoRA, if sites are skewed or noise is added for privacy.
    Differs from the paper in: an image tower in place of a language model; any optimiser.
    """

    source = "Sun et al., Improving LoRA in Privacy-preserving Federated Learning, ICLR 2024"

    def partition(self, client: LocalModel) -> list[Rule]:
        """A is frozen."""
        return [("*.A", "frozen"), ("*", "shared")]
