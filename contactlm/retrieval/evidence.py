"""What the hits of a chain say about its residues: segments, where they lie on it, and the structure behind them.

Made once for a whole chain; a crop or a pass of the model takes the columns of the residues that it shows.

Axis letters: L residues of the chain (or shown), K hits, S segments, E width of the backbone's states.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import get_worker_info

from contactlm.data.store import ChainStore
from contactlm.model.evidence import NO_SEGMENT, Evidence
from contactlm.retrieval.database import StructureDatabase
from contactlm.retrieval.embeddings import SegmentStates
from contactlm.retrieval.exclude import Exclusion
from contactlm.retrieval.hits import Hit, hits_cb
from contactlm.retrieval.search import StructureSearch
from contactlm.structure.secondary import MIN_LENGTH, STRAND

SEGMENT_STEP = 16  # batches are padded to a multiple of so many segments, so that few shapes come up
KEPT_BYTES = 512 << 20  # evidence kept in memory; what falls out is rebuilt from the results on disk


@dataclass(frozen=True, eq=False)
class ChainEvidence:
    """What the hits of one chain say."""

    ids: tuple[str, ...]  # of the K hits, best first
    similarity: NDArray[np.float32]  # (K, 2), pair identity and coverage of each
    states: NDArray[np.float32]  # (S, E), mean state of each segment's residues
    kinds: NDArray[np.uint8]  # (S,), HELIX or STRAND of contactlm.structure.secondary
    hit_of: NDArray[np.int64]  # (S,), number of each segment's hit
    touching: NDArray[np.bool_]  # (S, S), whether two segments of one hit have a contact
    segment_of: NDArray[np.int16]  # (K, L), number of the segment a residue is aligned with in each hit; −1: none
    cb: NDArray[np.float32]  # (K, L, 3), Å, C-beta of the residue it is aligned with; NaN: none, or unresolved

    @property
    def nbytes(self) -> int:
        """Memory taken."""
        return sum(value.nbytes for value in vars(self).values() if isinstance(value, np.ndarray))

    def shown(self, residues: NDArray[np.int64]) -> ChainEvidence:
        """Cut down to some residues of the chain, int64 (L',), in their order."""
        return replace(self, segment_of=self.segment_of[:, residues], cb=self.cb[:, residues])


def chain_evidence(
    hits: Sequence[Hit], length: int, database: StructureDatabase, segment_states: SegmentStates
) -> ChainEvidence:
    """Collect the evidence of a chain's hits.

    A helix counts with at least 4 residues that are aligned with the chain, a strand with at least 2.
    """
    segment_of = np.full((len(hits), length), NO_SEGMENT, np.int16)
    states: list[NDArray[np.float32]] = []
    kinds, hit_of = list[int](), list[int]()
    blocks: list[tuple[slice, NDArray[np.bool_]]] = []  # of each hit: the numbers of its segments, which of them touch
    for number, hit in enumerate(hits):
        facts, counted = segment_states.of(hit.index), list[int]()
        for own, segment in enumerate(database.segments_of(hit.index)):
            inside = (hit.hit_positions >= segment.start) & (hit.hit_positions < segment.stop)
            if inside.sum() >= MIN_LENGTH[segment.kind]:
                segment_of[number, hit.query_positions[inside]] = len(kinds)
                kinds.append(segment.kind)
                hit_of.append(number)
                states.append(facts.states[own])
                counted.append(own)
        blocks.append((slice(len(kinds) - len(counted), len(kinds)), facts.touching[np.ix_(counted, counted)]))
    touching = np.zeros((len(kinds), len(kinds)), np.bool_)
    for of_hit, block in blocks:
        touching[of_hit, of_hit] = block
    return ChainEvidence(
        ids=tuple(hit.id for hit in hits),
        similarity=np.array([[hit.pair_identity, hit.coverage] for hit in hits], np.float32).reshape(-1, 2),
        states=np.stack(states) if states else np.zeros((0, 0), np.float32),
        kinds=np.array(kinds, np.uint8),
        hit_of=np.array(hit_of, np.int64),
        touching=touching,
        segment_of=segment_of,
        cb=hits_cb(hits, length, database),
    )


def collate_evidence(chains: Sequence[ChainEvidence], hits: int, width: int, length: int) -> Evidence:
    """Pad what is shown of some chains to one batch."""
    most = max((len(chain.kinds) for chain in chains), default=0)
    segments = SEGMENT_STEP * max(1, -(-most // SEGMENT_STEP))
    batch = Evidence.none(len(chains), length, width, hits, segments)
    least = np.array([0, *(MIN_LENGTH[kind] for kind in sorted(MIN_LENGTH))])
    for row, chain in enumerate(chains):
        S, (K, L) = len(chain.kinds), chain.segment_of.shape
        batch.similarity[row, :K] = torch.from_numpy(chain.similarity)
        batch.segment_of[row, :K, :L] = torch.from_numpy(chain.segment_of)
        batch.cb[row, :K, :L] = torch.from_numpy(chain.cb)
        if S:
            batch.states[row, :S] = torch.from_numpy(chain.states)
            batch.strand[row, :S] = torch.from_numpy(chain.kinds == STRAND)
            batch.hit_of[row, :S] = torch.from_numpy(chain.hit_of)
            batch.least[row, :S] = torch.from_numpy(least[chain.kinds])
            batch.touching[row, :S, :S] = torch.from_numpy(chain.touching)
    return batch


class EvidenceSource:
    """Finds what is known of chains: hits of a search, and segments of the same database."""

    def __init__(self, search: StructureSearch, segment_states: SegmentStates) -> None:
        self.search, self.segment_states = search, segment_states
        self.database = search.database
        self._kept: OrderedDict[tuple[str, str, str], ChainEvidence] = OrderedDict()
        self._bytes = 0

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": OrderedDict(), "_bytes": 0}  # another process makes it from what is on disk

    def of(self, ids: Sequence[str], sequences: Sequence[str], exclusion: Exclusion) -> list[ChainEvidence]:
        """Evidence of whole chains."""
        keys = [(name, sequence, exclusion.digest) for name, sequence in zip(ids, sequences, strict=True)]
        made = {key: self._kept[key] for key in keys if key in self._kept}
        missing = [key for key in dict.fromkeys(keys) if key not in made]
        found = self.hits([key[0] for key in missing], [key[1] for key in missing], exclusion)
        for key, hits in zip(missing, found, strict=True):
            made[key] = self._keep(key, chain_evidence(hits, len(key[1]), self.database, self.segment_states))
        for key in keys:
            if key in self._kept:
                self._kept.move_to_end(key)
        return [made[key] for key in keys]

    def hits(self, ids: Sequence[str], sequences: Sequence[str], exclusion: Exclusion) -> list[list[Hit]]:
        """The chains of the database that evidence is made of; arguments as of :meth:`of`."""
        return self.search.search(sequences, ids, exclusion)

    def _keep(self, key: tuple[str, str, str], evidence: ChainEvidence) -> ChainEvidence:
        self._kept[key] = evidence
        self._bytes += evidence.nbytes
        while self._bytes > KEPT_BYTES and len(self._kept) > 1:
            self._bytes -= self._kept.popitem(last=False)[1].nbytes
        return evidence


@dataclass
class CropEvidence:
    """Adds evidence to batches of crops; a pure function of the batch."""

    source: EvidenceSource
    store: ChainStore  # the chains that are cropped
    hits: int  # K of a batch
    width: int  # of the backbone's states, E
    exclusion: Exclusion | None = None  # what must not be used; None: not known yet, and batches stay as they are

    def __call__(self, batch: Mapping[str, Any]) -> Mapping[str, Any]:
        """The batch with its ``evidence``."""
        if self.exclusion is None or "evidence" in batch:
            return batch
        if get_worker_info() is not None:  # a device belongs to the process that loads no data
            self.source.segment_states.encoder.device = torch.device("cpu")
        return {**batch, "evidence": self.of(batch, self.exclusion)}

    def of(self, batch: Mapping[str, Any], exclusion: Exclusion) -> Evidence:
        """What is known of the residues of a batch, on the CPU."""
        sequences = [self.store.sequence_of(index) for index in batch["indices"].tolist()]
        whole = self.source.of(batch["ids"], sequences, exclusion)
        shown: list[ChainEvidence] = []
        for row, (start, length) in enumerate(zip(batch["starts"].tolist(), batch["lengths"].tolist(), strict=True)):
            residues = batch["residues"][row, :length] if "residues" in batch else torch.arange(start, start + length)
            shown.append(whole[row].shown(residues.numpy()))
        return collate_evidence(shown, self.hits, self.width, batch["tokens"].shape[1] - 2)
