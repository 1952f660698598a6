"""How far two maps of one protein agree, whatever the scale of their values."""

from __future__ import annotations

from scipy.stats import spearmanr
from torch import Tensor, triu_indices


def agreement(one: Tensor, other: Tensor) -> dict[str, float]:
    """Rank correlation over all pairs at least 6 apart, and the share of the L highest that both have in common."""
    L = len(one)
    values = [own[tuple(triu_indices(L, L, 6))] for own in (one, other)]
    tops = [set(own.argsort(descending=True, stable=True)[:L].tolist()) for own in values]
    return {
        "spearman_sep6": float(spearmanr(*values).statistic),
        "shared_top_L": len(tops[0] & tops[1]) / len(tops[0]),
    }
