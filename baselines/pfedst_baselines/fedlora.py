"""FedLoRA (FedIT): averaged LoRA in the image tower."""

from pfedst.adapters import Adapter, LoRATower
from pfedst.encoders import AnchorHead, Encoder
from pfedst.methods.interface import FederatedMethod


class FedLoRA(FederatedMethod):
    """Federated averaging of LoRA factors inside the frozen image tower; A and B are averaged separately.

    Why: it is the standard way to fine-tune large models in a federation.
    Method: W = W0 + alpha / r * B A on queries and values; mean of A and mean of B over clients. This is biased: the
        mean of B times the mean of A is not the mean of B A.
    When to use: enough memory and time for gradients through the whole tower, and sites that resemble each other.
    Differs from the paper in: an image tower in place of a language model; any optimiser.
    """

    source = "Zhang et al., Towards Building the Federated GPT: Federated Instruction Tuning (FedIT), ICASSP 2024"
    personalises = False
    requires = LoRATower

    def default_adapter(self, encoder: Encoder, head: AnchorHead) -> Adapter:
        """Rank 8 on queries and values of every block."""
        return LoRATower(encoder, head)
