"""The search interface: sequences in, chains of known structure with their alignments out."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from contactlm.data.cache import progress_bar
from contactlm.homology.alignment import check_letters
from contactlm.homology.relations import processors
from contactlm.retrieval.aligned import Alignment, align
from contactlm.retrieval.database import StructureDatabase
from contactlm.retrieval.engines import ENGINES, Engine, Found, check_program
from contactlm.retrieval.exclude import ChainIndex, Exclusion, entries_of
from contactlm.retrieval.hit import Hit
from contactlm.retrieval.results import ResultCache
from contactlm.types import DataError

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


DEFAULTS = SearchOptions()


class StructureSearch:
    """The search over a structure database: a :class:`Search` whose results are kept on disk.

    A program (see :mod:`contactlm.retrieval.engines`) finds the similar sequences among the distinct ones of the
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
        check_program(options.program)
        self.database, self.options = database, options
        self._threads, self._progress = threads or processors(), progress
        self._cache = ResultCache(None if cache_dir is None else Path(cache_dir).expanduser() / "searches")
        self._index = ChainIndex(database)
        self._engine: Engine | None = None

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
        parts = [RESULT_VERSION, self.database.fingerprint, asdict(self.options), exclusion.digest, sorted(own), query]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:40]

    def _find(self, queries: Sequence[str]) -> list[Found]:
        if self._engine is None:
            program = ENGINES[self.options.program]
            self._engine = program(self._index.sequences, self.options.evalue, self._threads)
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
