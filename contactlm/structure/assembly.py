"""Complexes: several chains as one sequence of L residues, one chain after another.

The model knows chains apart by the residues' positions only: from one chain to the next they jump, so that rotary
attention sees the chains far apart, as it would see two domains with a long linker between them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

CHAIN_JUMP = 200
"""Positions left free between two chains, in residues: more than most helices, strands and loops span, and little
beside the 1,022 residues that ESM2 was trained on."""


def chain_numbers(chain_lengths: Sequence[int]) -> NDArray[np.int64]:
    """Number of the chain each residue belongs to, int64 (L,), counted from 0.

    Args:
        chain_lengths: Residues of each chain; L in all.
    """
    return np.repeat(np.arange(len(chain_lengths)), chain_lengths)


def residue_positions(chain_lengths: Sequence[int]) -> NDArray[np.int64]:
    """Position of each residue, int64 (L,): i + ``CHAIN_JUMP`` · (chain of i), so 0 … L − 1 of a single chain.

    Args:
        chain_lengths: Residues of each chain; L in all.
    """
    numbers = chain_numbers(chain_lengths)
    return np.arange(len(numbers)) + CHAIN_JUMP * numbers
