"""The frozen text tower, entered behind its token embedding, so that the words of a prompt can be learned."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from torch import Tensor

from pfedst.errors import ConfigurationError


class PromptTower:
    """The text tower of a plain CLIP model; gradients pass to what enters it, never to its weights.

    Shapes: P prompts, T tokens, dt text width, E embedding.

    Args:
        model: the frozen open_clip model.
        tokenizer: prompts -> token ids (P, 77).
        label: of the encoder, for errors.

    Raises:
        ConfigurationError: a text tower of another kind (a language model from the hub, pooled otherwise).
    """

    def __init__(self, model: Any, tokenizer: Callable[[Sequence[str]], Tensor], label: str) -> None:
        if not isinstance(model, open_clip.CLIP) or model.text_pool_type != "argmax":
            raise ConfigurationError(
                f"encoder {label}: its text tower is not CLIP's own, so that prompts cannot be learned through it; "
                f"use a plain CLIP model, or a method that needs no text tower"
            )
        self.model = model
        self.tokenizer = tokenizer
        self.width: int = model.token_embedding.embedding_dim
        self.context_length: int = model.context_length

    def tokenize(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Token ids (P, T), and for each prompt the position (P,) of its end token, whose output is its embedding."""
        with torch.device("cpu"):
            ids = self.tokenizer(list(prompts))
        return ids, ids.argmax(-1)

    def embed_tokens(self, ids: Tensor) -> Tensor:
        """(P, T) -> what the tower starts from (P, T, dt), without positions."""
        table: Tensor = self.model.token_embedding.weight
        embedded: Tensor = F.embedding(ids.to(table.device), table.detach())
        return embedded

    def words_of(self, text: str) -> Tensor:
        """Embeddings (p, dt) of the words of a text, without start and end."""
        ids, ends = self.tokenize([text])
        return self.embed_tokens(ids[:, 1 : int(ends)])[0]

    def encode(self, embedded: Tensor, ends: Tensor) -> Tensor:
        """Embedded tokens (P, T, dt) with their ends (P,) -> unit embeddings (P, E)."""
        model, T = self.model, embedded.shape[1]
        mask = None if model.attn_mask is None else model.attn_mask[:T, :T]
        x = model.transformer(embedded + model.positional_embedding[:T], attn_mask=mask)
        x = model.ln_final(x)[torch.arange(len(x), device=x.device), ends.to(x.device)]
        projection = model.text_projection
        return F.normalize(projection(x) if isinstance(projection, torch.nn.Linear) else x @ projection, dim=-1)
