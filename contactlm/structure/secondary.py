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
from numpy.typing import NDArray

from contactlm.structure.bonds import bonded, linked
from contactlm.structure.trace import helices_and_strands
from contactlm.types import MissingExtraError

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
    """A helix or strand.

    Attributes:
        kind: :data:`HELIX` (1) or :data:`STRAND` (2).
        start: Its first residue, counted from 0.
        stop: The residue after its last one.
    """

    kind: int
    start: int
    stop: int


def secondary_structure(backbone: NDArray[np.floating], sequence: str) -> NDArray[np.uint8]:
    """Assign helix, strand or loop to every residue.

    3-10 and pi helices count as helices, isolated bridges as strands. A chain most of whose residues lack N or C, or
    with more than :data:`MAX_PAIRWISE` residues, is assigned from its C-alpha trace (P-SEA: Labesse et al. 1997; see
    :mod:`contactlm.structure.trace`). Nothing spans a break of the chain: residues beside it whose partners are
    missing have no hydrogen bonds, and of two equal states across it the second becomes loop.

    Args:
        backbone: N, CA and C, (L, 3 atoms, 3), in Å; NaN where missing.
        sequence: L letters (proline donates no hydrogen bond).

    Returns:
        uint8 (L,): :data:`LOOP` 0, :data:`HELIX` 1, :data:`STRAND` 2; unresolved residues are loop.

    Raises:
        ValueError: ``backbone`` is not of shape (L, 3, 3) for the L residues of ``sequence``.
        MissingExtraError: A library is not installed.
    """
    if backbone.shape != (len(sequence), 3, 3):
        raise ValueError(f"backbone has shape {backbone.shape}; expected ({len(sequence)}, 3, 3): N, CA and C")
    resolved = np.isfinite(backbone[:, _CA, 0])
    complete = np.isfinite(backbone).all(axis=(1, 2))
    if not resolved.any():
        return np.zeros(len(sequence), dtype=np.uint8)
    is_linked = linked(backbone)
    if len(sequence) > MAX_PAIRWISE or 2 * complete.sum() < resolved.sum():
        states = _by_trace(backbone[:, _CA], is_linked)
    else:
        states = _by_hydrogen_bonds(backbone, sequence, is_linked)
    states[~resolved] = LOOP
    states[1:][~is_linked & (states[1:] == states[:-1])] = LOOP
    return states


def load_dssp() -> Callable[..., NDArray[np.bool_]]:
    """Import what assigns states by hydrogen bonds, a second of work for a process: its package imports torch.

    Raises:
        MissingExtraError: It is not installed.
    """
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


def _by_trace(ca: NDArray[np.floating], is_linked: NDArray[np.bool_]) -> NDArray[np.uint8]:
    helix, strand = helices_and_strands(ca, is_linked)
    return np.where(helix, HELIX, np.where(strand, STRAND, LOOP)).astype(np.uint8)
