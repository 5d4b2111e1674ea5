"""The frozen text tower, entered after its token embedding so that the words of a prompt can be learned."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from torch import Tensor

from pfedst.errors import ConfigurationError

Tokenizer = Callable[..., Tensor]
"""Prompts and optionally a context length -> token ids (P, T), padded."""


def token_ids(tokenizer: Tokenizer, prompts: Sequence[str], label: str) -> Tensor:
    """Return the token ids (P, T) of P prompts on the CPU.

    Tokenizers cut a long prompt without a word, and classes whose names come late in it would become one.

    Raises:
        ConfigurationError: a prompt is longer than the context of the text tower.
    """
    with torch.device("cpu"):
        ids = tokenizer(list(prompts))
        context = ids.shape[1]
        # an empty prompt is nearly all padding; tokenizers pad with different ids
        padding = tokenizer([""], 4 * context).mode().values
        whole = tokenizer(list(prompts), 4 * context)
        cut = (ids != padding).sum(1) < (whole != padding).sum(1)
    if cut.any():
        raise ConfigurationError(
            f'encoder {label}: the prompt "{prompts[int(cut.int().argmax())]}" is longer than the {context} tokens of '
            f"the text tower; shorten --model.prompts (or --model.adapter.initial), or the class's name in "
            f"--data.class_names"
        )
    return ids


class PromptTower:
    """The text tower of a plain CLIP model. Gradients pass to its inputs, never to its weights.

    Shapes: P prompts, T tokens, dt text width, E embedding.

    Args:
        model: the frozen open_clip model.
        tokenizer: prompts -> token ids (P, 77).
        label: label of the encoder, for errors.

    Raises:
        ConfigurationError: If the text tower is of another kind (a language model from the hub, or other pooling).
    """

    def __init__(self, model: Any, tokenizer: Tokenizer, label: str) -> None:
        if not isinstance(model, open_clip.CLIP) or model.text_pool_type != "argmax":
            raise ConfigurationError(
                f"encoder {label}: its text tower is not CLIP's own, so that prompts cannot be learned through it; "
                f"use a plain CLIP model, or a method that needs no text tower"
            )
        self.model = model
        self.tokenizer = tokenizer
        self.label = label
        self.width: int = model.token_embedding.embedding_dim
        self.context_length: int = model.context_length

    def tokenize(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Return token ids (P, T) and the position (P,) of each end token, whose output is the text embedding.

        Raises:
            ConfigurationError: a prompt is too long.
        """
        ids = token_ids(self.tokenizer, prompts, self.label)
        return ids, ids.argmax(-1)

    def embed_tokens(self, ids: Tensor) -> Tensor:
        """Return the token embeddings (P, T, dt) of token ids (P, T), without positions."""
        table: Tensor = self.model.token_embedding.weight
        embedded: Tensor = F.embedding(ids.to(table.device), table.detach())
        return embedded

    def words_of(self, text: str) -> Tensor:
        """Return embeddings (p, dt) of the words of a text, without the start and end tokens."""
        ids, ends = self.tokenize([text])
        return self.embed_tokens(ids[:, 1 : int(ends)])[0]

    def encode(self, embedded: Tensor, ends: Tensor) -> Tensor:
        """Return unit embeddings (P, E) of embedded tokens (P, T, dt) with end positions (P,)."""
        model, T = self.model, embedded.shape[1]
        mask = None if model.attn_mask is None else model.attn_mask[:T, :T]
        x = model.transformer(embedded + model.positional_embedding[:T], attn_mask=mask)
        x = model.ln_final(x)[torch.arange(len(x), device=x.device), ends.to(x.device)]
        projection = model.text_projection
        return F.normalize(projection(x) if isinstance(projection, torch.nn.Linear) else x @ projection, dim=-1)
