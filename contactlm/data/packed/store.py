"""Packed sets of chains: a folder of chain stores that are used as one.

A set is a folder. ``manifest.json`` is written last, so a folder without it is not complete::

    manifest.json            which files there are, how they were made, and structure files that could not be read
    chains.npz               what is known of all chains without opening a shard, and their clusters (``COLUMNS``)
    shard-000000.chains …    the chains, each shard a chain store (contactlm.data.store)

A shard is opened (and, behind a URL, fetched) when one of its chains is first asked for; then its checksum is compared.
"""

from __future__ import annotations

import json
import logging
import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from contactlm.atomic import hash_file
from contactlm.data.cache import READER_VERSION, ReadReport
from contactlm.data.packed.location import MANIFEST, Part, SetFolder
from contactlm.data.store import ChainStore
from contactlm.homology.cluster import CLUSTER_VERSION
from contactlm.homology.relations import ClusterOptions
from contactlm.types import DataError

FORMAT = "contactlm packed set"
VERSION = 2
OPEN_SHARDS = 500  # of a process; systems allow about 1,000 open files
UNCLUSTERED = -1
COLUMNS = {  # of n chains
    "ids": "S",  # UTF-8
    "lengths": "<i8",  # residues
    "resolved": "<i8",  # resolved residues
    "known": "<i8",  # those of them that are not X
    "files": "<i8",  # number of the structure file, ascending
    "keys": "<u8",  # 64 bits of BLAKE2b over the tokens: equal for equal sequences
    "clusters": "<i8",  # sequence cluster; UNCLUSTERED where a chain was left out
}
_NO_MATCH = "index and shards do not belong together; pack or upload the set again"
MIN_KNOWN = 0.5
"""Share of a chain's resolved residues that are known (not X), for it to be trained on or scored."""
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ClusterRule:
    """When two chains counted as related, and which entries were clustered; clusters of another rule are others."""

    options: ClusterOptions = ClusterOptions()  # noqa: RUF009 - frozen
    min_length: int = 30
    assembly: str = "chain"
    version: int = CLUSTER_VERSION
    min_known: float = MIN_KNOWN

    def __str__(self) -> str:
        numbers = {**asdict(self), **asdict(self.options)}
        return ", ".join(f"{name} {value}" for name, value in numbers.items() if name != "options")

    def allows(self, other: ClusterRule) -> bool:
        """Whether clusters of another rule are what this one asks for."""
        return self.options.allows(other.options) and replace(other, options=self.options) == self


@dataclass(frozen=True)
class Manifest:
    """What a packed set is: how it was read, how many files went in and which could not be read, and its own files."""

    sequence: str
    reader_version: int
    files: int
    problems: dict[str, str]
    index: Part
    shards: tuple[Part, ...]
    clusters: ClusterRule | None = None  # those recorded

    def to_bytes(self) -> bytes:
        """As JSON."""
        return (json.dumps({"format": FORMAT, "version": VERSION, **asdict(self)}, indent=1) + "\n").encode()

    @classmethod
    def from_bytes(cls, raw: bytes, where: str) -> Manifest:
        """Read what :meth:`to_bytes` gave; a DataError names ``where`` when it is something else or damaged."""
        try:
            about = json.loads(raw)
            if (found := (about.pop("format"), about.pop("version"))) != (FORMAT, VERSION):
                raise ValueError(f"{found[0]!r} of version {found[1]}, not {FORMAT!r} of version {VERSION}")
            if about["clusters"] is not None:
                options = ClusterOptions(**about["clusters"]["options"])
                about["clusters"] = ClusterRule(**{**about["clusters"], "options": options})
            index, *shards = (Part(**part) for part in (about["index"], *about["shards"]))
            for part in (index, *shards):  # whose names become paths
                if not re.fullmatch(r"[0-9a-f]{64} \w[\w.-]*", f"{part.sha256} {part.name}", re.ASCII):
                    raise ValueError(f"part {part.name!r}")
            return cls(**{**about, "index": index, "shards": tuple(shards)})
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"{where}: not a packed set's manifest, or a damaged one ({error!r}); give the folder or URL of a set "
                "written by `contactlm pack`, or pack the structures or upload the set again"
            ) from error


class PackedSet:
    """The shards of a packed set and ``COLUMNS`` of all chains; without a rule no clusters are recorded."""

    def __init__(
        self, folder: SetFolder, shards: Sequence[Part], index: dict[str, NDArray[Any]], rule: ClusterRule | None = None
    ) -> None:
        self.folder, self.shards, self.index, self.rule = folder, shards, index, rule
        self.starts = np.append(0, np.cumsum(index["lengths"]))
        self._chains = np.cumsum([0, *(part.chains for part in shards)]).tolist()  # before each shard
        self._residues = np.cumsum([0, *(part.residues for part in shards)]).tolist()
        if self._chains[-1] != len(index["ids"]) or self.starts[self._chains].tolist() != self._residues:
            raise DataError(f"{folder.name}: {_NO_MATCH}")
        self._open: dict[int, dict[str, NDArray[Any]]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": {}}  # another process opens the shards itself

    def residues(self, kind: str, start: int, length: int) -> NDArray[Any]:
        """``cb`` or ``tokens`` of an entry, which lies in one shard as all chains of a file do; or a DataError."""
        number = bisect_right(self._residues, start, hi=len(self.shards)) - 1
        first = start - self._residues[number]
        return (self._open.get(number) or self._opened(number))[kind][first : first + length]

    def _opened(self, number: int) -> dict[str, NDArray[Any]]:
        part = self.shards[number]
        path = self.folder.path(part)
        try:
            shard = ChainStore.open(path)
        except DataError:
            shard = ChainStore.open(self.folder.renew(part))
        if not np.array_equal(shard.lengths, self.index["lengths"][self._chains[number] : self._chains[number + 1]]):
            raise DataError(f"{self.folder.name}: {_NO_MATCH}")
        if len(self._open) >= OPEN_SHARDS:
            self._open.popitem()
        self._open[number] = {name: np.asarray(getattr(shard, name)) for name in ("cb", "tokens")}  # quicker to slice
        return self._open[number]


@dataclass(frozen=True, eq=False)
class PackedStore(ChainStore):
    """A chain store whose residues lie in shards: ``cb`` and ``tokens`` are empty, ``cb_of`` and ``tokens_of`` are not.

    What the index knows (lengths, resolved residues, which sequences are equal, clusters) opens no shard.
    """

    packed: PackedSet = field(kw_only=True)

    @classmethod
    def of(cls, packed: PackedSet) -> PackedStore:
        """All chains of a packed set; ``file_of_chain`` in the meta data is an array."""
        ids = [name.decode("utf-8", "surrogateescape") for name in packed.index["ids"].tolist()]
        none = (np.zeros((0, 3), np.float32), np.zeros(0, np.uint8))
        meta = {"file_of_chain": packed.index["files"]}
        return cls(ids, packed.starts[:-1], packed.index["lengths"], *none, meta, packed=packed)

    def _residues(self, kind: str, index: int) -> NDArray[Any]:
        return self.packed.residues(kind, int(self.starts[index]), int(self.lengths[index]))

    def _counts(self, kind: str) -> NDArray[np.int64]:
        before = np.append(0, np.cumsum(self.packed.index[kind]))
        first, last = self._spans()
        return before[last] - before[first]

    def sequence_keys(self) -> list[bytes]:
        """What is equal for entries of equal sequence and chain lengths, as far as 64 bits per chain can show."""
        keys, lengths = self.packed.index["keys"], self.packed.index["lengths"]
        return [keys[a:b].tobytes() + lengths[a:b].tobytes() for a, b in zip(*self._spans(), strict=True)]

    def chain_keys(self) -> tuple[list[str], NDArray[np.int64]]:
        """A digest of each of n chains, those of complexes one by one, and the entry of each, int64 (n,), ascending."""
        chains, entries = self.all_chains()
        return [f"{key:016x}" for key in self.packed.index["keys"][chains].tolist()], entries

    def recorded_groups(self, rule: ClusterRule) -> tuple[NDArray[np.int64], ClusterOptions] | None:
        """Cluster of each of n chains, those of complexes one by one, int64 (n,), and the options they were found by.

        None when none were recorded, or those of another rule than what is asked for.
        """
        recorded = self.packed.rule
        if recorded is None or not rule.allows(recorded):
            made = "without clusters" if recorded is None else f"with clusters of another rule ({recorded})"
            log.info(
                f"{self.packed.folder.name} was packed {made}; computing them ({rule}) from all its sequences, "
                "once; `contactlm pack --clusters` with the options of the run stores them"
            )
            return None
        return self.packed.index["clusters"][self.all_chains()[0]], recorded.options

    def _spans(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """First chain of each entry, and the one after its last, int64 (n,)."""
        starts = self.packed.starts[:-1]
        return np.searchsorted(starts, self.starts), np.searchsorted(starts, self.starts + self.lengths)

    def all_chains(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Number in the set of each of n chains, those of complexes one by one, and the entry of each, int64 (n,)."""
        first, last = self._spans()
        counts = last - first
        entries = np.repeat(np.arange(len(self)), counts)
        return np.arange(counts.sum()) + np.repeat(first - (np.cumsum(counts) - counts), counts), entries


def open_packed(location: str, cache_dir: Path, sequence: str, option: str) -> tuple[PackedStore, ReadReport]:
    """Open a packed set at a path or URL; no shard is opened or fetched.

    Returns:
        All its chains, and the structure files that could not be read when it was packed.
    """
    folder = SetFolder(location, cache_dir)
    manifest = Manifest.from_bytes(folder.manifest(), f"{folder.name}/{MANIFEST}")
    if manifest.sequence != sequence:
        raise DataError(
            f"{option}: {folder.name} was packed with sequence={manifest.sequence}, and this run asks for {sequence}; "
            f"pack the structures with --sequence {sequence}, or set data.sequence to {manifest.sequence}"
        )
    if manifest.reader_version != READER_VERSION:
        log.warning(
            f"{option}: {folder.name} was read by version {manifest.reader_version} of the reading rules, this "
            f"contactlm has version {READER_VERSION}: its chains may differ from those of the files; pack them again"
        )
    path = folder.path(manifest.index)
    if hash_file(path) != manifest.index.sha256:
        path = folder.renew(manifest.index)
    with np.load(path) as columns:
        index = {name: columns[name] for name in COLUMNS}
    packed = PackedSet(folder, manifest.shards, index, manifest.clusters)
    return PackedStore.of(packed), ReadReport(manifest.files, 0, manifest.problems)
