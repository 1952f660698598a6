"""The search interface: sequences in, chains of known structure with their alignments out.

This file holds the words (:class:`Hit`, :class:`Search`, :class:`SearchOptions`) and the search over a database.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from contactlm.retrieval.exclude import Exclusion
from contactlm.types import DataError

DEFAULT_EXCLUSION = Exclusion()


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
        return _index_map(self.query_positions, self.hit_positions, query_length)

    def to_query(self, hit_length: int) -> NDArray[np.int32]:
        """Position in the query of every residue of the hit's chain, int32 (L of the hit,); −1 where there is none."""
        return _index_map(self.hit_positions, self.query_positions, hit_length)


@dataclass(frozen=True)
class SearchOptions:
    """How to search.

    Attributes:
        hits: Most hits a query, k.
        evalue: Largest E-value of a hit.
        program: ``"phmmer"`` (in the package), or ``"mmseqs"``: the MMseqs2 program, which must be installed.

    Raises:
        DataError: A value is out of range.
    """

    hits: int = 4
    evalue: float = 1e-3
    program: Literal["phmmer", "mmseqs"] = "phmmer"

    def __post_init__(self) -> None:
        if self.hits < 1:
            raise DataError(f"hits is {self.hits}; it must be at least 1")
        if not 0 < self.evalue < float("inf"):
            raise DataError(f"evalue is {self.evalue}; it must be above 0")
        if self.program not in ("phmmer", "mmseqs"):
            raise DataError(f"program is {self.program!r}; it must be 'phmmer' or 'mmseqs'")


class Search(Protocol):
    """Whatever finds similar chains of known structure."""

    def search(
        self,
        queries: Sequence[str],
        ids: Sequence[str] | None = None,
        exclusion: Exclusion = DEFAULT_EXCLUSION,
    ) -> list[list[Hit]]:
        """Find the chains most similar to each query.

        Args:
            queries: n sequences of ESM letters.
            ids: Their ids, such as ``1abc_A``, by which their own entries are known; None: they have none.
            exclusion: What must not be a hit.

        Returns:
            For each query its hits, best first, at most k; of chains of equal sequence one. A pure function of the
            query, the database, the options and the exclusion.
        """
        ...


def _index_map(places: NDArray[np.int32], values: NDArray[np.int32], length: int) -> NDArray[np.int32]:
    indices = np.full(length, -1, dtype=np.int32)
    indices[places] = values
    return indices
