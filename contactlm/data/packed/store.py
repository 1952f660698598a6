"""Packed sets of chains: many memory-mapped shards that are used as one chain store.

Chains are addressed by shard and index. Only the index is read at the start; a shard is mapped (and, behind a URL,
fetched) when one of its chains is first asked for. Every access compares the checksum of the chains it touches, so that
damage is noticed where it lies and nothing has to be read for nothing.
"""

from __future__ import annotations

import json
import logging
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from contactlm.data.cache import READER_VERSION, ReadReport
from contactlm.data.packed.index import UNCLUSTERED, Ids, PackedIndex, checksum, sequence_key
from contactlm.data.packed.location import LocalFolder, RemoteFolder, folder_at, is_packed
from contactlm.data.packed.manifest import ClusterRule, Manifest, ShardPart, hash_file
from contactlm.data.store import MAGIC, PREAMBLE, ChainStore
from contactlm.homology.relations import ClusterOptions
from contactlm.types import DataError

__all__ = ["PackedSet", "PackedStore", "is_packed", "open_packed"]

log = logging.getLogger(__name__)
OPEN_SHARDS = 1024  # maps a process holds at a time; the system allows some 65,000
Kind = Literal["cb", "tokens"]


class _Mapped(NamedTuple):
    cb: NDArray[np.float32]  # (N, 3)
    tokens: NDArray[np.uint8]  # (N,)


class PackedSet:
    """The shards of a packed set.

    Args:
        folder: Where they lie.
        shards: Their parts, in order.
        index: All chains.
        clusters: The rule of the clusters in the index; None: there are none.
    """

    def __init__(
        self,
        folder: LocalFolder | RemoteFolder,
        shards: Sequence[ShardPart],
        index: PackedIndex,
        clusters: ClusterRule | None = None,
    ) -> None:
        self.folder, self.shards, self.index, self.clusters = folder, shards, index, clusters
        self._first = np.cumsum([0, *(shard.chains for shard in shards)])
        self._maps: OrderedDict[int, _Mapped] = OrderedDict()
        residues = index.starts[self._first] if self._first[-1] == len(index) else None
        if residues is None or np.diff(residues).tolist() != [shard.residues for shard in shards]:
            raise DataError(f"{folder}: index and shards do not belong together; pack or upload the set again")

    def __getstate__(self) -> dict[str, Any]:
        """A process that gets a copy maps the shards itself: a map would travel as all it holds."""
        return {**self.__dict__, "_maps": OrderedDict()}

    def chains_between(
        self, starts: NDArray[np.int64], ends: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """First chain of each span of residues, and the one after its last; int64, as the arguments."""
        return np.searchsorted(self.index.starts[:-1], starts), np.searchsorted(self.index.starts[:-1], ends)

    def residues(self, kind: Kind, start: int, stop: int) -> NDArray[Any]:
        """Residues ``start`` to ``stop`` of all, mapped; a copy only where they lie in several shards.

        Raises:
            DataError: A shard is missing, damaged or cannot be fetched.
        """
        starts = self.index.starts
        first, last = int(starts.searchsorted(start, "right")) - 1, int(starts.searchsorted(stop))
        parts, chain = [], first
        while chain < last:
            shard = int(self._first.searchsorted(chain, "right")) - 1
            end = min(last, int(self._first[shard + 1]))
            before = int(starts[self._first[shard]])
            whole = self._checked(kind, shard, chain, end)
            parts.append(whole[max(0, start - before) : stop - before])
            chain = end
        if not parts:
            return np.zeros((0, 3), np.float32) if kind == "cb" else np.zeros(0, np.uint8)
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _checked(self, kind: Kind, shard: int, first: int, last: int) -> NDArray[Any]:
        """A shard's array, after the chains from ``first`` to before ``last`` were compared with their checksums."""
        array = getattr(self._map(shard), kind)
        if not self._is_intact(kind, array, shard, first, last):
            del self._maps[shard]
            self.folder.renew(self.shards[shard])  # or an error
            array = getattr(self._map(shard), kind)
            if not self._is_intact(kind, array, shard, first, last):
                raise DataError(f"{self.folder}: index and shards do not belong together; pack or upload the set again")
        return array

    def _is_intact(self, kind: Kind, array: NDArray[Any], shard: int, first: int, last: int) -> bool:
        ends = (self.index.starts[first : last + 1] - self.index.starts[self._first[shard]]).tolist()
        digest, known = (checksum, self.index.checksums) if kind == "cb" else (sequence_key, self.index.sequence_keys)
        return [digest(array[begin:end]) for begin, end in pairwise(ends)] == known[first:last].tolist()

    def _map(self, number: int) -> _Mapped:
        """Map a shard; the least used one goes when there are too many."""
        if number in self._maps:
            self._maps.move_to_end(number)
            return self._maps[number]
        part = self.shards[number]
        path = self.folder.path(part)
        mapped = _map_shard(path, part) or _map_shard(self.folder.renew(part), part)
        if mapped is None:
            raise DataError(f"{path}: not a shard of this set; pack or upload the set again")
        if len(self._maps) >= OPEN_SHARDS:
            self._maps.popitem(last=False)
        self._maps[number] = mapped
        return mapped


def _map_shard(path: Path, part: ShardPart) -> _Mapped | None:
    """Map what a chain store holds after its header; None when it is not what the manifest says."""
    raw = np.asarray(np.memmap(path, np.uint8, "r"))  # slices of a plain array cost less
    if len(raw) < PREAMBLE or raw[:8].tobytes() != MAGIC:
        return None
    begin = PREAMBLE + int(raw[16:PREAMBLE].view("<u8")[0]) + 8 * part.chains
    end = begin + 12 * part.residues
    if len(raw) != end + part.residues:
        return None
    return _Mapped(raw[begin:end].view("<f4").reshape(part.residues, 3), raw[end:])


class _PackedArray:
    """What all shards hold of one kind, as one long array that is never put together: it answers slices."""

    def __init__(self, packed: PackedSet, kind: Kind) -> None:
        self._packed, self._kind = packed, kind

    def __len__(self) -> int:
        return int(self._packed.index.starts[-1])

    def __getitem__(self, span: slice) -> NDArray[Any]:
        start, stop, step = span.indices(len(self))
        return self._packed.residues(self._kind, start, stop)[::step]


@dataclass(frozen=True, eq=False)
class PackedStore(ChainStore):
    """A chain store whose residues lie in shards.

    ``cb`` and ``tokens`` only answer slices. What the index knows (lengths, resolved residues, which sequences are
    equal, clusters) opens no shard.

    Attributes:
        packed: The shards.
    """

    packed: PackedSet = field(kw_only=True)

    @classmethod
    def of(cls, packed: PackedSet) -> PackedStore:
        """All chains of a packed set; ``file_of_chain`` in the meta data is an array."""
        arrays = {kind: cast(Any, _PackedArray(packed, kind)) for kind in ("cb", "tokens")}
        return cls(
            ids=cast(Any, packed.index.ids),
            starts=packed.index.starts[:-1],
            lengths=packed.index.lengths.astype(np.int64),
            meta={"file_of_chain": packed.index.files},
            packed=packed,
            **arrays,
        )

    def resolved_counts(self) -> NDArray[np.int64]:
        """Resolved residues of each entry, int64 (n,)."""
        first, last = self.packed.chains_between(self.starts, self.starts + self.lengths)
        return self.packed.index.resolved_before[last] - self.packed.index.resolved_before[first]

    def sequence_keys(self) -> list[bytes]:
        """What is equal for entries of equal sequence and chain lengths, as far as 64 bits a chain tell."""
        first, last = self.packed.chains_between(self.starts, self.starts + self.lengths)
        spans = [slice(*span) for span in zip(first.tolist(), last.tolist(), strict=True)]
        keys, lengths = self.packed.index.sequence_keys, self.packed.index.lengths
        return [keys[span].tobytes() + lengths[span].tobytes() for span in spans]

    def chain_keys(self) -> tuple[list[str], NDArray[np.int64]]:
        """A digest of each of n chains, those of complexes one by one, and the entry of each, int64 (n,), ascending."""
        chains, entries = self.all_chains()
        return [f"{key:016x}" for key in self.packed.index.sequence_keys[chains].tolist()], entries

    def recorded_groups(self, rule: ClusterRule) -> tuple[NDArray[np.int64], ClusterOptions] | None:
        """Clusters that were computed when the set was packed.

        Args:
            rule: Which are asked for.

        Returns:
            The cluster of each of n chains, those of complexes one by one, int64 (n,), and the options they were found
            by. None when none were recorded, or those of another rule.
        """
        recorded = self.packed.clusters
        if recorded is None or not rule.allows(recorded):
            made = "without clusters" if recorded is None else f"with clusters of another rule ({recorded.text()})"
            log.info(
                "%s was packed %s: those asked for (%s) are computed from all its sequences, once; `contactlm pack "
                "--clusters` with the options of the run records them",
                self.packed.folder, made, rule.text(),
            )  # fmt: skip
            return None
        groups = self.packed.index.clusters[self.all_chains()[0]].astype(np.int64)
        if (groups == UNCLUSTERED).any():
            raise DataError(f"{self.packed.folder}: clusters are missing from the index; pack the structures again")
        return groups, recorded.options

    def all_chains(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Number in the set of each of n chains, those of complexes one by one, and the entry of each, int64 (n,)."""
        first, last = self.packed.chains_between(self.starts, self.starts + self.lengths)
        counts = last - first
        entries = np.repeat(np.arange(len(self)), counts)
        return np.arange(counts.sum()) + np.repeat(first - (np.cumsum(counts) - counts), counts), entries

    def select(self, indices: Sequence[int] | NDArray[np.int64]) -> PackedStore:
        """Take some entries, in the order given; nothing is opened."""
        chosen = np.asarray(indices, dtype=np.int64)
        known: Any = self.ids
        taken: Any = known.take(chosen) if isinstance(known, Ids) else [known[i] for i in chosen]
        return replace(
            self,
            ids=taken,
            starts=self.starts[chosen],
            lengths=self.lengths[chosen],
            chain_lengths=None if self.chain_lengths is None else [self.chain_lengths[i] for i in chosen],
        )


def open_packed(location: str, cache_dir: Path, sequence: str, option: str) -> tuple[PackedStore, ReadReport]:
    """Open a packed set; no shard is opened or fetched.

    Args:
        location: Folder or URL of the set.
        cache_dir: The cache folder, where what is fetched is kept.
        sequence: How the run wants sequences, ``"seqres"`` or ``"observed"``.
        option: The option that names it, for messages.

    Returns:
        All its chains, and the structure files that could not be read when it was packed.

    Raises:
        DataError: It is no packed set, incomplete, damaged, cannot be fetched, or was read in another way.
    """
    folder = folder_at(location, cache_dir)
    manifest = folder.manifest()
    if manifest.sequence != sequence:
        raise DataError(
            f"{option}: {folder} was packed with sequence={manifest.sequence}, and this run asks for {sequence}; pack "
            f"the structures with --sequence {sequence}, or set data.sequence to {manifest.sequence}"
        )
    if manifest.reader_version != READER_VERSION:
        log.warning(
            "%s: %s was read by version %d of the reading rules, this contactlm has version %d: its chains may differ "
            "from those of the structure files; pack them again to have the same",
            option, folder, manifest.reader_version, READER_VERSION,
        )  # fmt: skip
    problems = _read_problems(folder, manifest)
    return PackedStore.of(_open_index(folder, manifest)), ReadReport(manifest.files, 0, problems)


def _open_index(folder: LocalFolder | RemoteFolder, manifest: Manifest) -> PackedSet:
    path = _verified(folder, manifest, "index")
    return PackedSet(folder, manifest.shards, PackedIndex.open(path), manifest.clusters)


def _read_problems(folder: LocalFolder | RemoteFolder, manifest: Manifest) -> dict[str, str]:
    return json.loads(_verified(folder, manifest, "problems").read_bytes())


def _verified(folder: LocalFolder | RemoteFolder, manifest: Manifest, name: Literal["index", "problems"]) -> Path:
    part = getattr(manifest, name)
    path = folder.path(part)
    return path if hash_file(path) == part.sha256 else folder.renew(part)
