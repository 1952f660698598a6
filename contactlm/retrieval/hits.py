"""What a search finds: a chain of known structure, and how it aligns with the query."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyopal
from numpy.typing import NDArray

from contactlm.alphabet import UNKNOWN_LETTER
from contactlm.homology.alignment import Aligner
from contactlm.retrieval.database import StructureDatabase

_QUERY_ONLY, _HIT_ONLY = ord("D"), ord("I")


class Alignment(NamedTuple):
    """The best local alignment of a query with another sequence (Smith-Waterman, BLOSUM62, gap open 11, extend 1)."""

    query: NDArray[np.int32]  # positions of the m aligned pairs, (m,), ascending
    hit: NDArray[np.int32]  # likewise in the other sequence
    identity: float  # identical columns / all columns, gaps included; X is never identical
    pair_identity: float  # identical residues / aligned pairs of known residues; 0 where no pair is known


def align(query: str, sequences: Sequence[str]) -> list[Alignment | None]:
    """Align a query with some sequences; None where nothing scores above 0."""
    found = Aligner(sequences).align(query, np.arange(len(sequences)))
    return [_pairs(query, sequence, result) for sequence, result in zip(sequences, found, strict=True)]


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


@dataclass(frozen=True, eq=False)
class Hit:
    """A chain of the database that is similar to a query, and how the two align in m pairs."""

    index: int  # number of the chain in the database
    id: str  # such as 1abc_A
    score: float  # bit score of the search program
    evalue: float  # matches this good that chance would find in the whole database
    identity: float  # identical columns / all columns of the alignment, gaps included; X is never identical
    pair_identity: float  # identical residues / aligned pairs of known residues, gaps left out
    coverage: float  # share of the query's residues that are aligned with one of the hit
    query_positions: NDArray[np.int32]  # (m,), positions in the query, ascending, from 0
    hit_positions: NDArray[np.int32]  # (m,), those in the hit's chain that they are aligned with


def hits_cb(hits: Sequence[Hit], length: int, database: StructureDatabase) -> NDArray[np.float32]:
    """C-betas of K hits on the residues of their query, float32 (K, L, 3), Å; NaN: aligned with none, or unresolved."""
    cb = np.full((len(hits), length, 3), np.nan, np.float32)
    for own, hit in zip(cb, hits, strict=True):
        own[hit.query_positions] = database.cb_of(hit.index)[hit.hit_positions]
    return cb
