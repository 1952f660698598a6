"""Evidence by query: search, segments of the hits, and what was made once kept in memory; for crops of batches too."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import get_worker_info

from contactlm.data.store import ChainStore
from contactlm.model.evidence import Evidence
from contactlm.retrieval.embeddings import SegmentStates
from contactlm.retrieval.exclude import Exclusion
from contactlm.retrieval.hits import Hit
from contactlm.retrieval.search import StructureSearch
from contactlm.retrieval.tokens import ChainEvidence, chain_evidence, collate_evidence

KEPT_BYTES = 512 << 20
"""Evidence kept in memory; what falls out is made again from the results kept on disk."""


class EvidenceSource:
    """Finds what is known of chains.

    Args:
        search: Finds hits.
        segment_states: Mean states of the segments of the same database.
    """

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
        return self.search.search(sequences, ids, exclusion)

    def _keep(self, key: tuple[str, str, str], evidence: ChainEvidence) -> ChainEvidence:
        self._kept[key] = evidence
        self._bytes += evidence.nbytes
        while self._bytes > KEPT_BYTES and len(self._kept) > 1:
            self._bytes -= self._kept.popitem(last=False)[1].nbytes
        return evidence


@dataclass
class CropEvidence:
    """Adds evidence to batches of crops; a pure function of the batch.

    Attributes:
        source: Finds what is known of chains.
        store: The chains that are cropped.
        hits: K of a batch.
        width: Width of the backbone's states, E.
        exclusion: What must not be used; None: it is not known yet, and batches stay as they are.
    """

    source: EvidenceSource
    store: ChainStore
    hits: int
    width: int
    exclusion: Exclusion | None = None

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
