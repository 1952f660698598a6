"""Template bias: what the hits' structures say of a pair of residues, as a learned share of its contact logit."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from contactlm.metrics.strata import IDENTITY_BOUNDS
from contactlm.model.evidence import Evidence
from contactlm.structure.contacts import CONTACT_THRESHOLD, LEAST_WEIGHT, SOFTNESS

FEATURES = ("known", "contact", "touching", "touching strands")
SCALE = 10.0
"""The bias is so many times its weights: logits of a few units are then within reach of learning rates that suit
attention's weights."""
_RECOMPUTE_FROM = 512  # residues: from here on what a sample's pairs are told takes more memory than time


class TemplateBias(nn.Module):
    """Adds to a pair's logit what its aligned pairs in the hits are: known, a contact, of segments that touch.

    Four features of a pair in one hit, each 0 where one of the two residues is aligned with no resolved residue:
    1; a contact, softened to 1 / (1 + exp((d − 8 Å) / 1 Å)), d the distance of the C-betas in the hit; whether the two
    are aligned with residues of segments that touch in the hit (have any contact); whether those are both strands.
    Hits are averaged over those that know the pair, with their pair identity as weight, as the copy-the-homolog
    predictor does. Every feature has one learned scalar for hits below 30 %, 30-50 % and above 50 % pair identity, all
    0 at first.
    """

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(len(IDENTITY_BOUNDS) + 1, len(FEATURES)))

    def forward(self, evidence: Evidence) -> Tensor:
        """Return the bias (B, L, L), symmetric, float32 (float64 where the weights are)."""
        with torch.autocast(evidence.cb.device.type, enabled=False):
            identity = evidence.similarity[..., 0].contiguous()
            bounds = torch.tensor(IDENTITY_BOUNDS, device=identity.device)
            weights = SCALE * self.weight[torch.bucketize(identity, bounds, right=True)]  # (B, K, features)
            strands = evidence.touching & evidence.strand[:, :, None] & evidence.strand[:, None, :]
            parts = (weights, identity, evidence.cb, evidence.segment_of, evidence.touching, strands)
            again = torch.is_grad_enabled() and evidence.cb.shape[2] >= _RECOMPUTE_FROM
            of_samples = [
                checkpoint(_bias, *sample, use_reentrant=False, preserve_rng_state=False) if again else _bias(*sample)
                for sample in zip(*parts, strict=True)
            ]
            return torch.stack(of_samples)


def _bias(
    weights: Tensor, identity: Tensor, cb: Tensor, segment_of: Tensor, touching: Tensor, strands: Tensor
) -> Tensor:
    """The bias (L, L) of one query; arguments without the batch axis."""
    features = pair_features(identity, cb, segment_of, touching, strands)
    L = features.shape[-1]
    return (weights.reshape(1, -1) @ features.flatten(2).flatten(0, 1).to(weights)).view(L, L)


@torch.no_grad()
def pair_features(identity: Tensor, cb: Tensor, segment_of: Tensor, touching: Tensor, strands: Tensor) -> Tensor:
    """Tell what the hits of one query say of each pair.

    Args:
        identity: float32 (K,), pair identity of each hit.
        cb: float32 (K, L, 3), as of :class:`~contactlm.model.evidence.Evidence`.
        segment_of: int64 (K, L), as there.
        touching: bool (S, S), as there.
        strands: bool (S, S), of them those of two strands.

    Returns:
        float32 (K, features, L, L), symmetric in the last two; already weighted: summed over hits they are averages.
    """
    x, y, z = ((cb[:, :, None, axis] - cb[:, None, :, axis]).square() for axis in range(3))
    squared = x + y + z
    weight = identity.clamp(min=LEAST_WEIGHT)[:, None, None] * squared.isfinite()
    weight = weight / weight.sum(0).clamp(min=LEAST_WEIGHT)
    contact = torch.sigmoid((CONTACT_THRESHOLD - squared.sqrt()) / SOFTNESS).nan_to_num_(0.0)
    # one more row and column, all false, for residues that are aligned with no segment
    pairs = nn.functional.pad(torch.stack([touching, strands]), (0, 1, 0, 1))
    S = touching.shape[0]
    flat = torch.where(segment_of < 0, S, segment_of)
    flat = flat[:, :, None] * (S + 1) + flat[:, None, :]
    touch, of_strands = pairs.flatten(1)[:, flat.flatten()].view(2, *flat.shape).to(weight.dtype)
    return torch.stack([weight, contact * weight, touch * weight, of_strands * weight], 1)
