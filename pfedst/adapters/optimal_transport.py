"""Entropic, unbalanced optimal transport between the patches of an image and the prompts of a class."""

from __future__ import annotations

import torch
from torch import Tensor

from pfedst.encoders import in_float32

TOLERANCE = 1e-3


@in_float32
@torch.no_grad()
def transport_plan(similarity: Tensor, epsilon: float, mass: float, iterations: int) -> Tensor:
    """Return how much of each patch is matched with each prompt, at cost 1 - similarity. No gradient passes through.

    Generalised Sinkhorn scaling (Chizat et al., Math. Comp. 2018) as in FedOTP (Li et al., CVPR 2024): with kernel
    exp(-cost / epsilon), rows are scaled down to at most 1 / M, then columns to exactly mass / N.

    Args:
        similarity: cosines (..., M, N) of M patches and N prompts.
        epsilon: entropic regularisation, > 0.
        mass: total mass to match, in (0, 1].
        iterations: maximum number of scaling steps, >= 1. The steps stop when no scale changes by more than 0.001 of
            its value.

    Returns:
        Plans (..., M, N): columns sum to mass / N, rows to at most 1 / M (within the tolerance).
    """
    M, N = similarity.shape[-2:]
    # subtract the best cosine of each column so that no column underflows; the column's scale absorbs the factor
    kernel = ((similarity - similarity.amax(-2, keepdim=True)) / epsilon).exp()
    columns = kernel.new_ones(*kernel.shape[:-2], N)
    for _ in range(iterations):
        before = columns
        rows = (1 / M / torch.einsum("...mn,...n->...m", kernel, columns)).clamp(max=1)
        columns = mass / N / torch.einsum("...mn,...m->...n", kernel, rows)
        if ((columns - before).abs() <= TOLERANCE * columns).all():
            break
    return rows[..., None] * kernel * columns[..., None, :]
