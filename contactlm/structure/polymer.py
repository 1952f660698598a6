"""Peptide bonds between residues, and which residues of a raw chain form the protein, in which order."""

from __future__ import annotations

from itertools import groupby

import numpy as np
from Bio.PDB.kdtrees import KDTree
from numpy.typing import NDArray

from contactlm.structure.residues import BACKBONE, STANDARD_NAMES, RawChain, Residue

MAX_PEPTIDE_BOND = 2.0  # Å; the bond from C to N is 1.33 long
MAX_CA_DISTANCE = 4.2  # Å, of neighbours (3.8, or 2.9 at a cis bond); the measure where N or C are missing
MOST_LEFT_OUT = 10  # residues that the numbers leave out before a last one that nothing is bonded to
MAX_COORDINATE = 1e5  # Å; beyond it single precision does not resolve 0.01 Å

_N, _CA, _C = range(3)


def backbone(residues: list[Residue]) -> NDArray[np.float64]:
    """Return the coordinates of N, CA and C.

    Atoms without a finite position, and residues with all three atoms at one point (placeholders such as the
    origin), count as missing.

    Returns:
        float64 (L, 3 atoms, 3), in Å; NaN where missing.
    """
    positions = [position for residue in residues for position in residue.backbone()]
    xyz = np.array(positions, dtype=np.float64).reshape(len(residues), len(BACKBONE), 3)
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

    A peptide bond decides; where N or C are missing, the distance of the CA does.

    Args:
        xyz: Backbone coordinates, (L, 3 atoms, 3), in Å.

    Returns:
        bool (L - 1,); False where the atoms needed are missing.
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


def polymer(chain: RawChain) -> tuple[list[Residue], NDArray[np.float64]]:
    """Select the residues of the protein chain, in chain order.

    * Of several types of one number, the one whose CA has the highest occupancy; of equals the first.
    * An ATOM residue counts when its name is an amino acid's, or when it has N, CA and C.
    * A hetero residue counts when the file declares it a part of the polymer (MODRES, a position in the full sequence)
      or a peptide bond links it to one that counts. An amino acid before the chain's last TER also counts if SEQRES
      lists its name or, without SEQRES, if it is a modified one. Others are free amino acids: ligands.
    * So are ATOM residues at the chain's end that nothing is bonded to, after its last TER or where the numbers leave
      out more than :data:`MOST_LEFT_OUT`, unless the full sequence has them.
    * Of alternate locations one counts for a whole residue: see :func:`_settle`.
    * Order is that of the full sequence where the file gives every residue a position in it, else that of the file;
      only hetero residues out of order there (some programs collect them at the end) move to their peptide bonds.

    Returns:
        The residues, and their backbone coordinates, float64 (L, 3 atoms, 3), in Å.
    """
    residues = [r for variants in chain.residues.values() if (r := _occupied(variants)) is not None]
    if all(r.index is not None for r in residues):
        residues.sort(key=lambda r: r.index or 0)
    _settle(residues)
    xyz = backbone(residues)
    free = _free_ends(residues, xyz)
    if not free and not any(r.hetero and not r.declared for r in residues):
        return residues, xyz
    bonds = BondFinder(xyz)
    inside = _inside(residues, chain, bonds, free)
    order = [i for i in _ordered(residues, xyz, bonds) if inside[i]]
    return [residues[i] for i in order], xyz[order]


def _occupied(variants: list[Residue]) -> Residue | None:
    possible = [r for r in variants if r.known or all(r.has(atom) for atom in BACKBONE)]
    if len(possible) > 1:
        return max(possible, key=lambda r: r.occupancy("CA"))
    return possible[0] if possible else None


def _settle(residues: list[Residue]) -> None:
    """Choose the alternate location of each residue that has several: one for all its atoms.

    It is the location that gives most backbone atoms, then the one of the highest mean occupancy, then the first in
    the file. Successive residues that have a location in common are settled together, so that neighbours are of one
    conformation.
    """
    if all(len(residue.places) < 2 for residue in residues):
        return
    run: list[tuple[Residue, dict[str, tuple[int, float]]]] = []
    common: list[str] = []
    for residue in [*residues, None]:
        rivals = {} if residue is None else residue.alternates()
        shared = [name for name in common if name in rivals]
        if run and not shared:
            scores = {
                name: (sum(each[name][0] for _, each in run), round(sum(each[name][1] for _, each in run), 6))
                for name in common
            }
            best = max(common, key=lambda name: scores[name])
            for settled, _ in run:
                settled.location = best
            run = []
        if residue is not None and rivals:
            common = shared if run else list(rivals)
            run.append((residue, rivals))


def _free_ends(residues: list[Residue], xyz: NDArray[np.float64]) -> frozenset[int]:
    """ATOM residues at the end that may be ligands: bonded to no neighbour, and far from them by their numbers."""
    bonds = linked(xyz)
    free = set()
    for i in range(len(residues) - 1, 0, -1):
        residue, before = residues[i], residues[i - 1]
        if residue.hetero and not residue.declared:
            continue
        left_out = residue.number - before.number - 1
        if residue.declared or residue.parent or bonds[i - 1] or (i < len(residues) - 1 and bonds[i]):
            break
        if not residue.trailing and 0 <= left_out <= MOST_LEFT_OUT:
            break
        free.add(i)
    return frozenset(free)


def _inside(residues: list[Residue], chain: RawChain, bonds: BondFinder, free: frozenset[int]) -> list[bool]:
    """Tell which residues are in the polymer: the declared ones and all that are linked to them."""
    is_placed = any(r.index is not None for r in residues)  # the file names the very residues that the polymer has
    listed = frozenset(chain.full)
    inside = [i not in free and _declared(r, listed, is_placed) for i, r in enumerate(residues)]
    links = {i: bonds.linked(i) for i, is_inside in enumerate(inside) if not is_inside}
    frontier = [i for i, partners in links.items() if any(inside[j] for j in partners)]
    while frontier:
        i = frontier.pop()
        inside[i] = True
        frontier.extend(j for j in links[i] if not inside[j])
    return inside


def _declared(residue: Residue, listed: frozenset[str], is_placed: bool) -> bool:
    if not residue.hetero or residue.declared or residue.parent:
        return True
    expected = residue.name in listed if listed else residue.name not in STANDARD_NAMES
    return residue.known and expected and not residue.trailing and not is_placed


def _ordered(residues: list[Residue], xyz: NDArray[np.float64], bonds: BondFinder) -> list[int]:
    """Order the residues: runs of hetero residues that no bond ties to their neighbours go where their bonds are."""
    strays = _strays(residues, bonded(xyz).tolist())
    heads: dict[int, list[int]] = {}  # by residue: what goes before it
    tails: dict[int, list[int]] = {}  # by residue: what goes after it
    for i in strays:
        if before := bonds.before(i):
            tails.setdefault(before[0], []).append(i)
        elif after := bonds.after(i):
            heads.setdefault(after[0], []).append(i)
        else:  # the file is the best source
            tails.setdefault(i - 1, []).append(i)
    moving = set(strays)
    order = []
    stack = [(i, False) for i in reversed(range(-1, len(residues))) if i not in moving]
    while stack:
        i, opened = stack.pop()
        if opened:
            order.append(i)
        else:
            tail = [(j, False) for j in reversed(tails.get(i, []))]
            stack += [*tail, (i, True), *((j, False) for j in reversed(heads.get(i, [])))]
    # Strays that are linked among themselves only, in a ring, hang on none of the others.
    missing = moving.difference(order)
    return [i for i in order if i >= 0] + sorted(missing)


def _strays(residues: list[Residue], bonds: list[bool]) -> list[int]:
    strays: list[int] = []
    start = 0
    for hetero, run in groupby(residues, key=lambda r: r.hetero):
        stop = start + len(list(run))
        held = (start > 0 and bonds[start - 1]) or (stop < len(residues) and bonds[stop - 1])
        if hetero and not held and stop - start < len(residues):
            strays.extend(range(start, stop))
        start = stop
    return strays
