"""The contrastive objective: residues in contact are pulled together, others pushed apart.

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
import torch.nn.functional as F
from torch import Tensor

MAX_COSINE = 1 - 1e-6  # beyond it logits would grow without bound; moves a probability by at most 5e-7


@dataclass(frozen=True)
class Partners:
    """Residues drawn for every anchor.

    Attributes:
        index: int64 (B, L, n), the partners' positions; anything where ``drawn`` is false.
        drawn: bool (B, L, n), false where an anchor has fewer than n partners to draw.
    """

    index: Tensor
    drawn: Tensor


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
        positives: See :func:`draw_partners`.
        negatives: See :func:`draw_partners`.
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
    """Cosine similarity of all pairs of residues.

    Args:
        states: (B, L, E), any length; at least float32.
        residue: bool (B, L), false at padding.

    Returns:
        (B, L, L), in [−1, 1] but for rounding, symmetric to the last bit; 0 where a residue is padding.
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
