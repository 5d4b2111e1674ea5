"""PromptFL: the words of the prompt are learned together."""

from pfedst.adapters import Adapter, PromptLearner
from pfedst.encoders import AnchorHead, Encoder
from pfedst.methods.interface import FederatedMethod


class PromptFL(FederatedMethod):
    """Federated averaging of a learned text prompt, shared by all classes (CoOp's context).

    Why: what users of CLIP try first; a few thousand numbers travel.
    Method: cross-entropy of cos(image, text tower of [start] v_1 .. v_p NAME . [end]); v is averaged, n_k / n.
    When to use: a text tower that knows the classes' names, slow links, few images.
    Differs from the paper in: the framework's optimiser; one context for all classes.
    """

    source = "Guo et al., PromptFL: Let Federated Participants Cooperatively Learn Prompts, IEEE TMC 2023"
    personalises = False
    requires = PromptLearner

    def default_adapter(self, encoder: Encoder, head: AnchorHead) -> Adapter:
        """A prompt of 16 words."""
        return PromptLearner(encoder, head)
