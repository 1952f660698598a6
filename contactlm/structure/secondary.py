"""Secondary structure in three states from backbone coordinates, and its helices and strands.

Hydrogen bonds decide (DSSP: Kabsch & Sander 1983, by the pydssp library). Its carbonyl oxygens are built here from
CA, C and the next N, which lie in one plane with them. HELIX and SHEET records of a file are not used.

The libraries come with the extra ``contactlm[retrieval]``.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from Bio.PDB.kdtrees import KDTree
from numpy.typing import NDArray

from contactlm.structure.polymer import bonded, linked
from contactlm.types import MissingExtraError

_WINDOW = 4  # missing residues put at a break: no measure spans it
_HELIX_LENGTH, _STRAND_LENGTH, _SHORT_STRAND_LENGTH = 5, 4, 3  # residues of the shortest run
_CONTACTS = 5  # that a short strand needs with other C-alphas, its residues' taken together
_CONTACT = (4.2, 5.2)  # Å

_Mask = NDArray[np.bool_]


class _Ideal(NamedTuple):
    """Mean and greatest deviation of each measure, in Å and degrees."""

    d2: tuple[float, float]
    d3: tuple[float, float]
    d4: tuple[float, float]
    tau: tuple[float, float]
    alpha: tuple[float, float]


_HELIX = _Ideal(d2=(5.5, 0.5), d3=(5.3, 0.5), d4=(6.4, 0.6), tau=(89.0, 12.0), alpha=(50.0, 20.0))
_STRAND = _Ideal(d2=(6.7, 0.6), d3=(9.9, 0.9), d4=(12.4, 1.1), tau=(124.0, 14.0), alpha=(-170.0, 45.0))


def helices_and_strands(ca: NDArray[np.floating], is_linked: _Mask) -> tuple[_Mask, _Mask]:
    """Tell the residues of helices and of strands from C-alphas alone (P-SEA, Labesse et al. 1997); none is in both.

    A residue i is judged by the C-alphas i - 1 to i + 3: d2, d3 and d4 are the distances from i - 1 to i + 1, i + 2
    and i + 3, τ the angle of i - 1, i, i + 1, and α the dihedral of i - 1 to i + 2.

    A helix is a run of at least 5 residues that fit by d3 and d4 or by τ and α, a strand one of at least 4 that fit by
    d2, d3 and d4 or by τ and α, or of 3 if they have 5 contacts of 4.2 to 5.2 Å. Runs grow by one residue at each end
    that fits by d3, or for helices by τ.

    Args:
        ca: C-alpha positions, (L, 3), in Å; NaN where unresolved.
        is_linked: Whether each residue and the next are neighbours in the chain, bool (L - 1,).

    Returns:
        Two arrays of bool (L,).
    """
    rows = np.arange(len(ca)) + _WINDOW * np.concatenate([[0], np.cumsum(~is_linked)]).astype(np.intp)
    spread = np.full((int(rows[-1]) + 1 + _WINDOW, 3), np.nan)
    spread[rows] = ca
    measures = _measures(spread)
    helix, strand = (_fits(measures, ideal) for ideal in (_HELIX, _STRAND))
    helices = _runs((helix.d3 & helix.d4) | (helix.tau & helix.alpha), _HELIX_LENGTH)
    strands = _runs((strand.d2 & strand.d3 & strand.d4) | (strand.tau & strand.alpha), _SHORT_STRAND_LENGTH)
    contacts = _contacts(spread, [at for run in strands for at in range(*run)])
    strands = [run for run in strands if run[1] - run[0] >= _STRAND_LENGTH or contacts[slice(*run)].sum() >= _CONTACTS]
    in_helix, in_strand = _grown(helices, helix.d3 | helix.tau)[rows], _grown(strands, strand.d3)[rows]
    resolved = np.isfinite(ca).all(axis=1)
    return in_helix & ~in_strand & resolved, in_strand & resolved


class _PerResidue(NamedTuple):
    """A value of each measure for every residue, (L,)."""

    d2: NDArray
    d3: NDArray
    d4: NDArray
    tau: NDArray
    alpha: NDArray


def _measures(ca: NDArray[np.float64]) -> _PerResidue:
    """Distances in Å and angles in degrees; NaN where a C-alpha is missing."""
    L = len(ca)
    before = ca[: L - _WINDOW]  # of residue i, i - 1
    steps = [
        ca[k + 1 : L - _WINDOW + k + 1] - ca[k : L - _WINDOW + k] for k in range(3)
    ]  # i - 1 to i, to i + 1, to i + 2
    values = [np.linalg.norm(ca[k : L - _WINDOW + k] - before, axis=1) for k in (2, 3, 4)]
    with np.errstate(invalid="ignore", divide="ignore"):
        cosine = -_dot(steps[0], steps[1]) / (np.linalg.norm(steps[0], axis=1) * np.linalg.norm(steps[1], axis=1))
        values.append(np.degrees(np.arccos(np.clip(cosine, -1, 1))))
    first, second = np.cross(steps[0], steps[1]), np.cross(steps[1], steps[2])
    sine = np.linalg.norm(steps[1], axis=1) * _dot(steps[0], second)
    values.append(np.degrees(np.arctan2(sine, _dot(first, second))))
    padded = np.full((len(values), L), np.nan)
    padded[:, 1 : L - _WINDOW + 1] = values
    return _PerResidue(*padded)


def _dot(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.einsum("ij,ij->i", a, b)


def _fits(measures: _PerResidue, ideal: _Ideal) -> _PerResidue:
    """Whether each measure is near enough to what is ideal, bool (L,) each; angles are equal modulo 360 degrees."""
    fits = [np.abs(values - mean) <= most for values, (mean, most) in zip(measures[:-1], ideal[:-1], strict=True)]
    mean, most = ideal.alpha
    fits.append(np.abs((measures.alpha - mean + 180) % 360 - 180) <= most)
    return _PerResidue(*fits)


def _runs(mask: _Mask, shortest: int) -> list[tuple[int, int]]:
    """Start and stop of all runs that are long enough."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], mask, [False]]).astype(np.int8))).tolist()
    return [(start, stop) for start, stop in list(pairwise(edges))[::2] if stop - start >= shortest]


def _grown(runs: list[tuple[int, int]], fits: _Mask) -> _Mask:
    """Mark runs, and the residue before and after each where it fits."""
    mask = np.zeros(len(fits), dtype=np.bool_)
    for start, stop in runs:
        mask[start - 1 if start > 0 and fits[start - 1] else start : stop] = True
        mask[stop : stop + 1] |= fits[stop : stop + 1]
    return mask


def _contacts(ca: NDArray[np.float64], residues: list[int]) -> NDArray[np.intp]:
    """How many C-alphas lie near those of some residues, (L,); 0 for the others."""
    present = np.ascontiguousarray(ca[np.isfinite(ca).all(axis=1)])
    counts = np.zeros(len(ca), dtype=np.intp)
    if residues:
        tree = KDTree(present, 10)
        least, most = _CONTACT
        counts[residues] = [sum(hit.radius > least for hit in tree.search(ca[i], most)) for i in residues]
    return counts


EXTRA = "retrieval"
SECONDARY_VERSION = 2  # raise it whenever other states are assigned: kept ones are then assigned again
LOOP, HELIX, STRAND = 0, 1, 2
STATE_LETTERS = "-HE"
"""What a state is called in text, by its number."""
MIN_LENGTH = {HELIX: 4, STRAND: 2}
"""Residues of the shortest segment that counts, by state."""
MAX_PAIRWISE = 2500
"""Residues: longer chains are assigned from C-alpha alone, since the library compares all pairs of residues at once
(about 0.7 GB at this length)."""

_CARBONYL = 1.231  # Å; the bond from C to O
_TURN = 5  # residues of the longest turn: missing ones put at a break keep turns from spanning it
_N, _CA, _C = range(3)


class Segment(NamedTuple):
    """A helix or strand."""

    kind: int
    start: int
    stop: int


def secondary_structure(backbone: NDArray[np.floating], sequence: str) -> NDArray[np.uint8]:
    """Assign helix, strand or loop to every residue.

    3-10 and pi helices count as helices, isolated bridges as strands. A chain most of whose residues lack N or C, or
    with more than :data:`MAX_PAIRWISE` residues, is assigned from its C-alpha trace (P-SEA: Labesse et al. 1997; see
    :func:`helices_and_strands`). Nothing spans a break of the chain: residues next to it whose partners are
    missing have no hydrogen bonds, and of two equal states across it the second becomes loop.

    Args:
        backbone: N, CA and C, (L, 3 atoms, 3), in Å; NaN where missing.
        sequence: L letters (proline donates no hydrogen bond).

    Returns:
        uint8 (L,): :data:`LOOP` 0, :data:`HELIX` 1, :data:`STRAND` 2; unresolved residues are loop.
    """
    if backbone.shape != (len(sequence), 3, 3):
        raise ValueError(f"backbone has shape {backbone.shape}; expected ({len(sequence)}, 3, 3): N, CA and C")
    resolved = np.isfinite(backbone[:, _CA, 0])
    complete = np.isfinite(backbone).all(axis=(1, 2))
    if not resolved.any():
        return np.zeros(len(sequence), dtype=np.uint8)
    is_linked = linked(backbone)
    if len(sequence) > MAX_PAIRWISE or 2 * complete.sum() < resolved.sum():
        helix, strand = helices_and_strands(backbone[:, _CA], is_linked)
        states = np.where(helix, HELIX, np.where(strand, STRAND, LOOP)).astype(np.uint8)
    else:
        states = _by_hydrogen_bonds(backbone, sequence, is_linked)
    states[~resolved] = LOOP
    states[1:][~is_linked & (states[1:] == states[:-1])] = LOOP
    return states


def load_dssp() -> Callable[..., NDArray[np.bool_]]:
    """Import what assigns states by hydrogen bonds, a second of work for a process: its package imports torch."""
    try:
        from pydssp.pydssp_numpy import assign
    except ImportError as error:
        raise MissingExtraError("pydssp", EXTRA, str(error)) from error
    return assign


def find_segments(states: NDArray[np.uint8]) -> list[Segment]:
    """List the maximal runs of helix (at least 4 residues) and strand (at least 2), in chain order.

    Args:
        states: Secondary structure, uint8 (L,), as :func:`secondary_structure` gives it.
    """
    edges = np.flatnonzero(np.diff(states)) + 1
    bounds = np.concatenate([[0], edges, [len(states)]]).tolist()
    return [
        Segment(kind, start, stop)
        for start, stop in pairwise(bounds)
        if start < stop and (kind := int(states[start])) != LOOP and stop - start >= MIN_LENGTH[kind]
    ]


def carbonyl_oxygens(backbone: NDArray[np.floating]) -> NDArray[np.float64]:
    """Build the O of every residue in the plane of its CA, its C and the next residue's N, 1.231 Å from C.

    Args:
        backbone: N, CA and C, (L, 3 atoms, 3), in Å; NaN where missing.

    Returns:
        float64 (L, 3), in Å; NaN where an atom is missing or the next residue is not bonded.
    """
    xyz = np.asarray(backbone, dtype=np.float64)
    oxygens = np.full((len(xyz), 3), np.nan)
    here = np.flatnonzero(bonded(xyz))
    ca, c, n = xyz[here, _CA], xyz[here, _C], xyz[here + 1, _N]
    with np.errstate(invalid="ignore", divide="ignore"):
        oxygens[here] = c + _CARBONYL * _unit(_unit(c - ca) + _unit(c - n))
    return oxygens


def _unit(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def _by_hydrogen_bonds(
    backbone: NDArray[np.floating], sequence: str, is_linked: NDArray[np.bool_]
) -> NDArray[np.uint8]:
    assign = load_dssp()  # here: readers of files that need no states do not wait for it
    known = np.isfinite(backbone[:, _CA, 0])
    broken = ~is_linked & known[1:] & known[:-1]
    rows = np.arange(len(sequence)) + _TURN * np.concatenate([[0], np.cumsum(broken)])
    atoms = np.full((int(rows[-1]) + 1 + _TURN, 4, 3), np.nan, dtype=np.float32)  # also enough for its windows
    # near the origin: single precision is then exact enough
    centre = np.nanmean(backbone[:, _CA], axis=0)
    atoms[rows, :3] = backbone - centre
    atoms[rows, 3] = carbonyl_oxygens(backbone) - centre
    donors = np.zeros(len(atoms), dtype=np.bool_)
    donors[rows] = np.frombuffer(sequence.encode("latin-1"), dtype=np.uint8) != ord("P")
    with np.errstate(invalid="ignore", divide="ignore"):
        onehot = assign(atoms, donor_mask=donors)[rows]
    return np.where(onehot[:, 1], HELIX, np.where(onehot[:, 2], STRAND, LOOP)).astype(np.uint8)
