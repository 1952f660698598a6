"""Losses on contact logits."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def contact_loss(logits: Tensor, labels: Tensor, min_separation: int = 1) -> Tensor:
    """Binary cross-entropy of every protein's known pairs, averaged first per protein, then over proteins.

    Logits, not probabilities: the sigmoid is part of the loss.

    Args:
        logits: Contact logits, (B, L, L), symmetric.
        labels: int8 (B, L, L), 1 contact, 0 none, −1 unknown; symmetric, −1 on the diagonal.
        min_separation: Pairs closer in sequence, |i − j|, are left out.

    Returns:
        A scalar. A protein without known pairs contributes nothing; when no protein has any, 0 with zero gradients.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))  # half precision cannot count the pairs
    L = labels.shape[-1]
    residue = torch.arange(L, device=labels.device)
    far_enough = (residue[:, None] - residue).abs() >= min_separation
    known = ((labels >= 0) & far_enough).to(logits.dtype)
    # both triangles hold the same values: the mean over all known entries is the mean over pairs
    losses = F.binary_cross_entropy_with_logits(logits, (labels > 0).to(logits.dtype), weight=known, reduction="none")
    counts = known.sum((1, 2))
    per_protein = losses.sum((1, 2)) / counts.clamp(min=1)
    return per_protein.sum() / (counts > 0).sum().clamp(min=1)
