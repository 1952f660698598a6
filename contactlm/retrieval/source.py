"""Evidence by query: search, segments of the hits, and what was made once kept in memory."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from contactlm.retrieval.embeddings import SegmentStates
from contactlm.retrieval.exclude import Exclusion, entries_of, entry_of
from contactlm.retrieval.hit import Hit
from contactlm.retrieval.search import StructureSearch
from contactlm.retrieval.tokens import ChainEvidence, chain_evidence

KEPT_BYTES = 512 << 20
"""Evidence kept in memory; what falls out is made again from the results kept on disk."""
_DRAWS = 100


class EvidenceSource:
    """Finds what is known of chains.

    Args:
        search: Finds hits.
        segment_states: Mean states of the segments of the same database.
        shuffled: Put other chains of the database, drawn at random, instead of the hits; what is said of them
            (similarity, alignment) stays. For control experiments: such evidence is worth nothing.
    """

    def __init__(self, search: StructureSearch, segment_states: SegmentStates, shuffled: bool = False) -> None:
        self.search, self.segment_states, self.shuffled = search, segment_states, shuffled
        self.database = search.database
        self._kept: OrderedDict[tuple[str, str, str], ChainEvidence] = OrderedDict()
        self._bytes = 0

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": OrderedDict(), "_bytes": 0}  # another process makes it from what is on disk

    def of(self, ids: Sequence[str], sequences: Sequence[str], exclusion: Exclusion) -> list[ChainEvidence]:
        """Evidence of whole chains.

        Args:
            ids: Their ids, by which their own entries are known.
            sequences: Their sequences.
            exclusion: What must not be used.
        """
        keys = [(name, sequence, exclusion.digest) for name, sequence in zip(ids, sequences, strict=True)]
        made = {key: self._kept.get(key) for key in keys}
        missing = [key for key, evidence in made.items() if evidence is None]
        found = self.hits([key[0] for key in missing], [key[1] for key in missing], exclusion)
        for key, hits in zip(missing, found, strict=True):
            made[key] = self._keep(key, chain_evidence(hits, len(key[1]), self.database, self.segment_states))
        for key in keys:
            if key in self._kept:
                self._kept.move_to_end(key)
        return [evidence for key in keys if (evidence := made[key]) is not None]

    def hits(self, ids: Sequence[str], sequences: Sequence[str], exclusion: Exclusion) -> list[list[Hit]]:
        """The chains of the database that evidence is made of; arguments as of :meth:`of`."""
        found = self.search.search(sequences, ids, exclusion)
        if not self.shuffled:
            return found
        return [self._shuffle(*each, exclusion) for each in zip(ids, sequences, found, strict=True)]

    def _keep(self, key: tuple[str, str, str], evidence: ChainEvidence) -> ChainEvidence:
        self._kept[key] = evidence
        self._bytes += evidence.nbytes
        while self._bytes > KEPT_BYTES and len(self._kept) > 1:
            self._bytes -= self._kept.popitem(last=False)[1].nbytes
        return evidence

    def _shuffle(self, name: str, sequence: str, hits: Sequence[Hit], exclusion: Exclusion) -> list[Hit]:
        """Replace each hit by a random chain that may be used; the same ones for the same query."""
        seed = hashlib.sha256(f"{name} {sequence}".encode()).digest()[:8]
        rng = np.random.default_rng(int.from_bytes(seed, "little"))
        own = entries_of(name) if exclusion.own_entry else frozenset()
        avoided, others = {hit.index for hit in hits}, []
        for hit in hits:
            for index in rng.integers(len(self.database), size=_DRAWS).tolist():
                if index not in avoided and self._allowed(index, own, exclusion):
                    others.append(self._moved(hit, index))
                    break
        return others

    def _allowed(self, index: int, own: frozenset[str], exclusion: Exclusion) -> bool:
        entry = entry_of(self.database.id_of(index))
        banned = own | exclusion.entries
        return entry not in banned and self.database.sequence_of(index) not in exclusion.sequences

    def _moved(self, hit: Hit, index: int) -> Hit:
        """The same alignment, with another chain; pairs beyond its end are dropped."""
        inside = hit.hit_positions < self.database.store.lengths[index]
        pairs = hit.query_positions[inside], hit.hit_positions[inside]
        return replace(
            hit, index=index, id=self.database.id_of(index), query_positions=pairs[0], hit_positions=pairs[1]
        )
