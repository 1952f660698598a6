"""What is known of the residues that batches of training crops show, made by whichever process makes the batches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import get_worker_info

from contactlm.data.store import ChainStore
from contactlm.model.evidence import Evidence
from contactlm.retrieval.exclude import Exclusion
from contactlm.retrieval.source import EvidenceSource
from contactlm.retrieval.tokens import ChainEvidence, collate_evidence


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
