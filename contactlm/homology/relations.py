"""Which sequences are related: the rule, and the search for all pairs that fulfil it."""

from __future__ import annotations

import logging
import os
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import DTypeLike, NDArray
from tqdm.auto import tqdm

from contactlm.alphabet import UNKNOWN_LETTER
from contactlm.atomic import atomic_file, if_it_can_be
from contactlm.homology.alignment import Aligner, WordIndex, raw_score
from contactlm.homology.mmseqs import Hits, find_program, search
from contactlm.types import DataError

MAGIC = b"CLMCLUS1"  # of a kept array's file
MANY_SEQUENCES = 20_000  # beyond, MMseqs2 is taken where it is installed (measured: contactlm.homology.cluster)
Sides: TypeAlias = tuple[NDArray[np.bool_], NDArray[np.bool_]]
Bar: TypeAlias = "tqdm[Any]"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ClusterOptions:
    """When two sequences are related.

    Their best local alignment (Smith-Waterman, BLOSUM62, gap open 11, extend 1) must fulfil all three conditions.
    Identical sequences are always related, with identity 1.

    Attributes:
        identity: Least share of identical columns among all aligned columns, gaps included.
        coverage: Least share of the shorter sequence inside the alignment.
        bits: Least bit score, so that chance matches of short sequences do not count.
        prefilter: Align only pairs that share words (see :class:`contactlm.homology.alignment.WordIndex` for what is
            lost by that: about one of 50 pairs between 30 and 35 % identity); False aligns every pair.
        program: ``"builtin"``; or ``"mmseqs"``: the MMseqs2 program, which must be installed
            (``pip install 'contactlm[mmseqs]'``), finds and aligns the pairs, and the same conditions are put to its
            alignments; or ``"auto"``: MMseqs2 for more than 20,000 distinct sequences, where it is installed.

    Raises:
        DataError: A value is out of range.
    """

    identity: float = 0.3
    coverage: float = 0.8
    bits: float = 30.0
    prefilter: bool = True
    program: Literal["auto", "builtin", "mmseqs"] = "auto"

    def __post_init__(self) -> None:
        for name in ("identity", "coverage"):
            if not 0 <= getattr(self, name) <= 1:
                raise DataError(f"{name} is {getattr(self, name)}; it must be between 0 and 1")
        if not 0 <= self.bits < float("inf"):
            raise DataError(f"bits is {self.bits}; it must be 0 or more")
        if self.program not in ("auto", "builtin", "mmseqs"):
            raise DataError(f"program is {self.program!r}; it must be 'auto', 'builtin' or 'mmseqs'")

    def chosen(self, n: int) -> ClusterOptions:
        """The same rule with the program that is used for n distinct sequences in the place of ``"auto"``."""
        if self.program != "auto":
            return self
        has_mmseqs = n > MANY_SEQUENCES and find_program() is not None
        return replace(self, program="mmseqs" if has_mmseqs else "builtin")

    def allows(self, other: ClusterOptions) -> bool:
        """Whether what another rule found is what this one asks for: ``"auto"`` takes either program's."""
        return self in (other, replace(other, program="auto"))


class Relations(NamedTuple):
    """Related pairs of one pool, in ascending order."""

    first: NDArray[np.int64]  # (m,), number of the one sequence
    second: NDArray[np.int64]  # (m,), number of the other, which is larger
    identity: NDArray[np.float64]  # (m,), 0 … 1

    @classmethod
    def join(cls, parts: Sequence[Relations]) -> Relations:
        """Lay parts together, each pair once: of several identities the largest counts."""
        whole, real = np.zeros(0, np.int64), np.zeros(0, np.float64)
        columns = zip(cls(whole, whole, real), *parts, strict=True)
        first, second, identity = (np.concatenate(column) for column in columns)
        order = np.lexsort([-identity, second, first])
        first, second, identity = first[order], second[order], identity[order]
        new = (np.diff(first, prepend=-1) != 0) | (np.diff(second, prepend=-1) != 0)
        return cls(first[new], second[new], identity[new])


def make_pool(sequences: Sequence[str]) -> list[str]:
    """Sort the distinct sequences by length, then by letters: whatever order they came in, the answers are the same."""
    return sorted(set(sequences), key=lambda sequence: (len(sequence), sequence))


def find_relations(
    pool: Sequence[str],
    options: ClusterOptions,
    sides: Sides | None = None,
    threads: int | None = None,
    progress: bool = False,
    keep_in: Path | None = None,
) -> Relations:
    """Find the related pairs of a pool of n distinct sequences as :func:`make_pool` sorts them.

    Of two ``sides``, bool (n,), only pairs of a sequence of the one and a sequence of the other are asked for. A search
    of all pairs keeps what it has found so far in the folder ``keep_in``, of its own for this pool and rule, and goes
    on from there. ``threads`` None: one a processor.
    """
    chosen = options.chosen(len(pool))
    if options.program == "auto" and len(pool) > MANY_SEQUENCES:
        builtin = "the built-in search; MMseqs2 is faster and is used if installed: "
        by = "MMseqs2" if chosen.program == "mmseqs" else f"{builtin}pip install 'contactlm[mmseqs]'"
        log.info("comparing %d sequences by %s", len(pool), by)
    if sides is not None and sides[0].sum() > sides[1].sum():
        sides = sides[1], sides[0]
    search = SEARCHES[chosen.program](pool, chosen, sides, threads or processors())
    asked = np.arange(len(pool)) if sides is None else np.flatnonzero(sides[0])
    size = search.block if sides is None else max(1, len(asked))  # the pairs of one partner are aligned together
    blocks = [asked[start : start + size] for start in range(0, len(asked), size)]
    keep_in = keep_in if len(blocks) > 1 else None
    parts = []
    with tqdm(total=len(asked), desc="Aligning", unit="chain", disable=None if progress else True, leave=False) as bar:
        for number, block in enumerate(blocks):
            path = None if keep_in is None else keep_in / f"{number:06d}.part"
            values = None if path is None else kept_array(path, np.float64)
            if values is not None and len(values) % 3 == 0:
                first, second, identity = values.reshape(-1, 3).T
                parts.append(Relations(first.astype(np.int64), second.astype(np.int64), identity))
                bar.update(len(block))
                continue
            parts.append(search.related(block, bar))
            if path is not None:
                keep_array(np.stack(parts[-1], axis=1).astype(np.float64), path)
    return Relations.join(parts)


def keep_array(array: NDArray[Any], path: Path) -> None:
    """Write magic, CRC-32 (uint64) and values, little endian."""
    payload = array.astype(array.dtype.newbyteorder("<")).tobytes()
    with if_it_can_be("clusters", path.parent), atomic_file(path) as handle:
        handle.write(MAGIC + zlib.crc32(payload).to_bytes(8, "little") + payload)


def kept_array(path: Path, dtype: DTypeLike, length: int | None = None) -> NDArray[Any] | None:
    """Read what :func:`keep_array` wrote, flat; None when the file is missing, damaged or of another length."""
    if not path.is_file():
        return None
    raw = path.read_bytes()
    payload, kind = raw[16:], np.dtype(dtype).newbyteorder("<")
    fits = len(payload) % kind.itemsize == 0 and length in (None, len(payload) // kind.itemsize)
    if raw[:8] != MAGIC or not fits or zlib.crc32(payload).to_bytes(8, "little") != raw[8:16]:
        log.warning("%s is damaged; recomputing the clusters", path)
        return None
    return np.frombuffer(payload, kind).astype(dtype)


class AlignmentSearch:
    """The search that is built in; the arguments are those of :func:`find_relations`, the smaller side first.

    ``block`` is how many sequences to ask for at a time, some minutes' work. Raise ``version`` whenever other pairs are
    found, or blocks are cut otherwise: what was kept is found again.
    """

    block, version = 512, 1

    def __init__(self, pool: Sequence[str], options: ClusterOptions, sides: Sides | None, threads: int) -> None:
        self._pool, self._options, self._sides, self._threads = pool, options, sides, threads
        self._aligner = Aligner(pool)
        self._index = WordIndex(pool) if options.prefilter else None
        self._least = raw_score(options.bits)

    def related(self, asked: NDArray[np.int64], bar: Bar) -> Relations:
        """Find all relations of some sequences, int64 (m,), with those of the other side or with later ones."""
        found = _in_threads(self._partners, asked.tolist(), self._threads, bar)
        pairs = np.unique(np.concatenate([np.zeros((0, 2), np.int64), *found]), axis=0)
        starts = np.flatnonzero(np.diff(pairs[:, 0], prepend=-1))
        groups = np.split(pairs, starts[1:]) if len(pairs) else []
        measured = _in_threads(partial(_measure, self._pool, self._aligner), groups, self._threads)
        return _keep_related(Hits.join(measured), self._options)

    def _partners(self, i: int) -> NDArray[np.int64]:
        """The pairs of a sequence whose score is high enough, int64 (m, 2), the shorter first."""
        first = i + 1 if self._sides is None else 0
        partners = np.arange(first, len(self._pool)) if self._index is None else self._index.candidates(i, first)
        if self._sides is not None:
            partners = partners[self._sides[1][partners] & (partners != i)]
        partners = partners[self._aligner.scores(self._pool[i], partners) >= self._least]
        return np.stack([np.minimum(i, partners), np.maximum(i, partners)], axis=1)


def _measure(pool: Sequence[str], aligner: Aligner, group: NDArray[np.int64]) -> Hits:
    """Align a sequence of a pool with longer ones, pairs int64 (m, 2) of one first number; bits are not measured."""
    # of several best alignments the shorter sequence's choice decides, whichever side it is on
    identity, coverage = aligner.compare(pool[group[0, 0]], group[:, 1])
    return Hits(group[:, 0], group[:, 1], identity, coverage, np.full(len(group), np.inf))


class MmseqsSearch:
    """MMseqs2. The arguments are those of :class:`AlignmentSearch`."""

    block, version = 10_000, 2

    def __init__(self, pool: Sequence[str], options: ClusterOptions, sides: Sides | None, threads: int) -> None:
        self._pool, self._options, self._threads = pool, options, threads
        self._others = None if sides is None else np.flatnonzero(sides[1])
        self._unknown = np.array([UNKNOWN_LETTER in sequence for sequence in pool], dtype=np.bool_)

    def related(self, asked: NDArray[np.int64], bar: Bar) -> Relations:
        """Find all relations of sequences in a row, int64 (m,), with those of the other side or with later ones."""
        partners = np.arange(asked[0], len(self._pool)) if self._others is None else self._others
        queries, targets = ([self._pool[i] for i in numbers.tolist()] for numbers in (asked, partners))
        parts = []
        for hits in search(queries, targets, self._threads, self._options.bits, self._options.identity):
            first, second = asked[hits.first], partners[hits.second]
            hits = hits._replace(first=np.minimum(first, second), second=np.maximum(first, second))
            parts.append(_keep_related(self._without_unknown(hits), self._options))
        bar.update(len(asked))
        return Relations.join(parts)

    @cached_property
    def _aligner(self) -> Aligner:
        return Aligner(self._pool)

    def _without_unknown(self, hits: Hits) -> Hits:
        """Measure pairs of sequences with unknown residues here: the program takes X and X for identical."""
        pairs = np.stack([hits.first, hits.second], axis=1)
        both = self._unknown[pairs].all(axis=1) & (hits.first != hits.second)
        both &= (hits.identity >= self._options.identity) & (hits.bits >= self._options.bits)
        again = np.unique(pairs[both], axis=0)
        if not len(again):
            return hits
        groups = np.split(again, np.flatnonzero(np.diff(again[:, 0])) + 1)
        measured = _in_threads(partial(_measure, self._pool, self._aligner), groups, self._threads)
        return Hits.join([Hits(*(column[~both] for column in hits)), *measured])


SEARCHES: dict[str, type[AlignmentSearch] | type[MmseqsSearch]] = {"builtin": AlignmentSearch, "mmseqs": MmseqsSearch}


def _keep_related(hits: Hits, options: ClusterOptions) -> Relations:
    """Put the rule to alignments; of several of one pair the most identical counts."""
    kept = (hits.identity >= options.identity) & (hits.coverage >= options.coverage) & (hits.bits >= options.bits)
    kept &= hits.first != hits.second
    return Relations.join([Relations(hits.first[kept], hits.second[kept], hits.identity[kept])])


def processors() -> int:
    """Return how many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _in_threads(
    function: Callable[[Any], Any], items: Sequence[Any], threads: int, bar: Bar | None = None
) -> list[Any]:
    """Apply a function to all items, in order; the aligner runs outside Python's lock."""
    results = []
    with ThreadPoolExecutor(threads) as executor:
        try:
            for result in executor.map(function, items):
                results.append(result)
                if bar is not None:
                    bar.update()
        finally:  # after Ctrl-C, what has not begun must not begin
            executor.shutdown(wait=False, cancel_futures=True)
    return results
