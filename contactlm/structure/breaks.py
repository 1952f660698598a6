"""Chains that break where no full sequence tells what is missing: their residue numbers tell how much is."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from contactlm.alphabet import UNKNOWN_LETTER
from contactlm.structure.bonds import linked
from contactlm.structure.residues import Residue

MAX_JUMP = 100
"""Numbers that jump by more count as jumping by this: mostly they go on in another scheme."""


def fill_breaks(residues: list[Residue], xyz: NDArray[np.float64]) -> tuple[str, NDArray[np.intp]]:
    """Put unknown residues where the chain breaks, so that residues stand as far apart as their numbers say.

    Where no bond links a residue to the next and the numbers jump by k, k - 1 unknown residues stand between them.
    Linked residues are neighbours whatever their numbers. Numbers that stay or jump backwards tell nothing, and
    insertion codes do not count: files use them in either order, and for second copies as well.

    Args:
        residues: M observed residues in chain order.
        xyz: Their backbone coordinates, (M, 3 atoms, 3), in Å; NaN where missing.

    Returns:
        The sequence, L letters with X for the unknown ones, and the 0-based positions of the observed residues, (M,).
    """
    pairs = zip(residues[:-1], residues[1:], linked(xyz).tolist(), strict=True)
    steps = [1 if is_linked else min(max(_jump(one, other), 1), MAX_JUMP) for one, other, is_linked in pairs]
    positions = np.concatenate([[0], np.cumsum(steps)]).astype(np.intp)
    letters = [UNKNOWN_LETTER] * (int(positions[-1]) + 1)
    for at, residue in zip(positions.tolist(), residues, strict=True):
        letters[at] = residue.letter
    return "".join(letters), positions


def _jump(one: Residue, other: Residue) -> int:
    """By how much the number grows from a residue to the next: the number in the polymer where the file tells it."""
    here, there = one.position_in_polymer, other.position_in_polymer
    if here is not None and there is not None and here[0] == there[0]:
        return there[1] - here[1]
    return other.number - one.number
