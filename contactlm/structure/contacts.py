"""C-beta positions from the backbone, and contact maps from C-beta positions: in numpy, and for batches on a device."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

# Internal coordinates of C-beta built on C, N, CA: Dunbrack 2002, the values of the ESM papers.
BOND_LENGTH = 1.522  # CA-CB, in Å
BOND_ANGLE = 1.927  # N-CA-CB, in rad
DIHEDRAL = -2.143  # C-N-CA-CB, in rad

CONTACT_THRESHOLD = 8.0  # Å
TRIVIAL_REACH = 2  # the trivial predictor's contacts: |i − j| <= 2

# Contacts of known structures, carried over to a sequence that is aligned with them: copied, or as a bias of a model.
SOFTNESS = 1.0  # Å over which a contact's value falls from 1/2 to 0.27: near pairs rank before those just in contact
LEAST_WEIGHT = 1e-3  # of a hit without an identical residue: it counts where there is no other

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


def contact_labels(cb: Tensor, threshold: float = CONTACT_THRESHOLD) -> Tensor:
    """Label every residue pair of every crop: what :func:`~contactlm.structure.contacts.contact_map` does, batched.

    Args:
        cb: C-beta coordinates, (B, L, 3) or (L, 3), in Å; NaN where the residue is unresolved or padding.
        threshold: A contact is a distance strictly below this, in Å.

    Returns:
        int8 (B, L, L) or (L, L) on the device of ``cb``: 1 contact, 0 no contact, -1 unknown and on the diagonal.
    """
    if cb.ndim not in (2, 3) or cb.shape[-1] != 3:
        raise ValueError(f"cb has shape {tuple(cb.shape)}; expected (B, L, 3) or (L, 3)")
    import torch  # here: processes that only read files do not wait for it

    # float64 gives the labels of contact_map to the last pair; Apple's devices have none.
    exact = cb.detach() if cb.device.type == "mps" else cb.detach().double()
    x, y, z = exact.unbind(-1)
    difference = x.unsqueeze(-1) - x.unsqueeze(-2)
    squared = difference.square()
    for axis in (y, z):
        torch.sub(axis.unsqueeze(-1), axis.unsqueeze(-2), out=difference)
        squared.addcmul_(difference, difference)
    known = (~cb.isnan().any(dim=-1)).to(torch.int8)
    labels = (squared < threshold**2).view(torch.int8)
    # 0 or 1 where both residues are known, else -1; several times faster than filling by a mask.
    labels.add_(1).mul_(known.unsqueeze(-1) * known.unsqueeze(-2)).sub_(1)
    labels.diagonal(dim1=-2, dim2=-1).fill_(-1)
    return labels
