"""Search results on disk, so that training searches once and not each epoch.

One small text file a query: a checksum, then JSON with each hit's numbers and its alignment as ungapped blocks
``[start in query, start in hit, pairs]``. Files are written atomically and hold the same whoever writes them, so any
number of processes may share a folder. A damaged file counts as missing.
"""

from __future__ import annotations

import json
import logging
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from contactlm.atomic import atomic_file
from contactlm.retrieval.hit import Hit

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
