"""How sure a mean over proteins is: its standard error, and a bootstrap interval."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 10_000
LEVEL = 0.95
_AT_ONCE = 1_000  # resamples, which bounds memory
_MOST_KEPT = 4_000  # groups of which draws are kept: 160 MB


class Estimate(NamedTuple):
    """A mean over proteins.

    Attributes:
        mean: NaN without any value.
        error: Its standard error; NaN with fewer than two independent proteins.
        low: Lower end of the 95 % bootstrap interval; NaN likewise.
        high: Upper end.
        proteins: How many have a value.
    """

    mean: float
    error: float
    low: float
    high: float
    proteins: int

    def columns(self) -> dict[str, float]:
        """All of it by name."""
        values = (self.mean, self.error, self.low, self.high, self.proteins)
        return dict(zip(("mean", "error", "low", "high", "proteins"), values, strict=True))


def estimate_mean(values: Sequence[float], groups: Sequence[Hashable] = (), seed: int = 0) -> Estimate:
    """Estimate the mean over proteins; of the differences of two models on the same proteins, that of their difference.

    Proteins are drawn with replacement, 10,000 times; the interval runs from the 2.5th to the 97.5th percentile of the
    means. Proteins of one group, such as domains of one chain, are drawn together, and the standard error counts them
    as one.
    """
    kept = [(value, group) for value, group in zip(values, groups or range(len(values)), strict=True) if value == value]
    if not kept:
        return Estimate(math.nan, math.nan, math.nan, math.nan, 0)
    mean = math.fsum(value for value, _ in kept) / len(kept)
    number: dict[Hashable, int] = {}
    of = np.array([number.setdefault(group, len(number)) for _, group in kept])
    sums = np.bincount(of, weights=[value for value, _ in kept]).astype(np.float64)
    counts = np.bincount(of).astype(np.float64)
    if (G := len(sums)) < 2:
        return Estimate(mean, math.nan, math.nan, math.nan, len(kept))
    spread = float(((sums - mean * counts) ** 2).sum())  # without groups: sd / sqrt(n)
    error = math.sqrt(spread * G / (G - 1)) / len(kept)
    tail = 100 * (1 - LEVEL) / 2
    low, high = np.percentile(_resampled(sums, counts, seed), [tail, 100 - tail])
    return Estimate(mean, error, float(low), float(high), len(kept))


def _resampled(sums: NDArray[np.float64], counts: NDArray[np.float64], seed: int) -> NDArray[np.float64]:
    draw = _drawn if len(sums) <= _MOST_KEPT else _drawn.__wrapped__
    means = []
    for block in range(RESAMPLES // _AT_ONCE):
        drawn = draw(len(sums), seed, block)
        means.append(drawn @ sums / (drawn @ counts))
    return np.concatenate(means)


@lru_cache(maxsize=RESAMPLES // _AT_ONCE)  # many scores of the same proteins are estimated one after another
def _drawn(G: int, seed: int, block: int) -> NDArray[np.float32]:
    """How often each of G groups is drawn in each of a block of resamples, (1000, G)."""
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, block])))
    return rng.multinomial(G, np.full(G, 1 / G), size=_AT_ONCE).astype(np.float32)
