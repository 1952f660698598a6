"""Secondary structure from C-alpha positions alone, by the criteria of P-SEA (Labesse et al. 1997).

A residue i is like a helix's, or a strand's, where distances and angles of the C-alphas i - 1 to i + 3 are: d2, d3 and
d4 from i - 1 to i + 1, i + 2 and i + 3, the angle τ of i - 1, i, i + 1 and the dihedral α of i - 1 to i + 2.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import numpy as np
from Bio.PDB.kdtrees import KDTree
from numpy.typing import NDArray

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
    """Tell the residues of helices and of strands; no residue is in both.

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
