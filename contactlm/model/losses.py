"""What training minimises: cross-entropy of contacts, or InfoNCE of residues in contact.

InfoNCE (van den Oord et al. 2018, "Representation learning with contrastive predictive coding") on cosine similarities
s: anchor residue i, one of its contacts p, and n residues k that it does not touch give

    loss = −log( exp(s_ip / τ) / (exp(s_ip / τ) + Σ_k exp(s_ik / τ)) ) = softplus(log Σ_k exp(s_ik / τ) − s_ip / τ).

Pairs that are near in sequence touch whatever the fold (nearly all of |i − j| ≤ 2 do). Were they positives, most draws
would teach what a ruler knows; were those of them that do not touch negatives, neighbours would only be pushed apart.
So pairs nearer than ``min_separation`` are neither. Pairs whose label is unknown (unresolved residues, padding, the
anchor itself) are neither, too: a negative is a pair known not to touch.

Axis letters: B batch, L residues, E width; n positives or negatives of an anchor.
"""

from __future__ import annotations

from dataclasses import dataclass

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


MAX_COSINE = 1 - 1e-6  # beyond it logits would grow without bound; moves a probability by at most 5e-7


@dataclass(frozen=True)
class Partners:
    """Residues drawn for every anchor."""

    index: Tensor  # int64 (B, L, n), the partners' positions; anything where ``drawn`` is false
    drawn: Tensor  # bool (B, L, n), false where an anchor has fewer than n partners to draw


@torch.no_grad()
def draw_partners(labels: Tensor, positives: int, negatives: int, min_separation: int = 1) -> tuple[Partners, Partners]:
    """Draw positives and negatives of every residue, uniformly and without repetition.

    Draws from the global generator of the labels' device.

    Args:
        labels: int8 (B, L, L), 1 contact, 0 none, −1 unknown; symmetric, −1 on the diagonal.
        positives: Contacts drawn a residue; all of them where it has fewer.
        negatives: Residues not in contact with it drawn a residue; all of them where there are fewer.
        min_separation: Pairs closer in sequence, |i − j|, are never drawn.

    Returns:
        The positives, n = min(``positives``, L), and the negatives, n = min(``negatives``, L).
    """
    L = labels.shape[-1]
    residue = torch.arange(L, device=labels.device)
    far_enough = (residue[:, None] - residue).abs() >= max(1, min_separation)
    # One draw serves both: no pair can be of both kinds. The largest of equally distributed keys are a uniform choice.
    keys = torch.rand(labels.shape, device=labels.device)
    return (
        _largest(keys.masked_fill(~((labels == 1) & far_enough), -1), min(positives, L)),
        _largest(keys.masked_fill(~((labels == 0) & far_enough), -1), min(negatives, L)),
    )


def _largest(keys: Tensor, n: int) -> Partners:
    values, index = keys.topk(n, dim=-1, sorted=False)
    return Partners(index, values >= 0)


def contrastive_loss(cosine: Tensor, positives: Partners, negatives: Partners, temperature: float) -> Tensor:
    """InfoNCE of drawn pairs, averaged over an anchor's positives, then per protein, then over proteins.

    Args:
        cosine: Cosine similarities of all pairs, (B, L, L), in [−1, 1].
        positives: As drawn; ``negatives`` alike.
        negatives: As drawn.
        temperature: What similarities are divided by, τ.

    Returns:
        A scalar. Anchors without a positive or without a negative, and proteins without an anchor, contribute
        nothing; when no protein has any, 0 with zero gradients.
    """
    anchor = positives.drawn.any(-1) & negatives.drawn.any(-1)
    near = cosine.gather(-1, positives.index) / temperature
    far = cosine.gather(-1, negatives.index) / temperature
    # rows of no anchor keep finite numbers: their weight is 0, and 0 times infinity would be no number
    rivals = far.masked_fill(anchor[..., None] & ~negatives.drawn, -torch.inf).logsumexp(-1, keepdim=True)
    counted = (positives.drawn & anchor[..., None]).to(cosine.dtype)
    per_anchor = (F.softplus(rivals - near) * counted).sum(-1) / counted.sum(-1).clamp(min=1)
    anchors = anchor.sum(-1)
    per_protein = per_anchor.sum(-1) / anchors.clamp(min=1)
    return per_protein.sum() / (anchors > 0).sum().clamp(min=1)


def cosine_similarities(states: Tensor, residue: Tensor) -> Tensor:
    """Cosine similarity of all pairs of residues, of states (B, L, E) of any length, in float32 at least.

    Returns:
        (B, L, L), in [−1, 1] but for rounding, symmetric to the last bit; 0 where ``residue`` (B, L) is False, padding.
    """
    unit = F.normalize(states, dim=-1) * residue[..., None].to(states.dtype)
    cosine = unit @ unit.mT
    return (cosine + cosine.mT) / 2


def cosine_logits(cosine: Tensor) -> Tensor:
    """Logits whose sigmoid is the cosine similarity rescaled to a probability, (1 + cos) / 2.

    log(p / (1 − p)) of p = (1 + cos) / 2 is 2 artanh(cos), which does not lose p's last digits near 1. Similarities
    are cut at ±(1 − 1e-6), so that logits stay within ±14.6.
    """
    return 2 * cosine.clamp(-MAX_COSINE, MAX_COSINE).atanh()
