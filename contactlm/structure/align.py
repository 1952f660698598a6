"""Place observed residues on the full sequence."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def place(observed: str, numbers: NDArray[np.int64], linked: NDArray[np.bool_], full: str) -> NDArray[np.int64] | None:
    """Find the position of every observed residue in the full sequence from residue numbers and peptide bonds.

    Args:
        observed: M letters.
        numbers: Author residue numbers, (M,).
        linked: (M - 1,), whether a peptide bond links a residue to the next.
        full: L letters.

    Returns:
        0-based positions (M,), increasing; None when no shift of the numbering fits all letters.
    """
    steps = np.where(linked, 1, np.maximum(np.diff(numbers), 1))
    offsets = np.concatenate([[0], np.cumsum(steps)])
    slack = len(full) - int(offsets[-1])
    letters = np.frombuffer(observed.encode(), dtype=np.uint8)
    target = np.frombuffer(full.encode(), dtype=np.uint8)
    for start in range(slack):
        if (target[start + offsets] == letters).all():
            return start + offsets
    return None
