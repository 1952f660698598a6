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
    """Make the generator of one decision.

    Args:
        seed: The run's seed, ≥ 0.
        stream: What the numbers are for.
        epoch: The pass over the chains.
        index: The chain.
    """
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
