"""Ideal protein backbones from torsion angles: atoms N, CA, C, O of every residue, C-beta for the file writer.

Bond lengths and angles are the means of Engh & Huber (1991, 2001). Every function takes leading batch axes, so that
many candidate conformations are built at once.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from contactlm.structure.contacts import virtual_cbeta

Floats = NDArray[np.float64]

N_CA, CA_C, C_N, C_O = 1.458, 1.525, 1.329, 1.231  # Å
ANGLE_N_CA_C, ANGLE_CA_C_N, ANGLE_C_N_CA, ANGLE_CA_C_O = np.deg2rad((111.0, 117.2, 121.7, 120.5))


def backbone(
    phi: Floats, psi: Floats, start: Floats | None = None, psi_before: float = 180.0, omega: float = 180.0
) -> Floats:
    """Build the backbone atoms of L residues from their torsions.

    Every atom carries a frame whose x axis is the bond that leads to it; the next frame is one rotation about that
    axis (the torsion) and one in the plane of the bond angle, one bond length further on.

    Args:
        phi: (..., L), degrees. The first one places residue 0 after the residue that ``start`` ends.
        psi: (..., L), degrees.
        start: Frame of the C atom before residue 0 as :func:`end_frame` gives it, (..., 4, 3); the origin when None.
        psi_before: psi of the residue before residue 0, degrees.
        omega: Torsion of every peptide bond, degrees.

    Returns:
        float64 (..., L, 4, 3), Å: atoms N, CA, C, O.
    """
    coords = np.empty((*phi.shape, 4, 3))
    axes, at = _origin(phi.shape[:-1]) if start is None else (start[..., :3, :], start[..., 3, :])
    step_n = _rotation(np.concatenate([np.full_like(psi[..., :1], psi_before), psi[..., :-1]], -1), ANGLE_CA_C_N)
    step_ca = _rotation(np.full_like(psi, omega), ANGLE_C_N_CA)
    step_c = _rotation(phi, ANGLE_N_CA_C)
    step_o = _rotation(psi + 180.0, ANGLE_CA_C_O)
    for i in range(phi.shape[-1]):
        for atom, (step, length) in enumerate(((step_n, C_N), (step_ca, N_CA), (step_c, CA_C))):
            axes = step[..., i, :, :] @ axes
            at = at + length * axes[..., 0, :]
            coords[..., i, atom, :] = at
        coords[..., i, 3, :] = at + C_O * (step_o[..., i, :, :] @ axes)[..., 0, :]
    return coords


def end_frame(coords: Floats) -> Floats:
    """The frame of the last C atom of a backbone, from which :func:`backbone` goes on.

    Args:
        coords: (..., L, 4, 3), Å.

    Returns:
        (..., 4, 3): three unit axes (rows), then the position in Å.
    """
    n, ca, c = (coords[..., -1, atom, :] for atom in range(3))
    x = _unit(c - ca)
    z = _unit(np.cross(ca - n, c - ca))
    return np.stack([x, np.cross(z, x), z, c], axis=-2)


def c_beta(coords: Floats) -> Floats:
    """Virtual C-beta of every residue: (..., L, 4, 3) to (..., L, 3), Å."""
    n, ca, c = (coords[..., atom, :].reshape(-1, 3) for atom in range(3))
    return virtual_cbeta(n, ca, c).astype(np.float64).reshape(*coords.shape[:-2], 3)


def with_cb(coords: Floats) -> Floats:
    """Append the virtual C-beta to every residue's atoms: (..., L, 4, 3) to (..., L, 5, 3), Å."""
    return np.concatenate([coords, c_beta(coords)[..., None, :]], axis=-2)


def _origin(batch: tuple[int, ...]) -> tuple[Floats, Floats]:
    return np.broadcast_to(np.eye(3), (*batch, 3, 3)), np.zeros((*batch, 3))


def _rotation(torsion: Floats, angle: float) -> Floats:
    """Rows are the next frame's axes in the coordinates of this one: turn by the torsion, then by pi - angle."""
    chi = np.deg2rad(torsion)
    cos, sin = np.cos(chi), np.sin(chi)
    along, across = -np.cos(angle), np.sin(angle)
    zero = np.zeros_like(chi)
    rows = (
        (np.full_like(chi, along), across * cos, across * sin),
        (np.full_like(chi, -across), along * cos, along * sin),
        (zero, -sin, cos),
    )
    return np.stack([np.stack(row, axis=-1) for row in rows], axis=-2)


def _unit(vector: Floats) -> Floats:
    return vector / np.linalg.norm(vector, axis=-1, keepdims=True)
