"""Holding out the dev set: whole groups of chains, never single ones."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import NDArray

from contactlm.data.crop import Stream, generator
from contactlm.types import DataError


def group_identical(sequences: Sequence[Hashable]) -> NDArray[np.int64]:
    """Number the distinct sequences in order of appearance, int64 (n,): equal sequences share a number."""
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(sequence, len(numbers)) for sequence in sequences], dtype=np.int64)


def split_groups(groups: NDArray[np.int64], fraction: float, seed: int) -> NDArray[np.bool_]:
    """Choose the dev chains by drawing whole groups until the fraction of groups is reached.

    Args:
        groups: Group number of each chain, int64 (n,); 0 … G − 1.
        fraction: Fraction of the groups to hold out, 0 ≤ fraction < 1. A positive fraction takes at least one group.
        seed: The split is a pure function of the seed and the groups.

    Returns:
        bool (n,), True for dev chains.

    Raises:
        DataError: Nothing would be left to train on.
    """
    if not 0 <= fraction < 1:
        raise DataError(f"dev_fraction is {fraction}; it must be at least 0 and below 1")
    n_groups = int(groups.max(initial=-1)) + 1
    n_dev = max(1, round(fraction * n_groups)) if fraction else 0
    if n_dev >= n_groups:
        raise DataError(
            f"holding out {n_dev} of {n_groups} groups of related chains for dev leaves nothing to train on; add "
            "training structures, or set dev_fraction to 0"
        )
    drawn = generator(seed, Stream.SPLIT).permutation(n_groups)[:n_dev]
    return np.isin(groups, drawn)
