"""Random crops: which residues the n-th sample of a run holds.

Everything is a pure function of (seed, n), drawn by a counter-based generator (Philox; Salmon et al. 2011): workers,
ranks and batch composition cannot change what is drawn, and a run resumes by remembering n.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Literal

import numpy as np
from numpy.typing import NDArray

CropScheme = Literal["random", "cut", "whole"]


class Stream(IntEnum):
    """What a random number is for; different streams are independent."""

    ORDER = 0
    CROP = 1
    SPLIT = 2


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


def crop_start(length: int, crop_length: int, scheme: CropScheme, rng: np.random.Generator) -> int:
    """First residue of a crop.

    Args:
        length: Residues of the chain, L.
        crop_length: Residues of a crop, L'.
        scheme: ``"random"``: uniform over all L - L' + 1 starts; ``"cut"`` and ``"whole"``: 0.
        rng: Where the random number comes from.

    Returns:
        0 when the chain is not longer than the crop.
    """
    if scheme != "random" or length <= crop_length:
        return 0
    return int(rng.integers(length - crop_length + 1))
