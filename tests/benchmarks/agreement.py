"""How far two maps of one protein agree."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from contactlm.maps.score_scale import MIN_SEPARATION, average_ranks


def agreement(one: Tensor, other: Tensor, positions: Tensor | None = None) -> dict[str, float]:
    """Compare two maps of one protein, whatever the scale of their values.

    Args:
        one: (L, L), symmetric.
        other: The same shape.
        positions: int64 (L,); None: 0 … L − 1. Pairs at least 6 apart are compared; in a complex, positions jump
            between chains.

    Returns:
        ``spearman_sep6``, rank correlation over all pairs, NaN where one map has a single value or there are fewer than
        two pairs; ``shared_top_L``, the share of each one's L highest pairs (all, where there are fewer) that are among
        the other's, NaN without pairs. Of equal values the first count, by i, then j.
    """
    if one.shape != other.shape or one.ndim != 2:
        raise ValueError(f"maps of shapes {tuple(one.shape)} and {tuple(other.shape)}: give two of one protein")
    L = len(one)
    where = torch.arange(L) if positions is None else positions
    far = torch.ones(L, L, dtype=torch.bool).triu(1) & (where - where[:, None] >= MIN_SEPARATION)
    values = one[far], other[far]
    if not len(values[0]):
        return {"spearman_sep6": math.nan, "shared_top_L": math.nan}
    ranked = torch.stack([average_ranks(own) for own in values])
    ranked -= ranked.mean(1, keepdim=True)
    spread = ranked.square().sum(1).prod().sqrt()
    correlation = float(ranked.prod(0).sum() / spread) if spread > 0 else math.nan
    tops = [set(own.argsort(descending=True, stable=True)[:L].tolist()) for own in values]
    return {"spearman_sep6": correlation, "shared_top_L": len(tops[0] & tops[1]) / len(tops[0])}
