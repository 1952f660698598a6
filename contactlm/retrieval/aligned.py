"""Local alignments of a query with its hits, as pairs of positions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyopal
from numpy.typing import NDArray

from contactlm.alphabet import UNKNOWN_LETTER
from contactlm.homology.alignment import Aligner

_QUERY_ONLY, _HIT_ONLY = ord("D"), ord("I")


class Alignment(NamedTuple):
    """The best local alignment of a query with another sequence (Smith-Waterman, BLOSUM62, gap open 11, extend 1).

    Attributes:
        query: Positions in the query of the m aligned pairs, int32 (m,), ascending.
        hit: Positions in the other sequence, int32 (m,), ascending.
        identity: Identical columns / all columns, gaps included, 0 … 1; X is never identical.
        pair_identity: Identical residues / aligned pairs of known residues, 0 … 1; 0 where no pair is known.
    """

    query: NDArray[np.int32]
    hit: NDArray[np.int32]
    identity: float
    pair_identity: float


def align(query: str, sequences: Sequence[str]) -> list[Alignment | None]:
    """Align a query with some sequences.

    Args:
        query: L letters of the ESM alphabet, L > 0.
        sequences: m sequences.

    Returns:
        m alignments; None where nothing scores above 0.
    """
    found = Aligner(sequences).align(query, np.arange(len(sequences)))
    return [_pairs(query, sequence, result) for sequence, result in zip(sequences, found, strict=True)]


def index_map(positions: NDArray[np.int32], values: NDArray[np.int32], length: int) -> NDArray[np.int32]:
    """Spread values over residues: int32 (length,), ``values`` at ``positions`` and −1 elsewhere."""
    indices = np.full(length, -1, dtype=np.int32)
    indices[positions] = values
    return indices


def _pairs(query: str, hit: str, result: pyopal.FullResult) -> Alignment | None:
    if not result.alignment:
        return None
    columns = np.frombuffer(result.alignment.encode("ascii"), dtype=np.uint8)
    in_query, in_hit = columns != _HIT_ONLY, columns != _QUERY_ONLY
    both = in_query & in_hit
    at_query = (result.query_start + np.cumsum(in_query) - 1)[both]
    at_hit = (result.target_start + np.cumsum(in_hit) - 1)[both]
    a, b = (np.frombuffer(s.encode("ascii"), np.uint8)[at] for s, at in ((query, at_query), (hit, at_hit)))
    known = (a != ord(UNKNOWN_LETTER)) & (b != ord(UNKNOWN_LETTER))
    identical = int(((a == b) & known).sum())
    pairs = max(1, int(known.sum()))
    return Alignment(at_query.astype(np.int32), at_hit.astype(np.int32), identical / len(columns), identical / pairs)
