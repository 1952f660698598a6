"""Local alignments of protein sequences, many at a time, and which pairs are worth one.

Smith-Waterman, BLOSUM62, gap open 11, gap extend 1.
"""

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
_ORDER = "ARNDCQEGHILKMFPSTWYVBZX*"
_IN_TARGET_ONLY = "I"
_PARENTS = str.maketrans("UO", "CK")  # BLOSUM62 knows neither selenocysteine nor pyrrolysine

GROUPS = ("LM", "IV", "C", "A", "G", "ST", "P", "FY", "W", "DN", "EQ", "KR", "H")
# residues in 1000 of globular proteins (Robinson & Robinson 1991)
_PER_MILLE = dict(zip("ARNDCQEGHILKMFPSTWYV", map(float, (
    78, 51, 45, 54, 19, 43, 63, 74, 22, 51, 91, 57, 22, 39, 52, 71, 58, 13, 32, 64)), strict=True))  # fmt: skip
OFFSETS = (0, 1, 3)  # the residues of a word among SPAN consecutive ones
SPAN = OFFSETS[-1] + 1
BIN_SHIFT = 2  # four diagonals a bin, two bins a band: bands overlap by half
ALWAYS_BELOW = 80
"""Residues: shorter sequences hold too few words to judge by; their pairs are always aligned, which is cheap."""
THRESHOLD = (-3.15, 0.77, 0.25)
"""A pair passes when √weight ≥ a + b ln(shorter) + c ln(longer). Chance alone reaches -2.05, 0.52, 0.25 on average; the
margin above it is small for short pairs, whose alignment costs little, and grows to 0.4 at 400 residues."""

_GROUP_OF_BYTE = np.full(256, -1, dtype=np.int32)
for _number, _letters in enumerate(GROUPS):
    _GROUP_OF_BYTE[np.frombuffer(_letters.encode(), dtype=np.uint8)] = _number
_GROUP_INFORMATION = -np.log2([sum(_PER_MILLE[a] for a in letters) / 1000 for letters in GROUPS]) / 10


def raw_score(bits: float) -> int:
    """Return the least integer score of at least so many bits (Karlin & Altschul 1990)."""
    return math.ceil((bits * math.log(2) + math.log(_K)) / _LAMBDA)


def check_letters(sequences: Sequence[str]) -> None:
    """Make sure that sequences hold letters of the ESM alphabet only; raises DataError otherwise."""
    allowed = frozenset(LETTERS)
    for number, sequence in enumerate(sequences, start=1):
        if not allowed.issuperset(sequence):
            at, letter = next((i, letter) for i, letter in enumerate(sequence, start=1) if letter not in allowed)
            raise DataError(f"sequence {number}, position {at}: {letter!r} cannot be aligned; allowed are {LETTERS}")


class Aligner:
    """Aligns queries with a fixed set of sequences. Threads may share one."""

    def __init__(self, sequences: Sequence[str]) -> None:
        self._sequences = [sequence.translate(_PARENTS) for sequence in sequences]
        self._database = pyopal.Database(self._sequences, pyopal.Alphabet(_ORDER))
        self._aligner = pyopal.Aligner("BLOSUM62", gap_open=GAP_OPEN, gap_extend=GAP_EXTEND)

    def scores(self, query: str, targets: NDArray[np.int64]) -> NDArray[np.int64]:
        """Scores of the best local alignment of a query with each of some sequences, both int64 (m,)."""
        scores = np.zeros(len(targets), dtype=np.int64)
        if query and len(targets):
            for hit in self._aligner.align(query.translate(_PARENTS), self._database.extract(targets.tolist())):
                scores[hit.target_index] = hit.score
        return scores

    def compare(self, query: str, targets: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Measure the best local alignment of a query with each of some sequences.

        Of several best alignments the aligner's choice depends on which sequence is the query: callers that want one
        answer for a pair must always take the same one. ``targets`` are numbers of sequences, int64 (m,).

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
        """The best local alignment of a query, not empty, with each of some sequences, int64 (m,), in their order.

        ``alignment`` is empty when nothing scores above 0; its letters are M (match) and X (mismatch), I (a residue of
        the target only) and D (of the query only).
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


class WordIndex:
    """The words of many sequences, by word: which pairs are worth an alignment, sharing words near one diagonal.

    Related sequences, aligned, share short words whose positions differ by about the same number. A word is three
    residues out of four consecutive ones (a spaced seed, Ma, Tromp & Li 2002), in an alphabet of 13 groups of
    residues that BLOSUM62 finds alike. A pair's weight is the largest sum, over bands of eight diagonals, of the
    information of the words shared in that band. What chance reaches grows with both lengths, and so does the
    threshold.

    Measured against the alignment of all pairs, on 634 distinct chains of 15 residues and more from the structures
    this package was developed with (the threshold was chosen on the same chains): all 553 related pairs pass, 169
    of them below 40 % identity. Of simulated pairs of 30-35 % identity with insertions and deletions, 40-600
    residues long, 97.9 % pass (1,500 pairs; those lost are mostly shorter than 200 residues). The pairs that pass
    are 24 % of the work of aligning all. Remote relatives, below 30 % identity, are lost more often.
    """

    def __init__(self, sequences: Sequence[str]) -> None:
        n = len(sequences)
        self._lengths = np.array([len(sequence) for sequence in sequences], dtype=np.int64)
        self._words = [_words(sequence) for sequence in sequences]
        owner = np.repeat(np.arange(n), [len(words) for words, _ in self._words])
        none = np.zeros(0, dtype=np.int64)
        words = np.concatenate([none, *(words for words, _ in self._words)])
        order = np.argsort(words, kind="stable")
        self._owner = owner[order]
        self._position = np.concatenate([none, *(at for _, at in self._words)])[order]
        self._key = words[order] * n + self._owner  # ascending

    def candidates(self, query: int, first: int = 0) -> NDArray[np.int64]:
        """Find the sequences that may be related to one of them. The answer for a pair is the same both ways.

        Returns:
            Ascending numbers ≥ ``first``, int64 (m,); the query's own may be among them.
        """
        L, lengths = self._lengths[query], self._lengths[first:]
        if L < ALWAYS_BELOW or not len(lengths):
            return np.arange(first, first + len(lengths))
        n_bins = (lengths + L >> BIN_SHIFT) + 2
        starts = np.cumsum(n_bins) - n_bins
        target, diagonal, weight = self._hits(query, first)
        bins = np.bincount(starts[target - first] + (diagonal >> BIN_SHIFT), weight, int(n_bins.sum()))
        bins[:-1] += bins[1:]  # the last bin of every sequence is empty, so no band runs into the next one's
        best = np.maximum.reduceat(bins, starts)
        shorter, longer = np.minimum(lengths, L), np.maximum(lengths, L)
        least = THRESHOLD[0] + THRESHOLD[1] * np.log(shorter) + THRESHOLD[2] * np.log(longer)
        return first + np.flatnonzero((lengths < ALWAYS_BELOW) | (np.sqrt(best) >= least))

    def _hits(self, query: int, first: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
        """List where the query's words occur in the sequences from ``first`` on: which, on which diagonal, weight."""
        n, (words, at) = len(self._lengths), self._words[query]
        lower = np.searchsorted(self._key, words * n + first)
        counts = np.searchsorted(self._key, (words + 1) * n) - lower
        found = np.arange(counts.sum()) + np.repeat(lower - (np.cumsum(counts) - counts), counts)
        target = self._owner[found]
        diagonal = self._position[found] + np.repeat(self._lengths[query] - at, counts)
        if first < query:  # counted from the other end where the roles are exchanged, so that the bins are the same
            both = self._lengths[query] + self._lengths[target]
            diagonal = np.where(target < query, both - diagonal, diagonal)
        return target, diagonal, np.repeat(_information(words), counts)


def _words(sequence: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Number the words of a sequence, int64, with their positions; words with an unknown residue are left out."""
    groups = _GROUP_OF_BYTE[np.frombuffer(sequence.encode("latin-1"), dtype=np.uint8)].astype(np.int64)
    n = max(0, len(groups) - SPAN + 1)
    letters = [groups[offset : offset + n] for offset in OFFSETS]
    known = np.flatnonzero(np.minimum.reduce(letters) >= 0)
    word = np.zeros(len(known), dtype=np.int64)
    for letter in letters:
        word = word * len(GROUPS) + letter[known]
    return word, known


def _information(words: NDArray[np.int64]) -> NDArray[np.float64]:
    """How rare words are by the frequencies of their letters, in units of 10 bits."""
    total = np.zeros(len(words))
    for _ in OFFSETS:
        words, letter = np.divmod(words, len(GROUPS))
        total += _GROUP_INFORMATION[letter]
    return total
