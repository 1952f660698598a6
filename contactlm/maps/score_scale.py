"""From scores of any scale to numbers in [0, 1]: probabilities where a fit tells how, else ranks."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

MIN_SEPARATION = 6  # of the pairs that a fit is made on, and that are called contacts
_STEPS = 100  # Newton's method takes about ten
_NEAR = 1e-9
_RIDGE = 1e-6  # of a pair, against data that two numbers separate


class Logistic(NamedTuple):
    """Probability = sigmoid(slope × score + intercept)."""

    slope: float
    intercept: float

    def of(self, scores: Tensor) -> Tensor:
        """Probabilities, float32 of the same shape."""
        return torch.sigmoid(self.slope * scores.double() + self.intercept).float()


def ranks(scores: Tensor) -> Tensor:
    """Rank of each pair among all pairs i < j of a map, in (0, 1), higher scores nearer to 1; equals share theirs.

    Args:
        scores: (L, L), symmetric.

    Returns:
        float32 (L, L), symmetric, 0 on the diagonal.
    """
    L = len(scores)
    upper = torch.triu_indices(L, L, 1)
    values = scores[upper[0], upper[1]]
    result = torch.zeros(L, L)
    result[upper[0], upper[1]] = ((average_ranks(values) - 0.5) / max(1, len(values))).float()
    return result + result.T


def average_ranks(values: Tensor) -> Tensor:
    """Ranks of values (N,), from 1, float64; equal ones share their mean rank."""
    _, inverse, counts = values.unique(return_inverse=True, return_counts=True)
    return (counts.cumsum(0).double() - (counts - 1) / 2)[inverse]


def fit_logistic(
    scores: Tensor, contact: Tensor, total: Callable[[Tensor], Tensor] = lambda own: own
) -> Logistic | None:
    """Fit the two numbers by maximum likelihood, with Newton's method.

    Args:
        scores: (N,), of known pairs.
        contact: bool (N,), their truth.
        total: Sums a float64 tensor over all processes, of which each has pairs of its own; all fit the same.

    Returns:
        The fit; None where all pairs are of one class.
    """
    x, y = scores.double(), contact.double()
    count, contacts, mean, square = total(torch.stack([x.new_tensor(len(x)), y.sum(), x.sum(), x.square().sum()]))
    if not 0 < contacts < count:
        return None
    mean, scale = mean / count, ((square / count - (mean / count).square()).clamp(min=0).sqrt() + 1e-12)
    x = (x - mean) / scale
    slope, intercept = x.new_zeros(()), torch.log(contacts / (count - contacts))
    for _ in range(_STEPS):
        p = torch.sigmoid(slope * x + intercept)
        off, spread = p - y, p * (1 - p)
        sums = [(off * x).sum(), off.sum(), (spread * x * x).sum(), (spread * x).sum(), spread.sum()]
        g_slope, g_intercept, ss, si, ii = total(torch.stack(sums)).tolist()
        g_slope, ss, ii = g_slope + _RIDGE * float(slope), ss + _RIDGE, ii + _RIDGE
        determinant = ss * ii - si * si
        steps = (ii * g_slope - si * g_intercept) / determinant, (ss * g_intercept - si * g_slope) / determinant
        longest = max(1.0, *(abs(step) for step in steps))  # no step of more than 1: far off, the curve is another
        slope, intercept = slope - steps[0] / longest, intercept - steps[1] / longest
        if max(abs(step) for step in steps) < _NEAR:
            break
    return Logistic(float(slope / scale), float(intercept - slope * mean / scale))


def far_pairs(scores: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Scores, float32 (N,), and truth, bool (N,), of the pairs at least 6 apart whose truth is known."""
    upper = tuple(torch.triu_indices(len(scores), len(scores), MIN_SEPARATION))
    known = labels[upper] >= 0
    return scores[upper][known].float(), labels[upper][known] == 1


def threshold_of_top(scores: Tensor, count: int, min_separation: int = MIN_SEPARATION) -> float:
    """A threshold that the ``count`` highest values, in [0, 1], of pairs at least so far apart are above."""
    L = len(scores)
    values = scores[tuple(torch.triu_indices(L, L, min_separation))].sort(descending=True).values
    return float(values[count]) if len(values) > count else 0.0
