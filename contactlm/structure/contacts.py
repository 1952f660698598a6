"""C-beta positions from the backbone, and contact maps from C-beta positions (numpy).

The same labels for batches on a device are in :mod:`contactlm.structure.labels`, apart from here so that processes
that only read files need not import torch.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

# Internal coordinates of C-beta built on C, N, CA: Dunbrack 2002, the values of the ESM papers.
BOND_LENGTH = 1.522  # CA-CB, in Å
BOND_ANGLE = 1.927  # N-CA-CB, in rad
DIHEDRAL = -2.143  # C-N-CA-CB, in rad

CONTACT_THRESHOLD = 8.0  # Å
TRIVIAL_REACH = 2  # the trivial predictor's contacts: |i − j| <= 2

# Contacts of known structures, carried over to a sequence that is aligned with them: copied, or as a bias of a model.
SOFTNESS = 1.0  # Å over which a contact's value falls from 1/2 to 0.27: near pairs rank before those just in contact
LEAST_WEIGHT = 1e-3  # of a hit without an identical residue: it counts where no other tells

_ROWS_AT_ONCE = 512  # bounds the temporaries of long chains


def virtual_cbeta(n: NDArray, ca: NDArray, c: NDArray) -> NDArray[np.float32]:
    """Build the C-beta of every residue, glycine included, from its backbone.

    With u the unit vector from N to CA and v the unit normal of the plane C, N, CA, C-beta lies at

        CA + 1.522 (-cos(1.927) u + sin(1.927) cos(-2.143) (v x u) + sin(1.927) sin(-2.143) v)

    that is, bond length 1.522 Å, angle 1.927 rad and dihedral -2.143 rad built on C, N, CA (Dunbrack 2002).

    Args:
        n: N coordinates, (L, 3), in Å; NaN where missing.
        ca: CA coordinates, likewise.
        c: C coordinates, likewise.

    Returns:
        float32 (L, 3), in Å. A residue whose N or C is missing, or whose three atoms lie on one line so that no
        direction is defined, has CA as its C-beta; one without CA has NaN.
    """
    n, ca, c = (np.asarray(atom, dtype=np.float64) for atom in (n, ca, c))
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        u = _unit(ca - n)
        v = _unit(np.cross(n - c, u))
        offset = (
            -math.cos(BOND_ANGLE) * u
            + math.sin(BOND_ANGLE) * math.cos(DIHEDRAL) * np.cross(v, u)
            + math.sin(BOND_ANGLE) * math.sin(DIHEDRAL) * v
        )
        cb = ca + BOND_LENGTH * np.where(np.isfinite(offset), offset, 0.0)
        return cb.astype(np.float32)


def _unit(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def contact_map(cb: NDArray, threshold: float = CONTACT_THRESHOLD) -> NDArray[np.int8]:
    """Label every residue pair: contact, no contact or unknown.

    Args:
        cb: C-beta coordinates, (L, 3), in Å; NaN where the residue is unresolved.
        threshold: A contact is a distance strictly below this, in Å.

    Returns:
        int8 (L, L), symmetric: 1 contact, 0 no contact, -1 unknown (a residue unresolved) and on the diagonal.

    Raises:
        ValueError: ``cb`` is not of shape (L, 3).

    Examples:
        >>> import numpy as np
        >>> from contactlm import contact_map
        >>> contact_map(np.array([[0, 0, 0], [5, 0, 0], [12, 0, 0], [np.nan] * 3]))
        array([[-1,  1,  0, -1],
               [ 1, -1,  1, -1],
               [ 0,  1, -1, -1],
               [-1, -1, -1, -1]], dtype=int8)
    """
    cb = np.asarray(cb, dtype=np.float64)
    if cb.ndim != 2 or cb.shape[1] != 3:
        raise ValueError(f"cb has shape {cb.shape}; expected (L, 3): one C-beta position per residue")
    L = len(cb)
    labels = np.empty((L, L), dtype=np.int8)
    for start in range(0, L, _ROWS_AT_ONCE):
        rows = slice(start, start + _ROWS_AT_ONCE)
        # Differences, not a Gram matrix: that one loses the last digits far from the origin and with them the
        # strict comparison of pairs at the threshold.
        squared = sum((cb[rows, axis, None] - cb[None, :, axis]) ** 2 for axis in range(3))
        labels[rows] = squared < threshold**2
    unknown = np.isnan(cb).any(axis=1)
    labels[unknown] = -1
    labels[:, unknown] = -1
    np.fill_diagonal(labels, -1)
    return labels
