"""What evidence needs of the helices and strands of a database: mean final states in a frozen backbone, and contacts.

What is known of a segment depends on its own chain alone, whichever query hits it: it is computed once, when its chain
is first a hit, and kept on disk, one small file a chain, below a folder that names the database (by fingerprint) and
the backbone (by checksum). So other databases and backbones have other folders, and a file that says otherwise, or is
damaged, is made again. A file of an older version, without the contacts, gets them.
"""

from __future__ import annotations

import json
import logging
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from contactlm.atomic import atomic_file, file_name
from contactlm.model.encoder import ResidueEncoder
from contactlm.retrieval.database import StructureDatabase
from contactlm.structure.contacts import CONTACT_THRESHOLD

log = logging.getLogger(__name__)
EMBEDDING_VERSION = 1  # raise it whenever other vectors are made: kept ones are then made again
PIECE = 1022  # residues in one pass at most, as ESM2 was trained


class FrozenEncoder:
    """A backbone as it was before training, loaded when it is first asked.

    Args:
        load: Loads it: a backbone in float32.
        checksum: Of its weights.
    """

    def __init__(self, load: Callable[[], Any], checksum: str) -> None:
        self.checksum = checksum
        self.device = torch.device("cpu")
        self._load = load
        self._encoder: ResidueEncoder | None = None

    @torch.no_grad()
    def states(self, tokens: NDArray[np.uint8]) -> Tensor:
        """Final states of a chain's residues, float32 (L, E), on the CPU; chains go one by one, in even pieces.

        Args:
            tokens: Residue tokens, (L,).
        """
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
    """What is kept of the S segments of a chain, in the order of ``database.segments_of``.

    Attributes:
        states: float32 (S, E), the mean of each one's residues' final states.
        touching: bool (S, S), which have a contact in the chain's structure; none with itself.
    """

    states: NDArray[np.float32]
    touching: NDArray[np.bool_]


class SegmentStates:
    """Mean states of the segments of a database's chains, and which of them touch.

    Args:
        database: The chains.
        encoder: The backbone.
        cache_dir: The cache folder; they are kept in ``segments/`` below it. None: they are not kept. A folder that
            cannot be written costs time only.
    """

    def __init__(self, database: StructureDatabase, encoder: FrozenEncoder, cache_dir: Path | None) -> None:
        self.database, self.encoder = database, encoder
        names = {"version": EMBEDDING_VERSION, "database": database.fingerprint, "backbone": encoder.checksum}
        self._names: dict[str, Any] = names
        self._folder = None
        if cache_dir is not None:
            self._folder = cache_dir / "segments" / file_name(f"{database.fingerprint}-{encoder.checksum[:32]}")
        self._warned = False

    def of(self, index: int) -> SegmentFacts:
        """What is known of a chain's segments."""
        facts = self._kept(index)
        if facts is None:
            facts = SegmentFacts(self._means(index), find_touching(self.database, index))
            self._keep(index, facts)
        return facts

    def path_of(self, index: int) -> Path | None:
        """Where they are kept."""
        return None if self._folder is None else self._folder / f"{index // 1000}" / f"{index}.means"

    def _means(self, index: int) -> NDArray[np.float32]:
        states = self.encoder.states(self.database.store.tokens_of(index)).numpy()
        spans = [states[segment.start : segment.stop].mean(0) for segment in self.database.segments_of(index)]
        return np.stack(spans) if spans else np.zeros((0, states.shape[1]), np.float32)

    def _kept(self, index: int) -> SegmentFacts | None:
        path = self.path_of(index)
        if path is None:
            return None
        try:
            head, body = path.read_bytes().split(b"\n", 1)
            about = json.loads(head)
            expected = {**self._names, "chain": index, "shape": about["shape"], "crc32": zlib.crc32(body)}
            if about not in (expected, {**expected, "touching": True}):
                raise ValueError("it is of another database or backbone, or its checksum does not fit")
            size, width = about["shape"]
            states = np.frombuffer(body, "<f4", size * width).reshape(size, width).astype(np.float32)
            if "touching" in about:
                bits = np.frombuffer(body, np.uint8, offset=states.nbytes)
                return SegmentFacts(states, np.unpackbits(bits, count=size**2).reshape(size, size).astype(np.bool_))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.warning("%s: segment states that cannot be used (%s): they are made again", path, error)
            return None
        facts = SegmentFacts(states, find_touching(self.database, index))
        self._keep(index, facts)
        return facts

    def _keep(self, index: int, facts: SegmentFacts) -> None:
        path = self.path_of(index)
        if path is None:
            return
        body = np.ascontiguousarray(facts.states, "<f4").tobytes() + np.packbits(facts.touching).tobytes()
        shape = list(facts.states.shape)
        about = {**self._names, "chain": index, "shape": shape, "crc32": zlib.crc32(body), "touching": True}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_file(path) as handle:
                handle.write(json.dumps(about).encode() + b"\n" + body)
        except OSError as error:
            if not self._warned:
                self._warned = True
                log.warning("segment states cannot be kept in %s (%s)", path.parent, error.strerror or error)


def find_touching(database: StructureDatabase, index: int) -> NDArray[np.bool_]:
    """Which of the S segments of a chain have a contact with each other, bool (S, S); none with itself."""
    segments, cb = database.segments_of(index), database.cb_of(index).astype(np.float64)
    touching = np.zeros((len(segments), len(segments)), np.bool_)
    for s, one in enumerate(segments):
        for t, other in enumerate(segments[:s]):
            apart = cb[one.start : one.stop, None] - cb[None, other.start : other.stop]
            touching[s, t] = touching[t, s] = ((apart**2).sum(-1) < CONTACT_THRESHOLD**2).any()
    return touching
