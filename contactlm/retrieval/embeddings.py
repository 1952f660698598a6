"""What evidence needs of the helices and strands of a database: mean final states in a frozen backbone, and contacts.

What is known of a segment depends on its own chain alone, whichever query hits it: it is computed when its chain is
first a hit, and kept on disk, one small file a chain, in a folder named by database (fingerprint) and backbone
(checksum).
"""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from contactlm.atomic import file_name
from contactlm.model.encoder import ResidueEncoder
from contactlm.retrieval.database import StructureDatabase
from contactlm.retrieval.kept import KeptFiles
from contactlm.structure.contacts import CONTACT_THRESHOLD

EMBEDDING_VERSION = 2  # raise it whenever other vectors are made: stored ones are then recomputed
PIECE = 1022  # residues in one pass at most, as ESM2 was trained


class FrozenEncoder:
    """A backbone as it was before training, loaded when it is first asked."""

    def __init__(self, load: Callable[[], Any], checksum: str) -> None:
        self.checksum = checksum
        self.device = torch.device("cpu")
        self._load = load
        self._encoder: ResidueEncoder | None = None

    @torch.no_grad()
    def states(self, tokens: NDArray[np.uint8]) -> Tensor:
        """Final states of a chain's residues (L,), float32 (L, E), on the CPU; long chains go in even pieces."""
        if self._encoder is None:
            self._encoder = ResidueEncoder(self._load()).requires_grad_(False).eval()
        encoder = self._encoder.to(self.device)
        reach, own = encoder.family.reach(encoder.esm.config), encoder.family.tokens
        piece_length = PIECE if reach is None else min(PIECE, reach - 2)
        residues = own.own(torch.from_numpy(tokens.astype(np.int64)).to(self.device))
        pieces = residues.tensor_split(-(-len(tokens) // piece_length))
        ends = [torch.full((1,), end, device=self.device) for end in (own.cls, own.eos)]
        with torch.autocast(self.device.type, enabled=False):
            return torch.cat([encoder(torch.cat([ends[0], piece, ends[1]])[None])[0][0] for piece in pieces]).cpu()

    def release(self) -> None:
        """Free its memory, until it is asked again."""
        self._encoder = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_encoder": None}


class SegmentFacts(NamedTuple):
    """What is kept of the S segments of a chain, in the order of ``database.segments_of``."""

    states: NDArray[np.float32]  # (S, E), the mean of each one's residues' final states
    touching: NDArray[np.bool_]  # (S, S), which have a contact in the chain's structure; none with itself


class SegmentStates:
    """Mean states of the segments of a database's chains, and which of them touch; kept in ``segments/`` of a cache."""

    def __init__(self, database: StructureDatabase, encoder: FrozenEncoder, cache_dir: Path | None) -> None:
        self.database, self.encoder = database, encoder
        name = file_name(f"{database.fingerprint}-{encoder.checksum[:32]}-{EMBEDDING_VERSION}")
        self._kept = KeptFiles(None if cache_dir is None else cache_dir / "segments" / name, "segment states")

    def of(self, index: int) -> SegmentFacts:
        """What is known of a chain's segments."""
        if (kept := self._kept.get(_file_of(index))) is not None:
            with BytesIO(kept) as handle:
                return SegmentFacts(np.load(handle), np.load(handle))
        facts = SegmentFacts(self._means(index), find_touching(self.database, index))
        with BytesIO() as handle:
            for array in facts:
                np.save(handle, array)
            self._kept.put(_file_of(index), handle.getvalue())
        return facts

    def _means(self, index: int) -> NDArray[np.float32]:
        states = self.encoder.states(self.database.store.tokens_of(index)).numpy()
        spans = [states[segment.start : segment.stop].mean(0) for segment in self.database.segments_of(index)]
        return np.stack(spans) if spans else np.zeros((0, states.shape[1]), np.float32)


def _file_of(index: int) -> str:
    return f"{index // 1000}/{index}.means"


def find_touching(database: StructureDatabase, index: int) -> NDArray[np.bool_]:
    """Which of the S segments of a chain have a contact with each other, bool (S, S); none with itself."""
    segments, cb = database.segments_of(index), database.cb_of(index).astype(np.float64)
    touching = np.zeros((len(segments), len(segments)), np.bool_)
    for s, one in enumerate(segments):
        for t, other in enumerate(segments[:s]):
            apart = cb[one.start : one.stop, None] - cb[None, other.start : other.stop]
            touching[s, t] = touching[t, s] = ((apart**2).sum(-1) < CONTACT_THRESHOLD**2).any()
    return touching
