"""The index of a packed set: what is known of every chain without opening a shard.

Layout of the file (little endian): magic (8 bytes) | chains n (uint64) | bytes of ids (uint64) | columns | ids, where
the columns are those of ``COLUMNS``, n values each, the widest first. The manifest holds its checksum.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from contactlm.atomic import atomic_file
from contactlm.data.store import ChainStore, received, to_send
from contactlm.types import DataError

MAGIC = b"CLMPIDX1"
COLUMNS = {  # name -> type, in the order of the file
    "sequence_keys": "<u8",
    "id_ends": "<u8",
    "lengths": "<u4",
    "resolved": "<u4",
    "files": "<u4",
    "checksums": "<u4",
    "clusters": "<i4",
}
UNCLUSTERED = -1


class Ids(Sequence[str]):
    """Chain ids as one array of bytes: eight bytes a chain beside the letters, and nothing to copy.

    Args:
        text: The ids end to end, UTF-8, uint8 (bytes,).
        ends: Where each of n ids ends, uint64 (n,).
        chosen: Numbers of those that are in this sequence, int64 (m,); None: all.
    """

    def __init__(self, text: NDArray[np.uint8], ends: NDArray[np.uint64], chosen: NDArray[np.int64] | None) -> None:
        self._text, self._ends, self._chosen = text, ends, chosen

    def __getstate__(self) -> dict[str, Any]:
        return {name: to_send(value) for name, value in self.__dict__.items()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update({name: received(value) for name, value in state.items()})

    def __len__(self) -> int:
        return len(self._ends if self._chosen is None else self._chosen)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"id {index} of {len(self)}")
        number = index % len(self) if self._chosen is None else int(self._chosen[index])
        start = int(self._ends[number - 1]) if number else 0
        return self._text[start : int(self._ends[number])].tobytes().decode()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and len(self) == len(other) and all(a == b for a, b in zip(self, other))  # noqa: B905 - same length

    __hash__ = None  # type: ignore[assignment]  # compared by content, as lists are

    def take(self, indices: NDArray[np.int64]) -> Ids:
        """Take some ids, in the order given."""
        return Ids(self._text, self._ends, indices if self._chosen is None else self._chosen[indices])


@dataclass(frozen=True, eq=False)
class PackedIndex:
    """Columns over the n chains of a packed set, in their order.

    Attributes:
        sequence_keys: Digest of each sequence, uint64 (n,), see :func:`sequence_key`.
        id_ends: Where each id ends in ``id_text``, uint64 (n,).
        lengths: Residues, uint32 (n,).
        resolved: Resolved residues, uint32 (n,).
        files: Number of the structure file, uint32 (n,), ascending.
        checksums: CRC-32 of the coordinates, uint32 (n,).
        clusters: Sequence cluster, int32 (n,); −1 where a chain was not clustered.
        id_text: The ids end to end, UTF-8, uint8.
    """

    sequence_keys: NDArray[np.uint64]
    id_ends: NDArray[np.uint64]
    lengths: NDArray[np.uint32]
    resolved: NDArray[np.uint32]
    files: NDArray[np.uint32]
    checksums: NDArray[np.uint32]
    clusters: NDArray[np.int32]
    id_text: NDArray[np.uint8]

    def __getstate__(self) -> dict[str, Any]:
        return {name: to_send(getattr(self, name)) for name in (*COLUMNS, "id_text")}  # the rest follows from these

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update({name: received(value) for name, value in state.items()})

    def __len__(self) -> int:
        return len(self.lengths)

    @cached_property
    def starts(self) -> NDArray[np.int64]:
        """First residue of each chain, and the number of all residues at the end, int64 (n + 1,)."""
        return np.concatenate([[0], np.cumsum(self.lengths, dtype=np.int64)])

    @cached_property
    def resolved_before(self) -> NDArray[np.int64]:
        """Resolved residues of all chains before each, int64 (n + 1,)."""
        return np.concatenate([[0], np.cumsum(self.resolved, dtype=np.int64)])

    @property
    def ids(self) -> Ids:
        """The chains' ids."""
        return Ids(self.id_text, self.id_ends, None)

    def with_clusters(self, clusters: NDArray[np.int64]) -> PackedIndex:
        """The same chains with other clusters, int64 (n,)."""
        return replace(self, clusters=clusters.astype(np.int32))

    @classmethod
    def of_store(cls, store: ChainStore, files: NDArray[np.int64]) -> PackedIndex:
        """Describe chains.

        Args:
            store: n chains.
            files: The structure file of each, int64 (n,).
        """
        names = [name.encode() for name in store.ids]
        n = len(store)
        return cls(
            np.array([sequence_key(store.tokens_of(i)) for i in range(n)], np.uint64),
            np.cumsum([len(name) for name in names], dtype=np.uint64),
            store.lengths.astype(np.uint32),
            store.resolved_counts().astype(np.uint32),
            files.astype(np.uint32),
            np.array([checksum(store.cb_of(i)) for i in range(n)], np.uint32),
            np.full(n, UNCLUSTERED, np.int32),
            np.frombuffer(b"".join(names), np.uint8),
        )

    @classmethod
    def concatenate(cls, parts: Sequence[PackedIndex]) -> PackedIndex:
        """Lay the indices of consecutive shards end to end."""
        joined = {
            name: np.concatenate([np.zeros(0, kind), *(getattr(part, name) for part in parts)])
            for name, kind in COLUMNS.items()
        }
        before = np.cumsum([0, *(len(part.id_text) for part in parts)], dtype=np.uint64)[:-1]
        joined["id_ends"] += np.repeat(before, [len(part) for part in parts])
        text = np.concatenate([np.zeros(0, np.uint8), *(part.id_text for part in parts)])
        return cls(**joined, id_text=text)

    def write(self, path: Path) -> None:
        """Write the index, whole or not at all.

        Raises:
            OSError: The file cannot be written.
        """
        with atomic_file(path) as handle:
            handle.write(MAGIC + len(self).to_bytes(8, "little") + len(self.id_text).to_bytes(8, "little"))
            for name, kind in COLUMNS.items():
                handle.write(np.ascontiguousarray(getattr(self, name), kind).tobytes())
            handle.write(self.id_text.tobytes())

    @classmethod
    def open(cls, path: Path) -> PackedIndex:
        """Map an index whose checksum was compared before.

        Raises:
            DataError: It is none.
        """
        raw = np.asarray(np.memmap(path, np.uint8, "r"))  # slices of a plain array cost less
        n, letters = (int(value) for value in raw[8:24].view("<u8")) if len(raw) >= 24 else (0, 0)
        expected = 24 + sum(n * np.dtype(kind).itemsize for kind in COLUMNS.values()) + letters
        if raw[:8].tobytes() != MAGIC or len(raw) != expected:
            raise DataError(f"{path}: not the index of a packed set; pack or upload the set again")
        columns, at = {}, 24
        for name, kind in COLUMNS.items():
            end = at + n * np.dtype(kind).itemsize
            columns[name], at = raw[at:end].view(kind), end
        return cls(**columns, id_text=raw[at:])


def sequence_key(tokens: NDArray[np.uint8]) -> int:
    """64 bits of BLAKE2b over a sequence's tokens: equal for equal sequences, and for no others that will be met."""
    return int.from_bytes(hashlib.blake2b(tokens.tobytes(), digest_size=8).digest(), "little")


def checksum(cb: NDArray[np.float32]) -> int:
    """CRC-32 of coordinates as they lie in a shard."""
    return zlib.crc32(np.ascontiguousarray(cb, "<f4").data)
