"""What the hits of a chain tell of its residues: segments, where they lie on it, and the structure behind them.

Made once for a whole chain; a crop or a pass of the model takes the columns of the residues that it shows.

Axis letters: L residues of the chain (or shown), K hits, S segments, E width of the backbone's states.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray

from contactlm.model.evidence import NO_SEGMENT, Evidence
from contactlm.retrieval.database import StructureDatabase
from contactlm.retrieval.embeddings import SegmentStates
from contactlm.retrieval.hits import Hit, hits_cb
from contactlm.structure.secondary import MIN_LENGTH, STRAND, Segment

SEGMENT_STEP = 16
"""Batches are padded to a multiple of so many segments, so that few shapes come up (FLOPs are measured by shape)."""


@dataclass(frozen=True, eq=False)
class ChainEvidence:
    """What the hits of one chain tell.

    Attributes:
        ids: Ids of the K hits, best first.
        similarity: float32 (K, 2), pair identity and coverage of each.
        states: float32 (S, E), mean state of each segment's residues.
        kinds: uint8 (S,), :data:`~contactlm.structure.secondary.HELIX` or ``STRAND``.
        hit_of: int64 (S,), number of each segment's hit.
        touching: bool (S, S), whether two segments of one hit have a contact.
        segment_of: int16 (K, L), number of the segment that a residue is aligned with in each hit; −1: none.
        cb: float32 (K, L, 3), Å, C-beta of the residue it is aligned with; NaN: none, or unresolved.
    """

    ids: tuple[str, ...]
    similarity: NDArray[np.float32]
    states: NDArray[np.float32]
    kinds: NDArray[np.uint8]
    hit_of: NDArray[np.int64]
    touching: NDArray[np.bool_]
    segment_of: NDArray[np.int16]
    cb: NDArray[np.float32]

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
    found: list[tuple[int, Segment]] = []
    touching: list[NDArray[np.bool_]] = []
    for number, hit in enumerate(hits):
        facts, counted = segment_states.of(hit.index), []
        for own, segment in enumerate(database.segments_of(hit.index)):
            inside = (hit.hit_positions >= segment.start) & (hit.hit_positions < segment.stop)
            if inside.sum() >= MIN_LENGTH[segment.kind]:
                segment_of[number, hit.query_positions[inside]] = len(found)
                found.append((number, segment))
                states.append(facts.states[own])
                counted.append(own)
        touching.append(facts.touching[np.ix_(counted, counted)])
    similarity = [[hit.pair_identity, hit.coverage] for hit in hits]
    return ChainEvidence(
        ids=tuple(hit.id for hit in hits),
        similarity=np.array(similarity, np.float32).reshape(-1, 2),
        states=np.stack(states) if states else np.zeros((0, 0), np.float32),
        kinds=np.array([segment.kind for _, segment in found], np.uint8),
        hit_of=np.array([number for number, _ in found], np.int64),
        touching=_side_by_side(touching),
        segment_of=segment_of,
        cb=hits_cb(hits, length, database),
    )


def _side_by_side(blocks: Sequence[NDArray[np.bool_]]) -> NDArray[np.bool_]:
    """One matrix with the blocks along its diagonal, and nothing beside them."""
    ends = np.cumsum([0, *(len(block) for block in blocks)]).tolist()
    whole = np.zeros((ends[-1], ends[-1]), np.bool_)
    for block, (start, stop) in zip(blocks, pairwise(ends), strict=True):
        whole[start:stop, start:stop] = block
    return whole


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
