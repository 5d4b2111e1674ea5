"""PromptFL: federated averaging of a learned prompt."""

from pfedst.adapters import Adapter, PromptLearner
from pfedst.encoders import AnchorHead, Encoder
from pfedst.methods.interface import FederatedMethod


class PromptFL(FederatedMethod):
    """Federated averaging of a learned text prompt that all classes share (the context of CoOp).

    Why: prompt learning is the usual first choice with CLIP; a client sends a few thousand numbers.
    Method: cross-entropy of cos(image, text tower of [start] v_1 .. v_p NAME . [end]); v is averaged.
    When to use: an encoder whose text tower knows the names of the classes, slow links, few images.
    Differs from the paper in: any optimiser; one context for all classes.
    """

    source = "Guo et al., PromptFL: Let Federated Participants Cooperatively Learn Prompts, IEEE TMC 2023"
    personalises = False
    requires = PromptLearner

    def default_adapter(self, encoder: Encoder, head: AnchorHead) -> Adapter:
        """A prompt of 16 words."""
        return PromptLearner(encoder, head)
