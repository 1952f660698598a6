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
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from contactlm.alphabet import UNKNOWN_LETTER
from contactlm.data.cache import progress_bar
from contactlm.homology.alignment import check_letters
from contactlm.homology.relations import processors
from contactlm.retrieval.database import StructureDatabase
from contactlm.retrieval.exclude import ChainIndex, Exclusion, entries_of
from contactlm.retrieval.hits import Hit, align
from contactlm.retrieval.kept import KeptFiles
from contactlm.types import DataError, MissingExtraError

if TYPE_CHECKING:
    from pyhmmer.easel import DigitalSequence

DEFAULT_EXCLUSION = Exclusion()
RESULT_VERSION = 2  # raise it whenever other hits or alignments are found: kept results are then searched again
EVALUE = 1e-3  # the largest of a hit
BATCH = 256  # queries handed to the program at a time; results are kept after each batch


class Found(NamedTuple):
    """What phmmer found for one query, best first: m targets by number, with their scores."""

    target: NDArray[np.int64]
    bits: NDArray[np.float64]
    evalue: NDArray[np.float64]

    @classmethod
    def ranked(cls, rows: Sequence[tuple[int, float, float]]) -> Found:
        """Sort (target, bits, E-value) by E-value, then score, then number."""
        order = sorted((evalue, -bits, target) for target, bits, evalue in rows)
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
    """HMMER's phmmer among some sequences: each query as a profile with BLOSUM62's substitutions."""

    def __init__(self, targets: Sequence[str], evalue: float, threads: int) -> None:
        from pyhmmer.easel import Alphabet, DigitalSequenceBlock

        self._evalue, self._threads = evalue, threads
        self._alphabet = Alphabet.amino()
        self._targets = DigitalSequenceBlock(self._alphabet, (self._digital(i, s) for i, s in enumerate(targets)))

    def find(self, queries: Sequence[str]) -> list[Found]:
        """Find all similar targets of each query, up to the largest E-value."""
        from pyhmmer.hmmer import phmmer

        # nothing is like unknown residues
        asked = [i for i, query in enumerate(queries) if query.strip(UNKNOWN_LETTER)]
        found = [Found.ranked([])] * len(queries)
        digital = [self._digital(i, queries[i]) for i in asked]
        for i, hits in zip(asked, phmmer(digital, self._targets, cpus=self._threads, E=self._evalue), strict=True):
            found[i] = Found.ranked([(int(hit.name), hit.score, hit.evalue) for hit in hits if hit.reported])
        return found

    def _digital(self, number: int, sequence: str) -> DigitalSequence:
        from pyhmmer.easel import TextSequence

        return TextSequence(name=str(number).encode(), sequence=sequence).digitize(self._alphabet)


class StructureSearch:
    """The search over a structure database, whose results are kept in ``searches/`` of a cache folder, if one is given.

    phmmer finds similar sequences among the distinct ones of the database; what must not be used is left out; then the
    best are aligned until ``hits`` of them are below the identity ceiling. ``threads`` None: one a processor.
    """

    def __init__(
        self,
        database: StructureDatabase,
        hits: int = 4,
        cache_dir: str | Path | None = None,
        threads: int | None = None,
        progress: bool = False,
    ) -> None:
        check_phmmer()
        if hits < 1:
            raise DataError(f"hits is {hits}; it must be at least 1")
        self.database, self.hits = database, hits
        self._threads, self._progress = threads or processors(), progress
        folder = None if cache_dir is None else Path(cache_dir).expanduser() / "searches"
        self._kept = KeptFiles(folder, "search result")
        self._index = ChainIndex(database)
        self._engine: Phmmer | None = None

    def search(
        self,
        queries: Sequence[str],
        ids: Sequence[str] | None = None,
        exclusion: Exclusion = DEFAULT_EXCLUSION,
    ) -> list[list[Hit]]:
        """Find the chains most similar to each of n queries of ESM letters: at most k hits each, best first.

        By ``ids`` such as ``1abc_A`` their own entries are known. Of chains of equal sequence one is a hit. A pure
        function of the query, the database, the options and the exclusion.
        """
        if ids is not None and len(ids) != len(queries):
            raise ValueError(f"{len(ids)} ids for {len(queries)} queries")
        check_letters(queries)
        own = [self._own_entries(None if ids is None else ids[i], exclusion) for i in range(len(queries))]
        keys = [self._key(query, entries, exclusion) for query, entries in zip(queries, own, strict=True)]
        known = {key: self._kept_hits(key) for key in set(keys)}
        missing = {key: i for i, key in enumerate(keys) if known[key] is None}
        numbers = list(missing.values())
        with progress_bar("Searching", "chain", len(numbers), self._progress and bool(numbers)) as bar:
            for start in range(0, len(numbers), BATCH):
                batch = numbers[start : start + BATCH]
                for i, found in zip(batch, self._find([queries[i] for i in batch]), strict=True):
                    hits = known[keys[i]] = self._choose(queries[i], found, own[i], exclusion)
                    plain = json.dumps([vars(hit) for hit in hits], default=np.ndarray.tolist)
                    self._kept.put(keys[i], plain.encode())
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
        """The file name of a result."""
        options = (self.hits, EVALUE, exclusion.digest, sorted(own))
        parts = [RESULT_VERSION, self.database.fingerprint, options, query]
        key = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:40]
        return f"{key[:2]}/{key}.json"

    def _kept_hits(self, key: str) -> list[Hit] | None:
        kept = self._kept.get(key)
        if kept is None:
            return None
        arrays = ("query_positions", "hit_positions")
        return [Hit(**hit | {name: np.array(hit[name], np.int32) for name in arrays}) for hit in json.loads(kept)]

    def _find(self, queries: Sequence[str]) -> list[Found]:
        if self._engine is None:
            self._engine = Phmmer(self._index.sequences, EVALUE, self._threads)
        return self._engine.find(queries)

    def _choose(self, query: str, found: Found, own: frozenset[str], exclusion: Exclusion) -> list[Hit]:
        """Take the best k hits that may be used."""
        usable = self._index.usable(found.target, own, exclusion)
        hits: list[Hit] = []
        for start in range(0, len(usable), self.hits):  # the ceiling rarely asks for more than one round
            some = usable[start : start + self.hits]
            alignments = align(query, [self.database.sequence_of(chain) for _, chain in some])
            for (rank, chain), alignment in zip(some, alignments, strict=True):
                if alignment is not None and alignment.pair_identity <= exclusion.max_identity:
                    scores = (float(found.bits[rank]), float(found.evalue[rank]))
                    identities = (alignment.identity, alignment.pair_identity)
                    coverage = len(alignment.query) / len(query)
                    at = (alignment.query, alignment.hit)
                    hits.append(Hit(chain, self.database.id_of(chain), *scores, *identities, coverage, *at))
            if len(hits) >= self.hits:
                break
        return hits[: self.hits]
