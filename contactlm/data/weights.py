"""Weights of 1 / cluster size: the chains of a cluster take turns, one an epoch."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from contactlm.data.crop import Stream, generator


class ClusterTurns:
    """Which chain of each cluster an epoch takes; a pure function of (seed, epoch).

    Every epoch takes one chain of each of G clusters. The members of a cluster of s chains take turns in an order drawn
    once, so that any s epochs in a row take each of them exactly once: a chain is drawn with frequency 1 / s an epoch,
    without the noise of drawing with replacement.

    Args:
        groups: Cluster number of each of n chains, int64 (n,), any numbers.
        seed: Decides who comes first.
    """

    def __init__(self, groups: NDArray[np.int64], seed: int) -> None:
        drawn = generator(seed, Stream.TURN).permutation(len(groups))
        self._members = drawn[np.argsort(groups[drawn], kind="stable")]
        _, self._first, self._sizes = np.unique(groups[self._members], return_index=True, return_counts=True)

    def __len__(self) -> int:
        """Clusters, G."""
        return len(self._sizes)

    def chains(self, epoch: int) -> NDArray[np.int64]:
        """The chain of each cluster whose turn it is, int64 (G,)."""
        return self._members[self._first + epoch % self._sizes]

    def largest(self, values: NDArray[np.int64]) -> NDArray[np.int64]:
        """The largest of each cluster's values, given one a chain, int64 (n,) -> (G,)."""
        return np.maximum.reduceat(values[self._members], self._first) if len(values) else values
