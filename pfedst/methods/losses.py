"""Losses that several methods use.

Shapes: B images of a batch, E embedding, K classes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pfedst.encoders import AnchorHead, in_float32

BANDWIDTHS = 5


@in_float32
def in_batch_contrastive(embedding_BE: Tensor, head: AnchorHead, targets: Tensor) -> Tensor:
    """Compute CLIP's symmetric contrastive loss over a batch, with the text of each image's own class.

    Images of one class share one text and still count as each other's negatives: with n_c images of class c the
    minimum is sum_c n_c / B * log n_c, not 0.

    Args:
        embedding_BE: image embeddings (B, E), not normalised.
        head: the head whose anchors are the texts.
        targets: class indices (B,).
    """
    logits_BB = head.cosine_logits(embedding_BE, head.unit_anchors()[targets])
    own = torch.arange(len(targets), device=targets.device)
    return (F.cross_entropy(logits_BB, own) + F.cross_entropy(logits_BB.T, own)) / 2


@in_float32
def local_maximum_mean_discrepancy(source: Tensor, targets: Tensor, target: Tensor, soft_labels: Tensor) -> Tensor:
    """Compute LMMD, the distance of two feature distributions by class (Zhu et al., IEEE TNNLS 2021).

    With weights w_ic = [y_i = c] / n_c for the source and q_ic / sum_i q_ic for the target, and a sum of five Gaussian
    kernels, averaged over the classes present in both (by label, and by the target's likeliest class).

    Args:
        source: features (n, E) with class indices `targets` (n,).
        targets: see `source`.
        target: features (m, E) with class probabilities `soft_labels` (m, K).
        soft_labels: see `target`; no gradient should pass through them.

    Returns:
        A scalar; 0 if no class is present in both.
    """
    K = soft_labels.shape[1]
    hard = F.one_hot(targets, K).to(source.dtype)
    present = hard.any(0) & F.one_hot(soft_labels.argmax(1), K).any(0)
    if not present.any():
        return source.new_zeros(())
    weights_nK = hard / hard.sum(0).clamp_min(1)
    weights_mK = soft_labels / soft_labels.sum(0).clamp_min(torch.finfo(soft_labels.dtype).tiny)
    signed = torch.cat([weights_nK, -weights_mK])[:, present]
    kernel = _gaussian_kernels(torch.cat([source, target]))
    return torch.einsum("ic,ij,jc->c", signed, kernel, signed).mean()


def _gaussian_kernels(features: Tensor) -> Tensor:
    """Sum of kernels (n, n) whose bandwidths are the mean squared distance times 1/4, 1/2, 1, 2, 4."""
    squared = (features[:, None] - features[None]).square().sum(-1)
    n = len(features)
    mean = (squared.detach().sum() / max(1, n * n - n)).clamp_min(torch.finfo(squared.dtype).tiny)
    return torch.stack([(-squared / (mean * 2.0 ** (i - BANDWIDTHS // 2))).exp() for i in range(BANDWIDTHS)]).sum(0)
