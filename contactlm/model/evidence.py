"""What known structures say about a batch of queries, and the template bias that is learned from it.

Axis letters: B batch, L residues, K hits, S segments, E hidden width.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from contactlm.metrics.part_scores import IDENTITY_BOUNDS
from contactlm.structure.contacts import CONTACT_THRESHOLD, LEAST_WEIGHT, SOFTNESS

NO_SEGMENT = -1
LARGE = 1 << 30  # residues that no segment has


class Evidence(NamedTuple):
    """Helices and strands of a batch's hits, and how they lie on the queries."""

    states: Tensor  # float32 (B, S, E), mean state of each segment's residues in the frozen backbone
    strand: Tensor  # bool (B, S), whether the segment is a strand; else it is a helix
    hit_of: Tensor  # int64 (B, S), number of each segment's hit, 0 … K − 1
    least: Tensor  # int64 (B, S), so many aligned residues must be shown for the segment to count
    similarity: Tensor  # float32 (B, K, 2), pair identity and coverage of each hit, 0 … 1; 0 where there is none
    segment_of: Tensor  # int64 (B, K, L), number of the segment each residue is aligned with in a hit, −1: none
    cb: Tensor  # float32 (B, K, L, 3), Å, C-beta of the hit's residue that each residue is aligned with; NaN: none
    touching: Tensor  # bool (B, S, S), whether two segments of one hit have a contact in its structure

    @classmethod
    def none(
        cls, B: int, L: int, E: int, hits: int = 1, segments: int = 1, device: torch.device | str = "cpu"
    ) -> Evidence:
        """Evidence of queries without hits."""
        with torch.device(device):
            return cls(
                states=torch.zeros(B, segments, E),
                strand=torch.zeros(B, segments, dtype=torch.bool),
                hit_of=torch.zeros(B, segments, dtype=torch.int64),
                least=torch.full((B, segments), LARGE),
                similarity=torch.zeros(B, hits, 2),
                segment_of=torch.full((B, hits, L), NO_SEGMENT),
                cb=torch.full((B, hits, L, 3), torch.nan),
                touching=torch.zeros(B, segments, segments, dtype=torch.bool),
            )

    def on(self, device: torch.device) -> Evidence:
        """The same on another device."""
        return Evidence(*(part.to(device, non_blocking=True) for part in self))

    def centres(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Tell where on the query, whose residues have positions (1 or B, L), the segments lie.

        Returns:
            The mean position of the residues aligned with each segment and their number, both float32 (B, S); 0 where
            fewer are shown than the segment needs.
        """
        B, S = self.strand.shape
        index = torch.where(self.segment_of < 0, S, self.segment_of).flatten(1)
        of_residues = positions.to(torch.float32).expand(B, -1).unsqueeze(1).expand(self.segment_of.shape).flatten(1)
        zeros = torch.zeros(B, S + 1, device=index.device)
        counts = zeros.scatter_add(1, index, torch.ones_like(of_residues))[:, :S]
        counts = counts * (counts >= self.least)
        sums = zeros.scatter_add(1, index, of_residues)[:, :S]
        return sums * (counts > 0) / counts.clamp(min=1), counts


FEATURES = ("known", "contact", "touching", "touching strands")
SCALE = 10.0
"""The bias is so many times its weights: logits of a few units are then within reach of learning rates that suit
attention's weights."""
_RECOMPUTE_FROM = 512  # residues: from here on what a sample's pairs are given takes more memory than time
_MOST_AT_ONCE = 8 * 1024**2  # pairs of all hits of a batch; each takes about 60 bytes on the way to the bias
_MOST_IN_CACHES = 512 * 1024  # on a CPU: more at once take 2.5 times as long


class TemplateBias(nn.Module):
    """Adds to a pair's logit what its aligned pairs in the hits are: known, a contact, of segments that touch.

    Four features of a pair in one hit, each 0 where one of the two residues is aligned with no resolved residue:
    1; a contact, softened to 1 / (1 + exp((d − 8 Å) / 1 Å)), d the distance of the C-betas in the hit; whether the two
    are aligned with residues of segments that touch in the hit (have any contact); whether those are both strands.
    Hits are averaged over those that know the pair, with their pair identity as weight, as the copy-the-homolog
    predictor does. Every feature has one learned scalar for hits below 30 %, 30-50 % and above 50 % pair identity, all
    0 at first.
    """

    bounds: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(len(IDENTITY_BOUNDS) + 1, len(FEATURES)))
        self.register_buffer("bounds", torch.tensor(IDENTITY_BOUNDS), persistent=False)

    def forward(self, evidence: Evidence) -> Tensor:
        """Return the bias (B, L, L), symmetric, float32 (float64 where the weights are)."""
        with torch.autocast(evidence.cb.device.type, enabled=False):
            B, K, L, _ = evidence.cb.shape
            identity = evidence.similarity[..., 0].contiguous()
            weights = SCALE * self.weight[torch.bucketize(identity, self.bounds, right=True)]  # (B, K, features)
            strands = evidence.touching & evidence.strand[:, :, None] & evidence.strand[:, None, :]
            parts = (weights, identity, evidence.cb, evidence.segment_of, evidence.touching, strands)
            again = torch.is_grad_enabled() and L >= _RECOMPUTE_FROM
            most = _MOST_IN_CACHES if evidence.cb.device.type == "cpu" else _MOST_AT_ONCE
            count = max(1, -(-B * K * L * L // most))
            of_rows = [
                checkpoint(_bias, rows, *parts, use_reentrant=False, preserve_rng_state=False)
                if again
                else _bias(rows, *parts)
                for rows in _spans(L, count)
            ]
            return of_rows[0] if count == 1 else torch.cat(of_rows, 1)


HIT_CHANNELS = 5  # known, distance, contact, hits, identity
_FARTHEST, _PER_NUMBER = 22.0, 10.0  # Å; distances in units of
_PRIOR = 3.0  # what modules let contact heads start with, to be taken off
_SURE = 0.02  # no copied contact is more certain than that


@torch.no_grad()
def hit_channels(evidence: Evidence) -> Tensor:
    """What the structures of hits give a pair head for each pair: float32 (B, 5, L, L), 0 where no hit knows the pair.

    Whether a hit knows it; its distance there, in units of 10 Å and at most 22 Å; whether it is a contact, softened, as
    copying has it; which share of the hits know it; and their pair identity: averages with the weights of copying.
    """
    B, K, L, _ = evidence.cb.shape
    identity = evidence.similarity[..., 0]
    most = _MOST_IN_CACHES if evidence.cb.device.type == "cpu" else _MOST_AT_ONCE
    found = []
    for rows in _spans(L, max(1, -(-B * K * L * L // most))):
        distance = sum_of_squares(evidence.cb, rows).sqrt_()
        knows = distance.isfinite()
        weight = identity.clamp(min=LEAST_WEIGHT)[:, :, None, None] * knows
        weight = weight / weight.sum(1, keepdim=True).clamp(min=LEAST_WEIGHT)
        contact = torch.sigmoid((CONTACT_THRESHOLD - distance) / SOFTNESS).nan_to_num_(0.0)
        near = distance.nan_to_num_(0.0).clamp(max=_FARTHEST) / _PER_NUMBER
        of_hits = identity[:, :, None, None]
        means = [(weight * each).sum(1) for each in (knows, near, contact)]
        found.append(torch.stack([*means, knows.float().mean(1), (weight * of_hits).sum(1)], 1))
    return torch.cat(found, 2)


class CopyTrust(nn.Module):
    """Begins from the copy: log-odds of copied contacts times a trust, 1 at first, plus an offset; by pair identity.

    Hits that disagree make log-odds near 0. The offset takes off what a contact head that knows nothing starts with.
    """

    bounds: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.trust = nn.Parameter(torch.ones(len(IDENTITY_BOUNDS) + 1))
        self.offset = nn.Parameter(torch.full((len(IDENTITY_BOUNDS) + 1,), _PRIOR))
        self.register_buffer("bounds", torch.tensor(IDENTITY_BOUNDS), persistent=False)

    def forward(self, channels: Tensor) -> Tensor:
        """Of what :func:`hit_channels` gives, log-odds (B, L, L)."""
        known, contact, identity = channels[:, 0], channels[:, 2], channels[:, 4].contiguous()
        where = torch.bucketize(identity, self.bounds, right=True)
        return (self.trust[where] * torch.logit(contact.clamp(_SURE, 1 - _SURE)) + self.offset[where]) * known


def sum_of_squares(cb: Tensor, rows: slice) -> Tensor:
    """Squared distances (B, K, rows, L) of aligned C-betas (B, K, L, 3); NaN where one is not known."""
    x, y, z = ((cb[:, :, rows, None, axis] - cb[:, :, None, :, axis]).square() for axis in range(3))
    return x + y + z


def _spans(length: int, count: int) -> list[slice]:
    """Cut ``length`` rows into spans, about ``count`` of them."""
    step = -(-length // count)
    return [slice(start, min(start + step, length)) for start in range(0, length, step)]


def _bias(
    rows: slice, weights: Tensor, identity: Tensor, cb: Tensor, segment_of: Tensor, touching: Tensor, strands: Tensor
) -> Tensor:
    """Some rows of the bias, (B, rows, L)."""
    features = pair_features(identity, cb, segment_of, touching, strands, rows)
    B, *_, some, L = features.shape
    return (weights.reshape(B, 1, -1) @ features.view(B, -1, some * L).to(weights)).view(B, some, L)


@torch.no_grad()
def pair_features(
    identity: Tensor, cb: Tensor, segment_of: Tensor, touching: Tensor, strands: Tensor, rows: slice = slice(None)
) -> Tensor:
    """Tell what the hits of some queries, as of :class:`Evidence`, say of each pair with its first residue in ``rows``.

    ``identity`` is float32 (B, K), pair identity of each hit; ``strands`` bool (B, S, S), touching ones of two strands.

    Returns:
        float32 (B, K, features, rows, L), symmetric in the last two where all rows are there; already weighted: summed
        over hits they are averages.
    """
    squared = sum_of_squares(cb, rows)
    weight = identity.clamp(min=LEAST_WEIGHT)[:, :, None, None] * squared.isfinite()
    weight = weight / weight.sum(1, keepdim=True).clamp(min=LEAST_WEIGHT)
    contact = torch.sigmoid((CONTACT_THRESHOLD - squared.sqrt()) / SOFTNESS).nan_to_num_(0.0)
    # one more row and column, all false, for residues that are aligned with no segment
    pairs = nn.functional.pad(torch.stack([touching, strands], 1), (0, 1, 0, 1))
    S = touching.shape[1]
    own = torch.where(segment_of < 0, S, segment_of)
    index = own[:, :, rows, None] * (S + 1) + own[:, :, None, :]
    touch, of_strands = (
        pairs[:, kind].flatten(1).gather(1, index.flatten(1)).view(index.shape).to(weight.dtype) for kind in range(2)
    )
    return torch.stack([weight, contact * weight, touch * weight, of_strands * weight], 2)
