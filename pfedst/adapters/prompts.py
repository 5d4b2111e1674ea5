"""Learned prompts: the words before a class name are trained through the frozen text tower.

Shapes: B images, K classes, p learned words, dt text width, T tokens of a prompt, E embedding, N tokens of an image.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pfedst.adapters.adapter import Adapter
from pfedst.adapters.embedding import PooledHead
from pfedst.adapters.optimal_transport import transport_plan
from pfedst.encoders import AnchorHead, Encoder, Taps, in_float32
from pfedst.errors import ConfigurationError

CONTEXT_STD = 0.02


class ClassSequences(nn.Module):
    """Build the prompt [start] <learned words> NAME . [end] of every class and encode it.

    The frozen word embeddings around the learned words are buffers that are not in the state dict.

    Args:
        encoder: an encoder with a text tower.
        head: provides the class names.
        words: p, number of learned words.

    Raises:
        ConfigurationError: If there is no usable text tower, `words` is below 1, a class name with p words is too long,
            or two class names have the same tokens.
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
        first: dict[tuple[int, ...], str] = {}
        for name, tokens in zip(head.class_names, ids.tolist(), strict=True):
            if (other := first.setdefault(tuple(tokens), name)) is not name:
                raise ConfigurationError(
                    f'the classes "{other}" and "{name}" have the same prompt for the text tower: give them other '
                    f"names (--data.class_names)"
                )
        embedded = self.tower.embed_tokens(ids)
        self.register_buffer("start", embedded[:, :1], persistent=False)
        self.register_buffer("rest", embedded[:, 1 : longest - words], persistent=False)
        self.register_buffer("ends", ends + words, persistent=False)

    @in_float32
    def forward(self, context: Tensor) -> Tensor:
        """Return a unit text embedding (K, E) for every class, with the learned words (p, dt)."""
        K = len(self.start)
        embedded = torch.cat([self.start, context.expand(K, -1, -1), self.rest], 1)
        return self.tower.encode(embedded, self.ends)

    def __deepcopy__(self, memo: dict[int, object]) -> ClassSequences:
        """Return the same object: it is frozen, and all clients share it."""
        return self


class PromptAdapter(Adapter):
    """Base class of adapters that classify with learned prompts. They have no separate head."""

    def __init__(self, encoder: Encoder, head: AnchorHead, words: int) -> None:
        super().__init__(encoder, head)
        if head.kind == "learned":
            raise ConfigurationError(f"{type(self).__name__} learns prompts, not anchors: use --model.anchors text")
        self.sequences = ClassSequences(encoder, head, words)

    def learn_head(self) -> None:
        """Raise ConfigurationError: a trained head would not be used."""
        raise ConfigurationError(
            f"{type(self).__name__} has no head besides its prompts, so it cannot have a personal head; choose "
            f"another --model.adapter"
        )


class PromptLearner(PromptAdapter):
    """Learn one context for all classes. Logits are cosines between the image embedding and the prompt embeddings.

    State-dict names: `context` (p, dt) and, after `attach_low_rank`, `left` (p, b) and `right` (b, dt).

    Args:
        encoder: the frozen encoder, with a text tower.
        head: the class anchors; not used for logits.
        words: p, number of learned words, >= 1.
        initial: words to start from, such as "a photo of a"; `words` is then their number of tokens. Default: random
            values with standard deviation 0.02.

    Raises:
        ConfigurationError: If there is no usable text tower, or the prompts are too long for the text tower.
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
        """Add U V of rank b >= 1 to the context. U and V are random with standard deviation 0.02.

        Raises:
            ConfigurationError: If the rank is below 1 or above the smaller dimension of the context.
        """
        words, width = self.context.shape
        if not 1 <= rank <= min(words, width):
            raise ConfigurationError(f"prompt rank {rank}: must be from 1 to {min(words, width)}")
        self.left = nn.Parameter(torch.randn(words, rank) * CONTEXT_STD)
        self.right = nn.Parameter(torch.randn(rank, width) * CONTEXT_STD)

    @in_float32
    def features(self, low_rank: bool = True) -> Tensor:
        """Return unit text embeddings (K, E) of the classes, with or without the low-rank part."""
        context: Tensor = self.context
        if low_rank and self.left is not None and self.right is not None:
            context = context + self.left @ self.right
        features: Tensor = self.sequences(context)
        return features

    def embed(self, taps: Taps) -> Tensor:
        """Return the pooled embedding (B, E) unchanged."""
        return taps.tensors[0]

    @torch.no_grad()
    def merged(self) -> Adapter:
        """Return the embeddings of the learned prompts as class anchors, without the text tower."""
        features = self.features()
        head = AnchorHead(self.head.class_names, features.shape[1], self.head.logit_scale, "text").to(features.device)
        head.set_anchors(features)
        return PooledHead(self.encoder, head).eval()

    def forward(self, taps: Taps) -> Tensor:
        """Return logits (B, K) for the pooled embeddings (B, E)."""
        return self.head.cosine_logits(self.embed(taps), self.features())


class TransportPrompts(PromptAdapter):
    """Learn two contexts per class and match them with the patches of an image by optimal transport (FedOTP).

    Logit of a class: scale * sum over patches m and prompts n of plan(m, n) * cos(patch m, prompt n). State-dict names:
    `contexts.0` and `contexts.1`, (p, dt) each.

    Args:
        encoder: the frozen encoder, with a text tower.
        head: the class anchors; not used for logits.
        words: p, number of learned words in each context, >= 1.
        epsilon: entropic regularisation of the plan, > 0. A smaller value gives a sharper plan.
        mass: share of the mass of the patches that is matched, in (0, 1].
        iterations: maximum number of scaling steps, >= 1. The steps stop early at a change below 0.001.

    Raises:
        ConfigurationError: If an option is out of range, or there is no usable text tower.
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
        """Return unit embeddings of the patches (B, N-1, E) for tokens (B, N, D)."""
        return self._unit_patches(taps.tensors[0][:, 1:])

    def forward(self, taps: Taps) -> Tensor:
        """Return logits (B, K) for tokens (B, N, D)."""
        return self._matched(self.embed(taps), torch.stack([self.sequences(context) for context in self.contexts]))

    def merged(self) -> Adapter:
        """Raise ConfigurationError: the number of steps of the transport plan depends on the images."""
        raise ConfigurationError(
            f"{type(self).__name__} cannot be exported: the number of steps of its transport plan depends on the images"
        )

    @in_float32
    def _unit_patches(self, tokens_BMD: Tensor) -> Tensor:
        return F.normalize(self.encoder.project(tokens_BMD), dim=-1)

    @in_float32
    def _matched(self, patches_BME: Tensor, prompts_2KE: Tensor) -> Tensor:
        similarity_BKM2 = torch.einsum("bme,nke->bkmn", patches_BME, prompts_2KE)
        plan = transport_plan(similarity_BKM2, self.epsilon, self.mass, self.iterations)
        return self.head.logit_scale * (plan * similarity_BKM2).sum((-2, -1))
