"""FedLoRA (FedIT): averaged LoRA in the image tower."""

from pfedst.adapters import Adapter, LoRATower
from pfedst.encoders import AnchorHead, Encoder
from pfedst.methods.interface import FederatedMethod


class FedLoRA(FederatedMethod):
    """Federated averaging of LoRA factors inside the frozen image tower, A and B each on its own.

    Why: the standard way to fine-tune large models together.
    Method: W = W0 + alpha / r * B A on queries and values; mean of A and mean of B, n_k / n. That is biased: the mean
        of B times the mean of A is not the mean of B A.
    When to use: memory and time for gradients through the whole tower, sites that resemble each other.
    Differs from the paper in: an image tower in place of a language model; the framework's optimiser.
    """

    source = "Zhang et al., Towards Building the Federated GPT: Federated Instruction Tuning (FedIT), ICASSP 2024"
    personalises = False
    requires = LoRATower

    def default_adapter(self, encoder: Encoder, head: AnchorHead) -> Adapter:
        """Rank 8 on queries and values of every block."""
        return LoRATower(encoder, head)
