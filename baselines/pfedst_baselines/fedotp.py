"""FedOTP: a shared and a personal prompt, matched with image patches by optimal transport."""

from pfedst.adapters import Adapter, TransportPrompts
from pfedst.encoders import AnchorHead, Encoder
from pfedst.methods.interface import FederatedMethod, LocalModel
from pfedst.methods.partition import Rule


class FedOTP(FederatedMethod):
    """Two learned prompts a class: the first is averaged over clients, the second stays at home.

    Why: the global prompt keeps what sites agree on, the personal one their traits; transport lets each attend to its
        own patches.
    Method: logit_c = scale * sum over patches and prompts of T * cos, with T the unbalanced plan at cost 1 - cos;
        cross-entropy; prompt 0 averaged by n_k / n.
    When to use: a text tower that knows the classes' names, and lesions that fill a few patches.
    Differs from the paper in: the framework's optimiser. The plan's share of mass is 0.8, as in its scripts.
    """

    source = "Li et al., Global and Local Prompts Cooperation via Optimal Transport for Federated Learning, CVPR 2024"
    requires = TransportPrompts

    def default_adapter(self, encoder: Encoder, head: AnchorHead) -> Adapter:
        """Two prompts of 16 words."""
        return TransportPrompts(encoder, head)

    def partition(self, client: LocalModel) -> list[Rule]:
        """The second prompt is personal."""
        return [("contexts.1", "personal"), ("*", "shared")]
