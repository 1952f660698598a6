"""Random crops: which residues the n-th sample of a run holds.

Everything is a pure function of (seed, n), drawn by a counter-based generator (Philox; Salmon et al. 2011): workers,
ranks and batch composition cannot change what is drawn, and a run resumes by remembering n.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from typing import Literal

import numpy as np
from numpy.typing import NDArray

CropScheme = Literal["random", "cut", "whole", "two_segments"]
Segments = list[tuple[int, int]]  # residues start … stop − 1 of the chain, ascending, none twice


class Stream(IntEnum):
    """What a random number is for; different streams are independent."""

    ORDER = 0
    CROP = 1
    SPLIT = 2
    TURN = 3
    BATCHES = 4
    MASKS = 5


def generator(seed: int, stream: Stream, epoch: int = 0, index: int = 0) -> np.random.Generator:
    """Make the generator of one decision: of a run's seed (≥ 0), a pass over the chains and a chain."""
    # the counter's low word advances as numbers are drawn; the others name the decision
    return np.random.Generator(np.random.Philox(key=[seed, int(stream)], counter=[0, 0, epoch, index]))


def epoch_order(seed: int, epoch: int, size: int) -> NDArray[np.int64]:
    """Order in which an epoch visits ``size`` chains, int64 (size,)."""
    return generator(seed, Stream.ORDER, epoch).permutation(size)


def random_crop(length: int, crop_length: int, rng: np.random.Generator) -> Segments:
    """L' consecutive residues; the start is uniform over all L - L' + 1 starts."""
    start = int(rng.integers(length - crop_length + 1))
    return [(start, start + crop_length)]


def first_residues(length: int, crop_length: int, rng: np.random.Generator) -> Segments:
    """The first L' residues: a chain cut off, always at the same residue."""
    return [(0, crop_length)]


def two_segments(length: int, crop_length: int, rng: np.random.Generator) -> Segments:
    """Two segments of half a crop each, uniform over all positions where they do not overlap.

    What lies between them is left out, so that contacts farther apart than a crop are seen in training.
    """
    half = crop_length // 2
    free = length - crop_length  # residues left over, before, between and after the segments
    before, shared = np.sort(
        rng.choice(free + 2, size=2, replace=False, shuffle=False)
    )  # stars and bars: all pairs are as likely
    second = half + int(shared) - 1
    return [(int(before), int(before) + half), (second, second + crop_length - half)]


# How a chain longer than a crop is cut; a scheme is a function of the two lengths and a random generator.
SCHEMES: dict[str, Callable[[int, int, np.random.Generator], Segments]] = {
    "random": random_crop,
    "cut": first_residues,
    "two_segments": two_segments,
}


def crop_segments(length: int, crop_length: int, scheme: CropScheme, rng: np.random.Generator) -> Segments:
    """Which residues of a chain a sample holds.

    Args:
        length: Residues of the chain, L.
        crop_length: Residues of a crop, L'.
        scheme: ``"random"``, ``"cut"``, ``"two_segments"``: see :data:`SCHEMES`; ``"whole"``: all of them.
        rng: Where the random numbers come from.

    Returns:
        One or two segments; the whole chain when it is not longer than the crop.
    """
    if scheme == "whole" or length <= crop_length:
        return [(0, length)]
    return SCHEMES[scheme](length, crop_length, rng)


class ClusterTurns:
    """Which chain of each of G clusters an epoch takes: a weight of 1 / cluster size; a pure function of (seed, epoch).

    The members of a cluster of s chains take turns in an order drawn once, so that any s epochs in a row take each of
    them exactly once. ``groups`` holds the cluster number of each of n chains, int64 (n,), any numbers.
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
