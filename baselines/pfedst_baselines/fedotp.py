"""FedOTP: a shared and a personal prompt, matched with image patches by optimal transport."""

from pfedst.adapters import Adapter, TransportPrompts
from pfedst.encoders import AnchorHead, Encoder
from pfedst.methods.interface import FederatedMethod, LocalModel
from pfedst.methods.partition import Rule


class FedOTP(FederatedMethod):
    """Two learned prompts for each class: the first is averaged over clients, the second is personal.

    Why: the global prompt learns what sites have in common, the personal prompt how a site differs; optimal transport
        assigns image patches to each prompt.
    Method: logit_c = scale * sum over patches and prompts of T * cos, with T the unbalanced plan at cost 1 - cos;
        cross-entropy; prompt 0 is averaged over clients.
    When to use: an encoder whose text tower knows the names of the classes, and lesions that fill a few patches.
    Differs from the paper in: any optimiser. The share of transported mass is 0.8, as in the paper's scripts.
    """

    source = "Li et al., Global and Local Prompts Cooperation via Optimal Transport for Federated Learning, CVPR 2024"
    requires = TransportPrompts

    def default_adapter(self, encoder: Encoder, head: AnchorHead) -> Adapter:
        """Two prompts of 16 words."""
        return TransportPrompts(encoder, head)

    def partition(self, client: LocalModel) -> list[Rule]:
        """The second prompt is personal."""
        return [("contexts.1", "personal"), ("*", "shared")]
