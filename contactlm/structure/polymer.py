"""Which residues of a raw chain form the protein, and in which order."""

from __future__ import annotations

from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from contactlm.structure.bonds import BondFinder, backbone, bonded
from contactlm.structure.residues import BACKBONE, STANDARD_NAMES, RawChain, Residue


def polymer(chain: RawChain) -> tuple[list[Residue], NDArray[np.float64]]:
    """Select the residues of the protein chain, in chain order.

    * Of several types of one number, the one whose CA has the highest occupancy; of equals the first.
    * An ATOM residue counts when its name is an amino acid's, or when it has N, CA and C.
    * A hetero residue counts when the file declares it a part of the polymer (MODRES, a position in the full sequence)
      or a peptide bond links it to one that counts. An amino acid before the chain's last TER also counts if SEQRES
      lists its name or, without SEQRES, if it is a modified one. Others are free amino acids: ligands.
    * Order is that of the full sequence where the file gives every residue a position in it, else that of the file;
      only hetero residues out of order there (some programs collect them at the end) move to their peptide bonds.

    Returns:
        The residues, and their backbone coordinates, float64 (L, 3 atoms, 3), in Å.

    Raises:
        ValueError: A coordinate is impossibly large.
    """
    residues = [r for variants in chain.residues.values() if (r := _occupied(variants)) is not None]
    if all(r.index is not None for r in residues):
        residues.sort(key=lambda r: r.index or 0)
    xyz = backbone(residues)
    if not any(r.hetero and not r.declared for r in residues):
        return residues, xyz
    bonds = BondFinder(xyz)
    inside = _inside(residues, chain, bonds)
    order = [i for i in _ordered(residues, xyz, bonds) if inside[i]]
    return [residues[i] for i in order], xyz[order]


def _occupied(variants: list[Residue]) -> Residue | None:
    possible = [r for r in variants if r.known or all(atom in r.atoms for atom in BACKBONE)]
    if len(possible) > 1:
        return max(possible, key=lambda r: r.occupancy("CA"))
    return possible[0] if possible else None


def _inside(residues: list[Residue], chain: RawChain, bonds: BondFinder) -> list[bool]:
    """Tell which residues are in the polymer: the declared ones and all that are linked to them."""
    listed = frozenset(chain.full)
    inside = [_declared(r, listed) for r in residues]
    links = {i: bonds.linked(i) for i, is_inside in enumerate(inside) if not is_inside}
    frontier = [i for i, partners in links.items() if any(inside[j] for j in partners)]
    while frontier:
        i = frontier.pop()
        inside[i] = True
        frontier.extend(j for j in links[i] if not inside[j])
    return inside


def _declared(residue: Residue, listed: frozenset[str]) -> bool:
    if not residue.hetero or residue.declared or residue.parent:
        return True
    expected = residue.name in listed if listed else residue.name not in STANDARD_NAMES
    return residue.known and expected and not residue.trailing


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
        else:  # nothing tells better than the file
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
