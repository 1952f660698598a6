"""Local alignments of protein sequences, many at a time: Smith-Waterman, BLOSUM62, gap open 11, gap extend 1."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pyopal
from numpy.typing import NDArray

from contactlm.alphabet import LETTERS, UNKNOWN_LETTER
from contactlm.types import DataError

GAP_OPEN, GAP_EXTEND = 11, 1  # a gap of n columns costs 11 + (n - 1), as in BLAST
_LAMBDA, _K = 0.267, 0.041  # Karlin-Altschul parameters of this scoring system with gaps (NCBI BLAST's table)
_COLUMNS = "ARNDCQEGHILKMFPSTWYVBZX*"
_IN_TARGET_ONLY = "I"
_PARENTS = str.maketrans("UO", "CK")  # BLOSUM62 knows neither selenocysteine nor pyrrolysine


def raw_score(bits: float) -> int:
    """Return the least integer score of at least so many bits (Karlin & Altschul 1990)."""
    return math.ceil((bits * math.log(2) + math.log(_K)) / _LAMBDA)


def check_letters(sequences: Sequence[str]) -> None:
    """Make sure that sequences hold letters of the ESM alphabet only.

    Raises:
        DataError: One does not.
    """
    allowed = frozenset(LETTERS)
    for number, sequence in enumerate(sequences):
        if not allowed.issuperset(sequence):
            position = next(i for i, letter in enumerate(sequence) if letter not in allowed)
            raise DataError(
                f"sequence {number + 1}, position {position + 1}: {sequence[position]!r} cannot be aligned; "
                f"allowed are {LETTERS}"
            )


class Aligner:
    """Aligns queries with a fixed set of sequences. Threads may share one.

    Args:
        sequences: n sequences of ESM letters.
    """

    def __init__(self, sequences: Sequence[str]) -> None:
        self._sequences = [sequence.translate(_PARENTS) for sequence in sequences]
        self._database = pyopal.Database(self._sequences, pyopal.Alphabet(_COLUMNS))
        self._aligner = pyopal.Aligner("BLOSUM62", gap_open=GAP_OPEN, gap_extend=GAP_EXTEND)

    def scores(self, query: str, targets: NDArray[np.int64]) -> NDArray[np.int64]:
        """Score the best local alignment of a query with each of some sequences.

        Args:
            query: A sequence.
            targets: Numbers of sequences, int64 (m,).

        Returns:
            int64 (m,).
        """
        scores = np.zeros(len(targets), dtype=np.int64)
        if query and len(targets):
            for hit in self._aligner.align(query.translate(_PARENTS), self._database.extract(targets.tolist())):
                scores[hit.target_index] = hit.score
        return scores

    def compare(self, query: str, targets: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Measure the best local alignment of a query with each of some sequences.

        Of several best alignments the aligner's choice depends on which sequence is the query: callers that want one
        answer for a pair must always take the same one.

        Args:
            query: A sequence.
            targets: Numbers of sequences, int64 (m,).

        Returns:
            Identity: identical columns / all columns, gaps included, X never identical; and coverage: the share of
            the shorter sequence between the alignment's ends. Each float64 (m,).
        """
        query = query.translate(_PARENTS)
        identity, coverage = np.zeros(len(targets)), np.zeros(len(targets))
        if query and len(targets):
            for hit in self._aligner.align(query, self._database.extract(targets.tolist()), mode="full"):
                if hit.alignment:  # empty when nothing scores above 0
                    identity[hit.target_index] = _identical(query, hit) / len(hit.alignment)
                    coverage[hit.target_index] = _coverage(hit)
        return identity, coverage

    def align(self, query: str, targets: NDArray[np.int64]) -> list[pyopal.FullResult]:
        """Find the best local alignment of a query with each of some sequences.

        Args:
            query: A sequence, not empty.
            targets: Numbers of sequences, int64 (m,).

        Returns:
            m results of the library, in the order of ``targets``; ``alignment`` is empty when nothing scores above 0.
            Its letters are M (match) and X (mismatch), I (a residue of the target only) and D (of the query only).
        """
        if not len(targets):
            return []
        found = self._aligner.align(query.translate(_PARENTS), self._database.extract(targets.tolist()), mode="full")
        return sorted(found, key=lambda hit: hit.target_index)


def _identical(query: str, hit: pyopal.FullResult) -> int:
    """Count identical columns: M in the aligner's string, which holds for two X as well."""
    columns = hit.alignment
    matches = columns.count("M")
    if UNKNOWN_LETTER not in query:
        return matches
    at = hit.query_start
    for column in columns:
        matches -= column == "M" and query[at] == UNKNOWN_LETTER
        at += column != _IN_TARGET_ONLY
    return matches


def _coverage(hit: pyopal.FullResult) -> float:
    """Return the share of the shorter sequence between the alignment's ends; of equal lengths the larger share."""
    in_query = (hit.query_end - hit.query_start + 1) / hit.query_length
    in_target = (hit.target_end - hit.target_start + 1) / hit.target_length
    if hit.query_length == hit.target_length:
        return max(in_query, in_target)
    return in_query if hit.query_length < hit.target_length else in_target
