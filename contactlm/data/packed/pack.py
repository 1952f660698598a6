"""Packing: structure files in, a packed set out, with the chains of one shard in memory at a time."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from contactlm.atomic import atomic_file, hash_file, remove_temporaries
from contactlm.data.cache import READER_VERSION, ReadReport, parse_task, progress_bar, read_files
from contactlm.data.files import find_structures
from contactlm.data.packed.location import INDEX, MANIFEST, SHARD, Part, SetFolder
from contactlm.data.packed.store import COLUMNS, UNCLUSTERED, VERSION, ClusterRule, Manifest, PackedSet, PackedStore
from contactlm.data.split import name_problems, select_chains
from contactlm.data.store import ChainStore, chain_sequences, join_chains
from contactlm.homology.cluster import cluster_sequences
from contactlm.homology.relations import processors
from contactlm.types import DataError

SHARD_RESIDUES = 4_000_000  # 52 MB: quick to fetch, and few enough files for millions of chains
log = logging.getLogger(__name__)


def pack_structures(
    structures: Sequence[str],
    out: str | Path,
    shard_residues: int = SHARD_RESIDUES,
    sequence: str = "seqres",
    clusters: ClusterRule | None = None,
    workers: int | None = None,
    progress: bool = True,
    cache_dir: Path | None = None,
) -> Manifest:
    """Read structure files and write their chains as a packed set; an interrupted packing of the same settings resumes.

    The chains are those that a data module reads from the same files, in the same order. The same files give the same
    bytes. A file with more than ``shard_residues`` residues, 13 bytes each, has a shard of its own.

    Args:
        structures: Folders, structure files and text files of paths, packed one after the other.
        out: Folder of the set.
        shard_residues: Most residues of a shard.
        sequence: As for :func:`contactlm.read_chains`.
        clusters: Which sequence clusters to compute and record.
        workers: Processes that read; 0 reads in this process, None takes one for each available processor.
        progress: Whether to show a progress bar.
        cache_dir: Where clusters, and what an interrupted clustering found so far, are kept.
    """
    found: list[tuple[Path, str]] = []
    for given in structures:
        paths, folder = find_structures(given, "structures"), Path(given).expanduser()
        if paths.passed_over:
            log.warning("%s: %s", given, paths.remark())
        # names are the same wherever the folder lies
        found += [(path, path.relative_to(folder).as_posix() if folder.is_dir() else str(path)) for path in paths]
    writer = PackedWriter(Path(out).expanduser(), shard_residues, sequence)
    done = writer.resume(found)
    with progress_bar("Packing", "file", len(found), progress, done) as bar:
        items = list(enumerate(path for path, _ in found[done:]))
        work = partial(parse_task, sequence=sequence)
        contents = read_files(items, work, processors() if workers is None else workers)  # in the order of items
        for (path, name), (_, content) in zip(found[done:], contents, strict=True):
            writer.add(name, content.meta["problem"] or content, _mark(path, name))
            bar.update()
    manifest = writer.finish(clusters, cache_dir)
    name_problems(manifest.problems)
    return manifest


class PackedWriter:
    """Writes a packed set as :func:`pack_structures` says: shards as they fill up, and the manifest last."""

    def __init__(self, out: Path, shard_residues: int = SHARD_RESIDUES, sequence: str = "seqres") -> None:
        if shard_residues < 1:
            raise DataError(f"shard_residues is {shard_residues}; it must be at least 1")
        self.out, self.shard_residues, self.sequence = out, shard_residues, sequence
        self._settings = [VERSION, READER_VERSION, sequence, shard_residues]
        self._shards: list[Part] = []  # and what is in them:
        self._indices: list[dict[str, NDArray[Any]]] = []
        self._problems: dict[str, str] = {}
        self._waiting: list[tuple[str, ChainStore | str, str]] = []
        self._files = self._residues = 0

    def resume(self, found: Sequence[tuple[Path, str]]) -> int:
        """Take shards that were made of the same files, given by path and name; how many files these were."""
        self.out.mkdir(parents=True, exist_ok=True)
        remove_temporaries(self.out)
        names = {path.name for path in self.out.iterdir()}
        if MANIFEST in names or (names and SHARD.format(0) not in names):
            what = "holds a packed set already" if MANIFEST in names else "is not empty"
            raise DataError(f"out: {self.out} {what}; give another folder, or delete this one")
        shards = sorted(self.out.glob("shard-*.chains"))
        for path in shards:
            try:
                store = ChainStore.open(path)
            except DataError as error:
                log.warning("%s; it is packed again", error)
                break
            if store.meta.get("settings") != self._settings:
                what = "holds an unfinished packed set of other settings; repeat the command it was begun with"
                raise DataError(f"out: {self.out} {what}, or delete the folder")
            files = found[self._files : self._files + store.meta["files"]]
            if _join(_mark(*file) for file in files) != store.meta["mark"]:
                log.warning("%s: other structure files than before from shard %d on", self.out, len(self._shards))
                break
            self._take(path, store)
        for path in shards[len(self._shards) :]:
            path.unlink()
        return self._files

    def add(self, name: str, content: ChainStore | str, mark: str = "") -> None:
        """Add a structure file's chains, or the reason why it has none; ``mark`` distinguishes it from other files."""
        residues = 0 if isinstance(content, str) else int(content.lengths.sum())
        if self._residues and self._residues + residues > self.shard_residues:
            self._flush()
        self._waiting.append((name, content, mark))
        self._residues += residues

    def finish(self, rule: ClusterRule | None = None, cache_dir: Path | None = None) -> Manifest:
        """Write what is left, the index with the clusters of a rule, and at last the manifest."""
        self._flush()
        index = {name: np.concatenate([each[name] for each in self._indices]) for name in COLUMNS}
        chains, residues = len(index["ids"]), int(index["lengths"].sum())
        if not chains:
            first = "".join(f"; the first: {name}: {reason}" for name, reason in list(self._problems.items())[:1])
            raise DataError(f"nothing to pack: {len(self._problems)} of {self._files} files cannot be read{first}")
        if rule is not None:
            rule = _cluster(PackedSet(SetFolder(str(self.out), self.out), self._shards, index), rule, cache_dir)
        with atomic_file(self.out / INDEX) as handle:
            np.savez(handle, **index)  # type: ignore[arg-type]  # arrays by name
        parts = _part(self.out / INDEX, chains, residues), tuple(self._shards)
        manifest = Manifest(self.sequence, READER_VERSION, self._files, self._problems, *parts, rule)
        with atomic_file(self.out / MANIFEST) as handle:
            handle.write(manifest.to_bytes())
        return manifest

    def _flush(self) -> None:
        """Write a shard of all that waits."""
        if not self._waiting:
            return
        names, contents, marks = zip(*self._waiting, strict=True)
        stores = {i: content for i, content in enumerate(contents) if isinstance(content, ChainStore)}
        meta = {
            "settings": self._settings,
            "files": len(contents),
            "mark": _join(marks),
            "file_of_chain": [i for i, store in stores.items() for _ in store.ids],
            "problems": {name: each for name, each in zip(names, contents, strict=True) if isinstance(each, str)},
        }
        store, path = ChainStore.concatenate(list(stores.values()), meta), self.out / SHARD.format(len(self._shards))
        store.write(path)
        self._take(path, store)
        self._waiting, self._residues = [], 0

    def _take(self, path: Path, store: ChainStore) -> None:
        """Count a shard that lies there whole."""
        keys = [hashlib.blake2b(store.tokens_of(i).tobytes(), digest_size=8).digest() for i in range(len(store))]
        columns = {
            "ids": [name.encode("utf-8", "surrogateescape") for name in store.ids],
            "lengths": store.lengths,
            "resolved": store.resolved_counts(),
            "known": store.known_counts(),
            "files": [self._files + number for number in store.meta["file_of_chain"]],
            "keys": np.frombuffer(b"".join(keys), COLUMNS["keys"]),
            "clusters": np.full(len(store), UNCLUSTERED),
        }
        self._indices.append({name: np.array(columns[name], kind) for name, kind in COLUMNS.items()})
        self._shards.append(_part(path, len(store), len(store.tokens)))
        self._files += store.meta["files"]
        self._problems |= store.meta["problems"]


def _cluster(packed: PackedSet, rule: ClusterRule, cache_dir: Path | None) -> ClusterRule:
    """Record clusters of the chains that a run with these options uses; gives the rule with the program used."""
    every: ChainStore = PackedStore.of(packed)
    entries = join_chains(every) if rule.assembly == "complex" else every
    chosen = cast(PackedStore, select_chains(entries, ReadReport(), rule.min_length).store)
    sequences, _ = chain_sequences(chosen)
    clusters = cluster_sequences(sequences, rule.options, cache_dir, progress=True)
    packed.index["clusters"][chosen.all_chains()[0]] = clusters
    return replace(rule, options=rule.options.chosen(len(set(sequences))))


def _mark(path: Path, name: str) -> str:
    """What identifies a file: name and content."""
    try:
        return f"{name}\t{hash_file(path)}"
    except OSError:
        return name


def _join(marks: Iterable[str]) -> str:
    return hashlib.sha256("\0".join(marks).encode("utf-8", "surrogateescape")).hexdigest()


def _part(path: Path, chains: int, residues: int) -> Part:
    return Part(path.name, path.stat().st_size, hash_file(path), chains, residues)
