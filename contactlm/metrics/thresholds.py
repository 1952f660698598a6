"""The best decision threshold of a set of proteins, found without keeping their maps.

Every protein leaves its confusion counts at a fixed grid of thresholds, 0.001 apart: that is the resolution.
"""

from __future__ import annotations

import torch
from torch import Tensor

from contactlm.metrics.ranked import RankedMap, predicted_counts
from contactlm.metrics.scores import RANGES

THRESHOLD_STEPS = 1000


def threshold_grid() -> Tensor:
    """The thresholds that tuning tries: 0.001, 0.002, … 0.999, float32 (999,)."""
    return (torch.arange(1, THRESHOLD_STEPS, dtype=torch.float64) / THRESHOLD_STEPS).float()


GRID = tuple(threshold_grid().tolist())


def threshold_confusion(ranked: RankedMap) -> Tensor:
    """Confusion counts of the pairs with |i − j| >= 6 at every threshold of the grid: int64 (999, 2, 2)."""
    return predicted_counts(ranked, GRID)[:, RANGES["sep6"]].sum(1)


def tune_threshold(curves: Tensor) -> tuple[float, float]:
    """The threshold with the best protein-wise mean MCC, to 0.001; of equals the one nearest to 0.5.

    Args:
        curves: (n proteins, 999), each protein's MCC at every threshold of :func:`threshold_grid`.

    Returns:
        The threshold and the mean MCC there.

    Raises:
        ValueError: No protein to tune on.
    """
    if curves.shape[0] == 0:
        raise ValueError("no protein to tune the threshold on")
    mean = curves.cpu().double().mean(0)
    best = (mean == mean.max()).nonzero().squeeze(1)
    chosen = int(best[(best + 1 - THRESHOLD_STEPS // 2).abs().argmin()])
    return (chosen + 1) / THRESHOLD_STEPS, float(mean[chosen])
