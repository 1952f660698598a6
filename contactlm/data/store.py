"""The chain store: many chains in one memory-mapped file, 13 bytes a residue.

A store holds sequences and virtual C-beta coordinates, never L x L labels: those follow from the coordinates, on
the device, for the current crop. Layout of the file (little endian)::

    magic (8 bytes) | CRC-32 of all that follows (uint64) | header length (uint64)
    header (JSON) | spaces up to a multiple of 64 bytes | payload
    payload = lengths int64 (n,) | cb float32 (N, 3) | tokens uint8 (N,)        N residues in n chains

The checksum is compared whenever a store is opened: a damaged file is an error, never a wrong chain.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from contactlm.alphabet import UNKNOWN_LETTER, decode, encode
from contactlm.atomic import atomic_file
from contactlm.types import Chain, DataError

MAGIC = b"CLMSTOR1"
ALIGNMENT = 64
PREAMBLE = 24


@dataclass(frozen=True, eq=False)
class ChainStore:
    """Chains that share two long arrays. Selecting chains copies no residue, and neither does pickling mapped ones.

    An entry is a chain; in a store of complexes it is several chains end to end.
    """

    ids: list[str]  # of n entries
    starts: NDArray[np.int64]  # (n,), first residue of each in `cb` and `tokens`
    lengths: NDArray[np.int64]  # (n,), residues of each
    cb: NDArray[np.float32]  # (N, 3), virtual C-beta coordinates, in Å; NaN where unresolved
    tokens: NDArray[np.uint8]  # (N,), residues as numbers of the ESM alphabet
    meta: dict[str, Any] = field(default_factory=dict)  # whatever the writer noted; plain JSON values
    chain_lengths: list[tuple[int, ...]] | None = None  # of complexes: residues of each entry's chains

    def __len__(self) -> int:
        return len(self.ids)

    def __getstate__(self) -> dict[str, Any]:
        return {name: to_send(value) for name, value in self.__dict__.items()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update({name: received(value) for name, value in state.items()})

    def tokens_of(self, index: int) -> NDArray[np.uint8]:
        """Tokens of one chain, uint8 (L,), without ``<cls>`` and ``<eos>``."""
        return self._residues("tokens", index)

    def cb_of(self, index: int) -> NDArray[np.float32]:
        """Virtual C-beta coordinates of one chain, float32 (L, 3), in Å."""
        return self._residues("cb", index)

    def _residues(self, kind: str, index: int) -> NDArray[Any]:
        start = self.starts[index]
        return getattr(self, kind)[start : start + self.lengths[index]]

    def sequence_of(self, index: int) -> str:
        """Sequence of one chain, L letters."""
        return decode(self.tokens_of(index))

    def sequence_keys(self) -> list[bytes]:
        """What is equal for entries of equal sequence, one of each."""
        return [self.tokens_of(i).tobytes() for i in range(len(self))]

    def chain_keys(self) -> tuple[list[str], NDArray[np.int64]]:
        """What is equal for chains of equal sequence, and the entry of each, as :func:`chain_sequences` counts them."""
        return chain_sequences(self)

    def resolved_counts(self) -> NDArray[np.int64]:
        """Resolved residues of each chain, int64 (n,)."""
        return self._counts("resolved")

    def known_counts(self) -> NDArray[np.int64]:
        """Resolved residues of each chain that are not X, int64 (n,)."""
        return self._counts("known")

    def _counts(self, kind: str) -> NDArray[np.int64]:
        marked = np.isfinite(self.cb[:, 0])
        if kind == "known":
            marked &= self.tokens != encode(UNKNOWN_LETTER)[0]
        before = np.concatenate([[0], np.cumsum(marked, dtype=np.int64)])
        return before[self.starts + self.lengths] - before[self.starts]

    def select(self, indices: Sequence[int] | NDArray[np.int64]) -> ChainStore:
        """Take some chains, in the order given; coordinates and tokens stay where they are."""
        chosen = np.asarray(indices, dtype=np.int64)
        return replace(
            self,
            ids=[self.ids[i] for i in chosen],
            starts=self.starts[chosen],
            lengths=self.lengths[chosen],
            chain_lengths=None if self.chain_lengths is None else [self.chain_lengths[i] for i in chosen],
        )

    @classmethod
    def from_chains(cls, chains: Sequence[Chain], meta: dict[str, Any] | None = None) -> ChainStore:
        """Lay chains end to end in memory."""
        return cls._lay([(chain.id, chain.cb, encode(chain.sequence)) for chain in chains], meta)

    @classmethod
    def concatenate(cls, stores: Sequence[ChainStore], meta: dict[str, Any] | None = None) -> ChainStore:
        """Lay the chains of several stores end to end in memory.

        One store of complexes among them makes the result one; a chain is then a complex of its own.
        """
        entries = [(store, i) for store in stores for i in range(len(store))]
        laid = cls._lay([(store.ids[i], store.cb_of(i), store.tokens_of(i)) for store, i in entries], meta)
        if all(store.chain_lengths is None for store in stores):
            return laid
        each = [s.chain_lengths[i] if s.chain_lengths is not None else (int(s.lengths[i]),) for s, i in entries]
        return replace(laid, chain_lengths=each)

    @classmethod
    def _lay(
        cls, entries: Sequence[tuple[str, NDArray[np.float32], NDArray[np.uint8]]], meta: dict[str, Any] | None
    ) -> ChainStore:
        lengths = np.array([len(tokens) for _, _, tokens in entries], dtype=np.int64)
        cb = np.concatenate([np.zeros((0, 3), np.float32), *(cb for _, cb, _ in entries)])
        tokens = np.concatenate([np.zeros(0, np.uint8), *(tokens for _, _, tokens in entries)])
        return cls([id for id, _, _ in entries], np.cumsum(lengths) - lengths, lengths, cb, tokens, meta or {})

    def write(self, path: Path) -> None:
        """Write the store to a file, whole or not at all."""
        compact = ChainStore.concatenate([self], self.meta)
        about = {"n": len(self), "residues": len(compact.tokens), "ids": self.ids, "meta": self.meta}
        if self.chain_lengths is not None:
            about["chain_lengths"] = self.chain_lengths
        header = json.dumps(about).encode()
        header += b" " * (-(PREAMBLE + len(header)) % ALIGNMENT)
        parts = [len(header).to_bytes(8, "little"), header]
        for array, kind in ((compact.lengths, "<i8"), (compact.cb, "<f4"), (compact.tokens, "u1")):
            parts.append(np.ascontiguousarray(array, kind).tobytes())
        checksum = 0
        for part in parts:
            checksum = zlib.crc32(part, checksum)
        with atomic_file(path) as handle:
            handle.write(MAGIC + checksum.to_bytes(8, "little"))
            handle.writelines(parts)

    @classmethod
    def open(cls, path: Path, memory_map: bool = True) -> ChainStore:
        """Open a store by memory map, or read it into memory; a DataError where it is missing, cut short or damaged."""
        try:
            raw = np.memmap(path, np.uint8, "r") if memory_map else np.fromfile(path, np.uint8)
        except (OSError, ValueError) as error:  # ValueError: an empty file cannot be mapped
            raise DataError(f"{path}: cannot be opened as a chain store ({error})") from error
        if len(raw) < PREAMBLE or raw[:8].tobytes() != MAGIC:
            raise DataError(f"{path}: not a chain store of this version; delete it to have it rebuilt")
        checksum, header_length = (int(value) for value in raw[8:PREAMBLE].view("<u8"))
        if zlib.crc32(raw[16:].data) != checksum:
            raise DataError(f"{path}: damaged chain store (its checksum does not fit); delete it to have it rebuilt")
        header = json.loads(raw[PREAMBLE : PREAMBLE + header_length].tobytes())
        n, residues = header["n"], header["residues"]
        ends = np.cumsum([PREAMBLE + header_length, 8 * n, 12 * residues])
        lengths = raw[ends[0] : ends[1]].view("<i8")
        chain_lengths = header.get("chain_lengths")
        return cls(
            ids=header["ids"],
            starts=np.cumsum(lengths) - lengths,
            lengths=lengths,
            cb=raw[ends[1] : ends[2]].view("<f4").reshape(residues, 3),
            tokens=raw[ends[2] :],
            meta=header["meta"],
            chain_lengths=None if chain_lengths is None else [tuple(each) for each in chain_lengths],
        )


def join_chains(store: ChainStore) -> ChainStore:
    """Make one entry of the chains of each file, which lie end to end in file order; no residue is copied.

    An entry is called as its file's stem, or as its chain when it has only one. ``file_of_chain`` in the meta data is
    the file of each chain, then of each entry.
    """
    files = np.asarray(store.meta["file_of_chain"], dtype=np.int64)
    is_first = np.diff(files, prepend=-1) != 0
    if (store.starts[1:] != (store.starts + store.lengths)[:-1])[~is_first[1:]].any():
        raise ValueError("chains of one file do not lie end to end: join them before any is left out")
    first = np.flatnonzero(is_first)
    spans = [slice(start, stop) for start, stop in zip(first, np.append(first, len(store))[1:], strict=True)]
    return replace(  # of the kind of store that came
        store,
        ids=[_name(store.ids[span]) for span in spans],
        starts=store.starts[first],
        lengths=np.array([store.lengths[span].sum() for span in spans], dtype=np.int64),
        meta={**store.meta, "file_of_chain": files[first].tolist()},
        chain_lengths=[tuple(store.lengths[span].tolist()) for span in spans],
    )


def chain_sequences(store: ChainStore) -> tuple[list[str], NDArray[np.int64]]:
    """Sequences of all n chains, those of complexes one by one, and the entry of each, int64 (n,), ascending."""
    sequences = [store.sequence_of(i) for i in range(len(store))]
    if store.chain_lengths is None:
        return sequences, np.arange(len(store))
    ends = [list(accumulate(lengths)) for lengths in store.chain_lengths]
    chains = [s[a:b] for s, stops in zip(sequences, ends, strict=True) for a, b in pairwise([0, *stops])]
    return chains, np.repeat(np.arange(len(store)), [len(stops) for stops in ends])


def _name(ids: Sequence[str]) -> str:
    """What the ids of one file's chains share before the last ``_``: ``1abc`` of ``1abc_A`` and ``1abc_B``."""
    return ids[0] if len(ids) == 1 else os.path.commonprefix(ids).rpartition("_")[0]  # noqa: RUF071 - no paths


class MappedArray(NamedTuple):
    """Where the values of a memory-mapped array lie: what travels to loader processes in its place.

    Forked processes share their parent's maps; others (macOS, Windows, Python 3.14) would get a copy by pickle.
    """

    path: str
    size: int
    offset: int
    shape: tuple[int, ...]
    dtype: str

    def open(self) -> NDArray[Any]:
        """Map the values; :class:`DataError` where the file is gone, or another one."""
        try:
            raw = np.memmap(self.path, np.uint8, "r")
        except (OSError, ValueError) as error:
            raise DataError(f"{self.path}: went away while it was in use ({error}); start again") from error
        if len(raw) != self.size:
            raise DataError(f"{self.path}: {len(raw)} bytes, and {self.size} when it was opened; start again")
        length = int(np.prod(self.shape)) * np.dtype(self.dtype).itemsize
        return raw[self.offset : self.offset + length].view(self.dtype).reshape(self.shape)


def to_send(array: Any) -> Any:
    """Where an array's values lie, if that is a file that is there; else what was given."""
    if not isinstance(array, np.ndarray) or not array.flags.c_contiguous or not array.size:
        return array
    root = array
    while isinstance(root.base, np.ndarray):
        root = root.base
    if not isinstance(root, np.memmap) or root.filename is None:
        return array
    path = Path(root.filename)
    if not path.is_file() or path.stat().st_size != root.nbytes + root.offset:
        return array
    offset = root.offset + array.ctypes.data - root.ctypes.data
    return MappedArray(str(path), path.stat().st_size, offset, array.shape, array.dtype.str)


def received(value: Any) -> Any:
    """The array that :func:`to_send` was given."""
    return value.open() if isinstance(value, MappedArray) else value
