"""What a search finds: a chain of known structure, and how it aligns with the query."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from contactlm.retrieval.aligned import index_map
from contactlm.retrieval.database import StructureDatabase


@dataclass(frozen=True, eq=False)
class Hit:
    """A chain of the database that is similar to a query, and how the two align.

    Attributes:
        index: Number of the chain in the database.
        id: Its id, such as ``1abc_A``.
        score: Bit score of the search program.
        evalue: Matches this good that chance would find in the whole database; None: the program gives none.
        identity: Identical columns / all columns of the alignment, gaps included, 0 … 1. X is never identical.
        pair_identity: Identical residues / aligned pairs of known residues, gaps left out, 0 … 1.
        coverage: Share of the query's residues that are aligned with one of the hit, 0 … 1.
        query_positions: Positions in the query of the m aligned pairs, int32 (m,), ascending, counted from 0.
        hit_positions: Positions in the hit's chain that they are aligned with, int32 (m,), ascending.
    """

    index: int
    id: str
    score: float
    evalue: float | None
    identity: float
    pair_identity: float
    coverage: float
    query_positions: NDArray[np.int32]
    hit_positions: NDArray[np.int32]

    def to_hit(self, query_length: int) -> NDArray[np.int32]:
        """Position in the hit of every residue of the query, int32 (L,); −1 where it is aligned with none."""
        return index_map(self.query_positions, self.hit_positions, query_length)

    def to_query(self, hit_length: int) -> NDArray[np.int32]:
        """Position in the query of every residue of the hit's chain, int32 (L of the hit,); −1 where there is none."""
        return index_map(self.hit_positions, self.query_positions, hit_length)


def hits_cb(hits: Sequence[Hit], length: int, database: StructureDatabase) -> NDArray[np.float32]:
    """C-betas of K hits on the residues of their query, float32 (K, L, 3), Å; NaN: aligned with none, or unresolved.

    Args:
        hits: Of one query.
        length: Residues of the query, L.
        database: Where the hits are from.
    """
    cb = np.full((len(hits), length, 3), np.nan, np.float32)
    for own, hit in zip(cb, hits, strict=True):
        own[hit.query_positions] = database.cb_of(hit.index)[hit.hit_positions]
    return cb
