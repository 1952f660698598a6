"""Bins of distances: their logits of a pair's channels, and what training minimises.

Whether a pair is a contact says which part of the bins is meant: those below 8 Å, or those above. So each part's
probabilities sum to 1. Logits lie as (BINS, pairs): sums over bins then run along memory. They are computed again in
the backward pass, not kept.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from contactlm.model.losses import contact_loss
from contactlm.structure.distances import NEAR_BINS, contacts_of_bins


class BinWeights(NamedTuple):
    """What gives logits of bins."""

    weight: Tensor  # (BINS, N)
    bias: Tensor  # (BINS,)


class PairScores(NamedTuple):
    """What is trained: contact logits, and what distances' bins are read from."""

    contact: Tensor  # float32 (B, L, L), symmetric
    strips: list[Tensor]  # channels (B, n, G − g, N) of n rows from g on
    residue_at: Tensor  # int64 (B, G), the residue that lies there; −1: a gap or padding
    bins: BinWeights


def bin_logits(channels: Tensor, weights: BinWeights) -> Tensor:
    """Logits of bins (BINS, P) of P pairs' channels (…, N)."""
    return torch.addmm(weights.bias.unsqueeze(1), weights.weight, channels.flatten(0, -2).T)


def pair_loss(scores: PairScores, bins: Tensor, min_separation: int, distance_weight: float) -> Tensor:
    """Cross-entropy of contacts and, weighted, of the distances' bins given them; both averaged as contacts are.

    With a weight of 1 the sum is the cross-entropy of the bins. ``bins`` int8 (B, L, L) are as of
    :func:`contactlm.structure.distances.distance_bins`.
    """
    loss = contact_loss(scores.contact, contacts_of_bins(bins), min_separation)
    B, G = scores.residue_at.shape
    if bins.shape[1] != G:
        where = scores.residue_at.clamp(min=0)
        bins = bins.gather(1, where.unsqueeze(2).expand(B, G, bins.shape[2])).gather(
            2, where.unsqueeze(1).expand(B, G, G)
        )
    apart = scores.residue_at.unsqueeze(1) - scores.residue_at.unsqueeze(2)
    known = (bins >= 0) & (apart >= max(1, min_separation)) & (scores.residue_at >= 0).unsqueeze(2)
    losses = scores.contact.new_zeros(B)
    top = 0
    for strip in scores.strips:
        own = (slice(None), slice(top, top + strip.shape[1]), slice(top, None))
        losses = losses + _BinLoss.apply(strip, *scores.bins, bins[own], known[own])
        top += strip.shape[1]
    counts = known.sum((1, 2))
    per_protein = losses / counts.clamp(min=1)
    return loss + distance_weight * per_protein.sum() / (counts > 0).sum().clamp(min=1)


class _BinLoss(torch.autograd.Function):
    """Sums (B,) of −log p(bin | contact or not) over the known pairs of a strip (B, n, m, N)."""

    @staticmethod
    def forward(ctx: Any, channels: Tensor, weight: Tensor, bias: Tensor, bins: Tensor, known: Tensor) -> Tensor:
        ctx.save_for_backward(channels, weight, bias, bins, known)
        with torch.autocast(channels.device.type, enabled=False):
            logits = bin_logits(channels, BinWeights(weight, bias))
            near, far = (part.logsumexp(0) for part in logits.tensor_split([NEAR_BINS]))
            own = logits.gather(0, _index(bins)).squeeze(0)
            losses = torch.where(bins.flatten() < NEAR_BINS, near, far) - own
            return torch.where(known, losses.view(known.shape), 0).sum((1, 2))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        channels, weight, bias, bins, known = ctx.saved_tensors
        with torch.autocast(channels.device.type, enabled=False):
            share = torch.where(known, gradient.view(-1, 1, 1), 0).flatten()
            near = bins.flatten() < NEAR_BINS
            logits = bin_logits(channels, BinWeights(weight, bias))
            for part, counts in zip(logits.tensor_split([NEAR_BINS]), (near, ~near), strict=True):
                part.copy_(part.softmax(0)).mul_(torch.where(counts, share, 0))
            logits.scatter_add_(0, _index(bins), -share.unsqueeze(0))
            flat = channels.flatten(0, -2)
            return (logits.T @ weight).view_as(channels), logits @ flat, logits.sum(1), None, None


def _index(bins: Tensor) -> Tensor:
    return bins.flatten().clamp(min=0).long().unsqueeze(0)
