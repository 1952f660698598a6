"""Which sequences are related: the rule, and the search for all pairs that fulfil it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tqdm.auto import tqdm

from contactlm.homology.alignment import Aligner, raw_score
from contactlm.homology.mmseqs import Hits, search
from contactlm.homology.prefilter import WordIndex
from contactlm.types import DataError


@dataclass(frozen=True)
class ClusterOptions:
    """When two sequences are related.

    Their best local alignment (Smith-Waterman, BLOSUM62, gap open 11, extend 1) must fulfil all three conditions.
    Identical sequences are always related, with identity 1.

    Attributes:
        identity: Least share of identical columns among all aligned columns, gaps included.
        coverage: Least share of the shorter sequence inside the alignment.
        bits: Least bit score, so that chance matches of short sequences do not count.
        prefilter: Align only pairs that share words (see :mod:`contactlm.homology.prefilter` for what is lost by that:
            about one of 50 pairs between 30 and 35 % identity); False aligns every pair.
        program: ``"builtin"``, or ``"mmseqs"``: the MMseqs2 program, which must be installed, finds and aligns the
            pairs; the same conditions are put to its alignments.

    Raises:
        DataError: A value is out of range.
    """

    identity: float = 0.3
    coverage: float = 0.8
    bits: float = 30.0
    prefilter: bool = True
    program: Literal["builtin", "mmseqs"] = "builtin"

    def __post_init__(self) -> None:
        for name in ("identity", "coverage"):
            if not 0 <= getattr(self, name) <= 1:
                raise DataError(f"{name} is {getattr(self, name)}; it must be between 0 and 1")
        if not 0 <= self.bits < float("inf"):
            raise DataError(f"bits is {self.bits}; it must be 0 or more")
        if self.program not in ("builtin", "mmseqs"):
            raise DataError(f"program is {self.program!r}; it must be 'builtin' or 'mmseqs'")


class Relations(NamedTuple):
    """Related pairs of one pool, in ascending order.

    Attributes:
        first: Number of the one sequence, int64 (m,).
        second: Number of the other, larger than ``first``, int64 (m,).
        identity: float64 (m,), 0 … 1.
    """

    first: NDArray[np.int64]
    second: NDArray[np.int64]
    identity: NDArray[np.float64]


def make_pool(sequences: Sequence[str]) -> list[str]:
    """Sort the distinct sequences by length, then by letters: whatever order they came in, the answers are the same."""
    return sorted(set(sequences), key=lambda sequence: (len(sequence), sequence))


def find_relations(
    pool: Sequence[str],
    options: ClusterOptions,
    sides: tuple[NDArray[np.bool_], NDArray[np.bool_]] | None = None,
    threads: int | None = None,
    progress: bool = False,
) -> Relations:
    """Find the related pairs of a pool.

    Args:
        pool: n distinct sequences as :func:`make_pool` sorts them.
        options: The rule.
        sides: Two bool (n,): only pairs of a sequence of the one and a sequence of the other side are asked for.
            None: all pairs.
        threads: Threads that align; None takes one for each available processor.
        progress: Whether to show a progress bar.

    Raises:
        DataError: A sequence holds other letters than those of the ESM alphabet; MMseqs2 is asked for and cannot run.
    """
    if sides is not None and sides[0].sum() > sides[1].sum():
        sides = sides[1], sides[0]
    if options.program == "mmseqs":
        return _by_mmseqs(pool, options, sides, threads)
    aligner = Aligner(pool)
    pairs = _high_scoring(pool, aligner, options, sides, threads, progress)
    starts = np.flatnonzero(np.diff(pairs[:, 0], prepend=-1))
    groups = np.split(pairs, starts[1:]) if len(pairs) else []

    def measure(group: NDArray[np.int64]) -> Hits:
        # of several best alignments the shorter sequence's choice decides, whichever side it is on
        identity, coverage = aligner.compare(pool[group[0, 0]], group[:, 1])
        return Hits(group[:, 0], group[:, 1], identity, coverage, np.full(len(group), np.inf))

    return _keep_related(Hits.join(_in_threads(measure, groups, threads)), options)


def _high_scoring(
    pool: Sequence[str],
    aligner: Aligner,
    options: ClusterOptions,
    sides: tuple[NDArray[np.bool_], NDArray[np.bool_]] | None,
    threads: int | None,
    progress: bool,
) -> NDArray[np.int64]:
    """Find the pairs whose score is high enough, int64 (m, 2), each once, the shorter first, ascending."""
    index = WordIndex(pool) if options.prefilter else None
    least = raw_score(options.bits)

    def search_partners(i: int) -> NDArray[np.int64]:
        first = i + 1 if sides is None else 0
        partners = np.arange(first, len(pool)) if index is None else index.candidates(i, first)
        if sides is not None:
            partners = partners[sides[1][partners] & (partners != i)]
        partners = partners[aligner.scores(pool[i], partners) >= least]
        return np.stack([np.minimum(i, partners), np.maximum(i, partners)], axis=1)

    asked = range(len(pool)) if sides is None else np.flatnonzero(sides[0]).tolist()
    found = _in_threads(search_partners, asked, threads, progress)
    return np.unique(np.concatenate([np.zeros((0, 2), np.int64), *found]), axis=0)


def _by_mmseqs(
    pool: Sequence[str],
    options: ClusterOptions,
    sides: tuple[NDArray[np.bool_], NDArray[np.bool_]] | None,
    threads: int | None,
) -> Relations:
    every = np.ones(len(pool), dtype=bool)
    queries, targets = (np.flatnonzero(side) for side in sides or (every, every))
    hits = search([pool[int(i)] for i in queries], [pool[int(j)] for j in targets], threads or processors())
    first, second = queries[hits.first], targets[hits.second]
    return _keep_related(hits._replace(first=np.minimum(first, second), second=np.maximum(first, second)), options)


def _keep_related(hits: Hits, options: ClusterOptions) -> Relations:
    """Put the rule to alignments; of several of one pair the most identical counts."""
    kept = (hits.identity >= options.identity) & (hits.coverage >= options.coverage) & (hits.bits >= options.bits)
    kept &= hits.first != hits.second
    first, second, identity = hits.first[kept], hits.second[kept], hits.identity[kept]
    order = np.lexsort([-identity, second, first])
    first, second, identity = first[order], second[order], identity[order]
    new = (np.diff(first, prepend=-1) != 0) | (np.diff(second, prepend=-1) != 0)
    return Relations(first[new], second[new], identity[new])


def processors() -> int:
    """Return how many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _in_threads(
    function: Callable[[Any], Any], items: Sequence[Any], threads: int | None, progress: bool = False
) -> list[Any]:
    """Apply a function to all items, in order; the aligner runs outside Python's lock."""
    bar = tqdm(total=len(items), desc="Aligning", unit="chain", disable=not progress, leave=False, file=sys.stderr)
    results = []
    with bar, ThreadPoolExecutor(threads or processors()) as executor:
        try:
            for result in executor.map(function, items):
                results.append(result)
                bar.update()
        finally:  # after Ctrl-C, what has not begun must not begin
            executor.shutdown(wait=False, cancel_futures=True)
    return results
