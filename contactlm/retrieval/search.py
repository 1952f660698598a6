"""The search interface: sequences in, chains of known structure with their alignments out.

The program is phmmer (Eddy 2011; the pyhmmer library), chosen by measuring (tests/benchmarks/bench_search.py): it
finds all listed relatives in a database of 455 sequences, and in one of 100,000 chains takes 185 ms and 181 MB a query,
where Smith-Waterman behind a k-mer prefilter takes 445 ms and 986 MB. Its filters pass matches of P ≤ 1e-5 only: in a
database of fewer than 100 sequences the largest E-value of a hit is therefore below 1e-3.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from contactlm.alphabet import UNKNOWN_LETTER
from contactlm.data.cache import progress_bar
from contactlm.homology.alignment import check_letters
from contactlm.homology.relations import processors
from contactlm.retrieval.database import StructureDatabase
from contactlm.retrieval.exclude import ChainIndex, Exclusion, entries_of
from contactlm.retrieval.hits import Alignment, Hit, ResultCache, align
from contactlm.types import DataError, MissingExtraError

if TYPE_CHECKING:
    from pyhmmer.easel import DigitalSequence


class Found(NamedTuple):
    """What a program found for one query, best first.

    Attributes:
        target: Numbers of the target sequences, int64 (m,).
        bits: Bit scores, float64 (m,).
        evalue: E-values, float64 (m,).
    """

    target: NDArray[np.int64]
    bits: NDArray[np.float64]
    evalue: NDArray[np.float64]

    @classmethod
    def ranked(cls, rows: Sequence[tuple[int, float, float]]) -> Found:
        """Sort (target, bits, E-value), each target once: by E-value, then score, then number."""
        best: dict[int, tuple[float, float, int]] = {}
        for target, bits, evalue in rows:
            best[target] = min((evalue, -bits, target), best.get(target, (np.inf, 0.0, target)))
        order = sorted(best.values())
        return cls(
            np.array([target for *_, target in order], dtype=np.int64),
            np.array([-bits for _, bits, _ in order], dtype=np.float64),
            np.array([evalue for evalue, *_ in order], dtype=np.float64),
        )


def check_phmmer() -> None:
    """Make sure that phmmer can be had, before anything is read for it."""
    try:
        import pyhmmer  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("pyhmmer", "retrieval", str(error)) from error


class Phmmer:
    """HMMER's phmmer: each query as a profile with BLOSUM62's substitutions.

    Args:
        targets: n sequences of ESM letters.
        evalue: Largest E-value.
        threads: Threads that search.

    Raises:
        MissingExtraError: The library is not installed.
    """

    def __init__(self, targets: Sequence[str], evalue: float, threads: int) -> None:
        check_phmmer()
        from pyhmmer.easel import Alphabet, DigitalSequenceBlock

        self._evalue, self._threads = evalue, threads
        self._alphabet = Alphabet.amino()
        self._targets = DigitalSequenceBlock(self._alphabet, (self._digital(i, s) for i, s in enumerate(targets)))

    def find(self, queries: Sequence[str]) -> list[Found]:
        """Find all similar targets of each query, up to the largest E-value."""
        from pyhmmer.hmmer import phmmer

        asked = [
            i for i, query in enumerate(queries) if query.strip(UNKNOWN_LETTER)
        ]  # nothing is like unknown residues
        found = [Found.ranked([])] * len(queries)
        digital = [self._digital(i, queries[i]) for i in asked]
        for i, hits in zip(asked, phmmer(digital, self._targets, cpus=self._threads, E=self._evalue), strict=True):
            found[i] = Found.ranked([(int(hit.name), hit.score, hit.evalue) for hit in hits if hit.reported])
        return found

    def _digital(self, number: int, sequence: str) -> DigitalSequence:
        from pyhmmer.easel import TextSequence

        return TextSequence(name=str(number).encode(), sequence=sequence).digitize(self._alphabet)


__all__ = ["Exclusion", "Hit", "Search", "SearchOptions", "StructureSearch"]

DEFAULT_EXCLUSION = Exclusion()
RESULT_VERSION = 1  # raise it whenever other hits or alignments are found: kept results are then searched again
BATCH = 256  # queries handed to the program at a time; results are kept after each batch


@dataclass(frozen=True)
class SearchOptions:
    """How to search.

    Attributes:
        hits: Most hits a query, k.
        evalue: Largest E-value of a hit.

    Raises:
        DataError: A value is out of range.
    """

    hits: int = 4
    evalue: float = 1e-3

    def __post_init__(self) -> None:
        if self.hits < 1:
            raise DataError(f"hits is {self.hits}; it must be at least 1")
        if not 0 < self.evalue < float("inf"):
            raise DataError(f"evalue is {self.evalue}; it must be above 0")


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


DEFAULTS = SearchOptions()


class StructureSearch:
    """The search over a structure database: a :class:`Search` whose results are kept on disk.

    phmmer (Eddy 2011) finds the similar sequences among the distinct ones of the
    database; what must not be used is left out; then the best are aligned until k of them are below the identity
    ceiling. The program starts with the first query whose result is not known.

    Args:
        database: The chains to search.
        options: How to search.
        cache_dir: The cache folder; results are kept in ``searches/`` below it, by query, database, options and
            exclusion. None: they are not kept.
        threads: Threads of the program; None takes one for each available processor.
        progress: Whether to show a progress bar.

    Raises:
        MissingExtraError: The program's library is not installed.
    """

    def __init__(
        self,
        database: StructureDatabase,
        options: SearchOptions = DEFAULTS,
        cache_dir: str | Path | None = None,
        threads: int | None = None,
        progress: bool = False,
    ) -> None:
        check_phmmer()
        self.database, self.options = database, options
        self._threads, self._progress = threads or processors(), progress
        self._cache = ResultCache(None if cache_dir is None else Path(cache_dir).expanduser() / "searches")
        self._index = ChainIndex(database)
        self._engine: Phmmer | None = None

    def search(
        self,
        queries: Sequence[str],
        ids: Sequence[str] | None = None,
        exclusion: Exclusion = DEFAULT_EXCLUSION,
    ) -> list[list[Hit]]:
        """Find the chains most similar to each query; see :meth:`Search.search`.

        Raises:
            DataError: A query holds other letters than those of the ESM alphabet; the program cannot run.
            ValueError: There are not as many ids as queries.
        """
        if ids is not None and len(ids) != len(queries):
            raise ValueError(f"{len(ids)} ids for {len(queries)} queries")
        check_letters(queries)
        own = [self._own_entries(None if ids is None else ids[i], exclusion) for i in range(len(queries))]
        keys = [self._key(query, entries, exclusion) for query, entries in zip(queries, own, strict=True)]
        known = {key: self._cache.get(key) for key in set(keys)}
        missing = {key: i for i, key in enumerate(keys) if known[key] is None}
        numbers = list(missing.values())
        with progress_bar("Searching", "chain", len(numbers), self._progress and bool(numbers)) as bar:
            for start in range(0, len(numbers), BATCH):
                batch = numbers[start : start + BATCH]
                for i, found in zip(batch, self._find([queries[i] for i in batch]), strict=True):
                    hits = known[keys[i]] = self._choose(queries[i], found, own[i], exclusion)
                    self._cache.put(keys[i], hits)
                    bar.update()
        return [list(known[key] or []) for key in keys]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_engine": None}  # programs cannot be sent to other processes: each starts its own

    def _own_entries(self, query_id: str | None, exclusion: Exclusion) -> frozenset[str]:
        """The query's own entries, as far as the database has chains of them (others need no result of their own)."""
        if query_id is None or not exclusion.own_entry:
            return frozenset()
        return entries_of(query_id) & self._index.known_entries

    def _key(self, query: str, own: frozenset[str], exclusion: Exclusion) -> str:
        parts = [
            RESULT_VERSION,
            self.database.fingerprint,
            {**asdict(self.options), "program": "phmmer"},  # named since other programs could be chosen once
            exclusion.digest,
            sorted(own),
            query,
        ]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:40]

    def _find(self, queries: Sequence[str]) -> list[Found]:
        if self._engine is None:
            self._engine = Phmmer(self._index.sequences, self.options.evalue, self._threads)
        return self._engine.find(queries)

    def _choose(self, query: str, found: Found, own: frozenset[str], exclusion: Exclusion) -> list[Hit]:
        """Take the best k hits that may be used."""
        usable = self._index.usable(found.target, own, exclusion)
        hits: list[Hit] = []
        for start in range(0, len(usable), self.options.hits):  # the ceiling rarely asks for more than one round
            some = usable[start : start + self.options.hits]
            alignments = align(query, [self.database.sequence_of(chain) for _, chain in some])
            for (rank, chain), alignment in zip(some, alignments, strict=True):
                if alignment is not None and alignment.pair_identity <= exclusion.max_identity:
                    hits.append(self._hit(chain, float(found.bits[rank]), float(found.evalue[rank]), alignment, query))
            if len(hits) >= self.options.hits:
                break
        return hits[: self.options.hits]

    def _hit(self, chain: int, bits: float, evalue: float, alignment: Alignment, query: str) -> Hit:
        return Hit(
            index=chain,
            id=self.database.id_of(chain),
            score=bits,
            evalue=evalue,
            identity=alignment.identity,
            pair_identity=alignment.pair_identity,
            coverage=len(alignment.query) / len(query),
            query_positions=alignment.query,
            hit_positions=alignment.hit,
        )
