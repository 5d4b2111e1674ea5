"""Prompts as parameters: the words before a class name are learned through the frozen text tower.

Shapes: B images, K classes, p learned words, dt text width, T tokens of a prompt, E embedding, N tokens of an image.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pfedst.adapters.adapter import Adapter
from pfedst.adapters.optimal_transport import transport_plan
from pfedst.encoders import AnchorHead, Encoder, Taps
from pfedst.errors import ConfigurationError

CONTEXT_STD = 0.02


class ClassSequences(nn.Module):
    """What stands around the learned words: [start] <words> NAME . [end], for every class.

    Its tensors are frozen word embeddings and in no state dict.

    Args:
        encoder: with a text tower.
        head: for the class names.
        words: p.

    Raises:
        ConfigurationError: no usable text tower, no word, or a class name that does not fit beside p words.
    """

    start: Tensor
    rest: Tensor
    ends: Tensor

    def __init__(self, encoder: Encoder, head: AnchorHead, words: int) -> None:
        super().__init__()
        self.tower = encoder.prompt_tower()
        if words < 1:
            raise ConfigurationError(f"--model.adapter.words {words}: must be 1 or more")
        ids, ends = self.tower.tokenize([f"{name}." for name in head.class_names])
        longest = int((ends + words).max()) + 1
        if longest > self.tower.context_length:
            name = head.class_names[int(ends.argmax())]
            raise ConfigurationError(
                f'--model.adapter.words {words}: with a class name as long as "{name}" a prompt has {longest} tokens, '
                f"the text tower takes {self.tower.context_length}"
            )
        embedded = self.tower.embed_tokens(ids)
        self.register_buffer("start", embedded[:, :1], persistent=False)
        self.register_buffer("rest", embedded[:, 1 : longest - words], persistent=False)
        self.register_buffer("ends", ends + words, persistent=False)

    def forward(self, context: Tensor) -> Tensor:
        """Learned words (p, dt) -> a unit text embedding (K, E) for every class."""
        K = len(self.start)
        embedded = torch.cat([self.start, context.expand(K, -1, -1), self.rest], 1)
        return self.tower.encode(embedded, self.ends)

    def __deepcopy__(self, memo: dict[int, object]) -> ClassSequences:
        """Frozen, hence shared by all clients, as the encoder is."""
        return self


class PromptAdapter(Adapter):
    """Base of adapters whose classifier is the prompts themselves: there is no head apart from them."""

    def __init__(self, encoder: Encoder, head: AnchorHead, words: int) -> None:
        super().__init__(encoder, head)
        if head.kind == "learned":
            raise ConfigurationError(f"{type(self).__name__} learns prompts, not anchors: use --model.anchors text")
        self.sequences = ClassSequences(encoder, head, words)

    def learn_head(self) -> None:
        """Refused: a trained head would not be used."""
        raise ConfigurationError(
            f"{type(self).__name__} has no head apart from its prompts, so it cannot have a personal one; choose "
            f"another --model.adapter"
        )


class PromptLearner(PromptAdapter):
    """One learned context for all classes; logits are cosines of the image embedding and the prompts' embeddings.

    State-dict names: `context` (p, dt) and, once `attach_low_rank` is called, `left` (p, b) and `right` (b, dt).

    Args:
        encoder: the frozen encoder, with a text tower.
        head: the class anchors; not used for logits.
        words: p, number of learned words, >= 1.
        initial: words to start from, such as "a photo of a" (`words` is then their number of tokens); by default
            random, with standard deviation 0.02.

    Raises:
        ConfigurationError: no usable text tower, or prompts longer than it takes.
    """

    needs = "pooled"

    def __init__(self, encoder: Encoder, head: AnchorHead, words: int = 16, initial: str | None = None) -> None:
        start = None if initial is None else encoder.prompt_tower().words_of(initial)
        super().__init__(encoder, head, words if start is None else len(start))
        if start is None:
            start = torch.randn(words, self.sequences.tower.width) * CONTEXT_STD
        self.context = nn.Parameter(start)
        self.register_parameter("left", None)
        self.register_parameter("right", None)

    left: nn.Parameter | None
    right: nn.Parameter | None

    def attach_low_rank(self, rank: int) -> None:
        """Add U V of rank b >= 1 to the context, both at random with standard deviation 0.02.

        Raises:
            ConfigurationError: a rank that does not fit.
        """
        words, width = self.context.shape
        if not 1 <= rank <= min(words, width):
            raise ConfigurationError(f"prompt rank {rank}: must be from 1 to {min(words, width)}")
        self.left = nn.Parameter(torch.randn(words, rank) * CONTEXT_STD)
        self.right = nn.Parameter(torch.randn(rank, width) * CONTEXT_STD)

    def features(self, low_rank: bool = True) -> Tensor:
        """Unit text embeddings (K, E) of the classes, with or without the low-rank part."""
        context: Tensor = self.context
        if low_rank and self.left is not None and self.right is not None:
            context = context + self.left @ self.right
        features: Tensor = self.sequences(context)
        return features

    def embed(self, taps: Taps) -> Tensor:
        """The pooled embedding (B, E) as it is."""
        return taps.tensors[0]

    def forward(self, taps: Taps) -> Tensor:
        """Pooled (B, E) -> logits (B, K)."""
        return self.head.cosine_logits(self.embed(taps), self.features())


class TransportPrompts(PromptAdapter):
    """Two learned contexts a class, matched with the patches of an image by optimal transport (FedOTP).

    Logit of a class: scale * sum over patches m and prompts n of plan(m, n) * cos(patch m, prompt n). State-dict
    names: `contexts.0` and `contexts.1`, (p, dt) each.

    Args:
        encoder: the frozen encoder, with a text tower.
        head: the class anchors; not used for logits.
        words: p, of each context, >= 1.
        epsilon: entropic regularisation of the plan, > 0: smaller is sharper.
        mass: share of the patches' mass that is matched, in (0, 1].
        iterations: largest number of scaling steps, >= 1; they end early at a change below 0.001.

    Raises:
        ConfigurationError: an option out of its range, or no usable text tower.
    """

    needs = "tokens"

    def __init__(
        self,
        encoder: Encoder,
        head: AnchorHead,
        words: int = 16,
        epsilon: float = 0.1,
        mass: float = 0.8,
        iterations: int = 100,
    ) -> None:
        super().__init__(encoder, head, words)
        if epsilon <= 0 or not 0 < mass <= 1 or iterations < 1:
            raise ConfigurationError("--model.adapter: epsilon must be above 0, mass in (0, 1], iterations 1 or more")
        width = self.sequences.tower.width
        self.contexts = nn.ParameterList(torch.randn(words, width) * CONTEXT_STD for _ in range(2))
        self.epsilon, self.mass, self.iterations = epsilon, mass, iterations

    def embed(self, taps: Taps) -> Tensor:
        """Tokens (B, N, D) -> unit embeddings of the patches (B, N-1, E)."""
        return F.normalize(self.encoder.project(taps.tensors[0][:, 1:]), dim=-1)

    def forward(self, taps: Taps) -> Tensor:
        """Tokens (B, N, D) -> logits (B, K)."""
        prompts_2KE = torch.stack([self.sequences(context) for context in self.contexts])
        similarity_BKM2 = torch.einsum("bme,nke->bkmn", self.embed(taps), prompts_2KE)
        plan = transport_plan(similarity_BKM2, self.epsilon, self.mass, self.iterations)
        return self.head.logit_scale * (plan * similarity_BKM2).sum((-2, -1))
