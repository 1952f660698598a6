"""Backbone coordinates of residues, and the peptide bonds between them."""

from __future__ import annotations

import math

import numpy as np
from Bio.PDB.kdtrees import KDTree
from numpy.typing import NDArray

from contactlm.structure.residues import BACKBONE, Residue

MAX_PEPTIDE_BOND = 2.0  # Å; the bond from C to N is 1.33 long
MAX_CA_DISTANCE = 4.2  # Å, of neighbours (3.8, or 2.9 at a cis bond); the measure where N or C are missing
MAX_COORDINATE = 1e5  # Å; beyond it single precision does not resolve 0.01 Å

_MISSING = (math.nan,) * 3
_N, _CA, _C = range(3)


def backbone(residues: list[Residue]) -> NDArray[np.float64]:
    """Return the coordinates of N, CA and C.

    Atoms without a finite position, and residues with all three atoms at one point (placeholders such as the
    origin), count as missing.

    Returns:
        float64 (L, 3 atoms, 3), in Å; NaN where missing.

    Raises:
        ValueError: A coordinate is beyond :data:`MAX_COORDINATE`.
    """
    flat = np.array([r.atoms.get(atom, _MISSING) for r in residues for atom in BACKBONE], dtype=np.float64)
    xyz = flat.reshape(len(residues), len(BACKBONE), 3)
    xyz[~np.isfinite(xyz).all(axis=2)] = np.nan
    xyz[(xyz == xyz[:, :1]).all(axis=(1, 2))] = np.nan
    if (np.abs(xyz) > MAX_COORDINATE).any():
        where, atom, axis = np.argwhere(np.abs(xyz) > MAX_COORDINATE)[0]
        residue = residues[where]
        raise ValueError(
            f"residue {residue.name} {residue.number} has a coordinate of {xyz[where, atom, axis]:g} Å; "
            f"positions lie within {MAX_COORDINATE:g} Å"
        )
    return xyz


def bonded(xyz: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Tell for each of L - 1 successive pairs whether a peptide bond links them.

    Args:
        xyz: Backbone coordinates, (L, 3 atoms, 3), in Å.

    Returns:
        bool (L - 1,); False where an atom is missing.
    """
    difference = xyz[:-1, _C] - xyz[1:, _N]
    return np.einsum("ij,ij->i", difference, difference) < MAX_PEPTIDE_BOND**2


def linked(xyz: NDArray[np.floating]) -> NDArray[np.bool_]:
    """Tell for each of L - 1 successive pairs whether they are neighbours in the chain.

    A peptide bond tells; where N or C are missing, the distance of the CA does.

    Args:
        xyz: Backbone coordinates, (L, 3 atoms, 3), in Å.

    Returns:
        bool (L - 1,); False where the atoms that would tell are missing.
    """
    apart = np.linalg.norm(np.diff(xyz[:, _CA], axis=0), axis=-1)
    judged = np.isfinite(xyz[:-1, _C, 0]) & np.isfinite(xyz[1:, _N, 0])
    return np.where(judged, bonded(np.asarray(xyz, dtype=np.float64)), apart < MAX_CA_DISTANCE)


class BondFinder:
    """Finds the residues that peptide bonds link to a given one, wherever they stand in the list.

    Args:
        xyz: Backbone coordinates, (L, 3 atoms, 3), in Å; NaN where missing.
    """

    def __init__(self, xyz: NDArray[np.float64]) -> None:
        self._xyz = xyz
        self._trees = [self._tree(atom) for atom in (_N, _CA, _C)]

    def before(self, i: int) -> list[int]:
        """Residues whose C is bonded to the N of residue i."""
        return self._near(_C, self._xyz[i, _N], MAX_PEPTIDE_BOND, i)

    def after(self, i: int) -> list[int]:
        """Residues whose N is bonded to the C of residue i."""
        return self._near(_N, self._xyz[i, _C], MAX_PEPTIDE_BOND, i)

    def linked(self, i: int) -> list[int]:
        """Residues bonded to residue i; for one that lacks N or C, those with a CA at the distance of neighbours."""
        if np.isnan(self._xyz[i]).any():
            return self._near(_CA, self._xyz[i, _CA], MAX_CA_DISTANCE, i)
        return self.before(i) + self.after(i)

    def _tree(self, atom: int) -> tuple[KDTree | None, NDArray[np.intp]]:
        present = np.flatnonzero(~np.isnan(self._xyz[:, atom]).any(axis=1))
        if len(present) == 0:
            return None, present
        return KDTree(np.ascontiguousarray(self._xyz[present, atom]), 10), present

    def _near(self, atom: int, point: NDArray[np.float64], radius: float, itself: int) -> list[int]:
        tree, present = self._trees[atom]
        if tree is None or np.isnan(point).any():
            return []
        hits = sorted(int(present[hit.index]) for hit in tree.search(point, radius))
        return [hit for hit in hits if hit != itself]
