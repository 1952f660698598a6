"""What a search finds: a chain of known structure, and how it aligns with the query."""

from __future__ import annotations

import json
import logging
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyopal
from numpy.typing import NDArray

from contactlm.alphabet import UNKNOWN_LETTER
from contactlm.atomic import atomic_file
from contactlm.homology.alignment import Aligner
from contactlm.retrieval.database import StructureDatabase

_QUERY_ONLY, _HIT_ONLY = ord("D"), ord("I")


class Alignment(NamedTuple):
    """The best local alignment of a query with another sequence (Smith-Waterman, BLOSUM62, gap open 11, extend 1).

    Attributes:
        query: Positions in the query of the m aligned pairs, int32 (m,), ascending.
        hit: Positions in the other sequence, int32 (m,), ascending.
        identity: Identical columns / all columns, gaps included, 0 … 1; X is never identical.
        pair_identity: Identical residues / aligned pairs of known residues, 0 … 1; 0 where no pair is known.
    """

    query: NDArray[np.int32]
    hit: NDArray[np.int32]
    identity: float
    pair_identity: float


def align(query: str, sequences: Sequence[str]) -> list[Alignment | None]:
    """Align a query with some sequences.

    Returns:
        m alignments; None where nothing scores above 0.
    """
    found = Aligner(sequences).align(query, np.arange(len(sequences)))
    return [_pairs(query, sequence, result) for sequence, result in zip(sequences, found, strict=True)]


def index_map(positions: NDArray[np.int32], values: NDArray[np.int32], length: int) -> NDArray[np.int32]:
    """Spread values over residues: int32 (length,), ``values`` at ``positions`` and −1 elsewhere."""
    indices = np.full(length, -1, dtype=np.int32)
    indices[positions] = values
    return indices


def _pairs(query: str, hit: str, result: pyopal.FullResult) -> Alignment | None:
    if not result.alignment:
        return None
    columns = np.frombuffer(result.alignment.encode("ascii"), dtype=np.uint8)
    in_query, in_hit = columns != _HIT_ONLY, columns != _QUERY_ONLY
    both = in_query & in_hit
    at_query = (result.query_start + np.cumsum(in_query) - 1)[both]
    at_hit = (result.target_start + np.cumsum(in_hit) - 1)[both]
    a, b = (np.frombuffer(s.encode("ascii"), np.uint8)[at] for s, at in ((query, at_query), (hit, at_hit)))
    known = (a != ord(UNKNOWN_LETTER)) & (b != ord(UNKNOWN_LETTER))
    identical = int(((a == b) & known).sum())
    pairs = max(1, int(known.sum()))
    return Alignment(at_query.astype(np.int32), at_hit.astype(np.int32), identical / len(columns), identical / pairs)


@dataclass(frozen=True, eq=False)
class Hit:
    """A chain of the database that is similar to a query, and how the two align.

    Attributes:
        index: Number of the chain in the database.
        id: Its id, such as ``1abc_A``.
        score: Bit score of the search program.
        evalue: Matches this good that chance would find in the whole database; None: the program gives none.
        identity: Identical columns / all columns of the alignment, gaps included, 0 … 1. X is never identical.
        pair_identity: Identical residues / aligned pairs of known residues, gaps left out, 0 … 1.
        coverage: Share of the query's residues that are aligned with one of the hit, 0 … 1.
        query_positions: Positions in the query of the m aligned pairs, int32 (m,), ascending, counted from 0.
        hit_positions: Positions in the hit's chain that they are aligned with, int32 (m,), ascending.
    """

    index: int
    id: str
    score: float
    evalue: float | None
    identity: float
    pair_identity: float
    coverage: float
    query_positions: NDArray[np.int32]
    hit_positions: NDArray[np.int32]

    def to_hit(self, query_length: int) -> NDArray[np.int32]:
        """Position in the hit of every residue of the query, int32 (L,); −1 where it is aligned with none."""
        return index_map(self.query_positions, self.hit_positions, query_length)

    def to_query(self, hit_length: int) -> NDArray[np.int32]:
        """Position in the query of every residue of the hit's chain, int32 (L of the hit,); −1 where there is none."""
        return index_map(self.hit_positions, self.query_positions, hit_length)


def hits_cb(hits: Sequence[Hit], length: int, database: StructureDatabase) -> NDArray[np.float32]:
    """C-betas of K hits on the residues of their query, float32 (K, L, 3), Å; NaN: aligned with none, or unresolved."""
    cb = np.full((len(hits), length, 3), np.nan, np.float32)
    for own, hit in zip(cb, hits, strict=True):
        own[hit.query_positions] = database.cb_of(hit.index)[hit.hit_positions]
    return cb


log = logging.getLogger(__name__)


class ResultCache:
    """Hits by key.

    Args:
        directory: Where the files go; None: nothing is kept. A folder that cannot be written costs time only.
    """

    def __init__(self, directory: Path | None) -> None:
        self._directory = directory
        self._warned = False

    def get(self, key: str) -> list[Hit] | None:
        """Return the hits of a key; None where they are not known."""
        if self._directory is None:
            return None
        try:
            checksum, body = self._path(self._directory, key).read_bytes().split(b"\n", 1)
            if int(checksum, 16) != zlib.crc32(body):
                raise ValueError("its checksum does not fit")
            return [_hit(entry) for entry in json.loads(body)]
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            log.warning(
                "%s: a damaged search result (%s): it is searched again", self._path(self._directory, key), error
            )
            return None

    def put(self, key: str, hits: Sequence[Hit]) -> None:
        """Keep the hits of a key."""
        if self._directory is None:
            return
        body = json.dumps([_entry(hit) for hit in hits]).encode()
        path = self._path(self._directory, key)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_file(path) as handle:
                handle.write(f"{zlib.crc32(body):08x}\n".encode() + body)
        except OSError as error:
            if not self._warned:
                self._warned = True
                log.warning("search results cannot be kept in %s (%s)", self._directory, error.strerror or error)

    @staticmethod
    def _path(directory: Path, key: str) -> Path:
        return directory / key[:2] / f"{key}.json"


def _entry(hit: Hit) -> dict[str, Any]:
    numbers = ("index", "id", "score", "evalue", "identity", "pair_identity", "coverage")
    return {
        **{name: getattr(hit, name) for name in numbers},
        "blocks": _blocks(hit.query_positions, hit.hit_positions),
    }


def _hit(entry: dict[str, Any]) -> Hit:
    blocks = np.array(entry.pop("blocks"), dtype=np.int32).reshape(-1, 3)
    spans = [np.arange(length, dtype=np.int32) for length in blocks[:, 2]]
    none = [np.zeros(0, np.int32)]
    positions = (
        np.concatenate(none + [start + span for start, span in zip(column, spans, strict=True)])
        for column in (blocks[:, 0], blocks[:, 1])
    )
    return Hit(
        *(entry[name] for name in ("index", "id", "score", "evalue")),
        *(entry[name] for name in ("identity", "pair_identity", "coverage")),
        *positions,
    )


def _blocks(query: NDArray[np.int32], hit: NDArray[np.int32]) -> list[list[int]]:
    """Find the runs in which both positions grow by one."""
    starts = np.flatnonzero(np.concatenate([[True], (np.diff(query) != 1) | (np.diff(hit) != 1)])[: len(query)])
    lengths = np.diff(np.append(starts, len(query)))
    return np.stack([query[starts], hit[starts], lengths], axis=1).tolist()
