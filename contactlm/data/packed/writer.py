"""Writing a packed set, shard after shard, with the chains of one shard in memory at a time."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from contactlm.atomic import atomic_file, is_temporary, remove_temporaries
from contactlm.data.cache import READER_VERSION, ReadReport
from contactlm.data.complexes import chain_sequences, join_chains
from contactlm.data.packed.index import UNCLUSTERED, PackedIndex
from contactlm.data.packed.location import LocalFolder
from contactlm.data.packed.manifest import (
    INDEX,
    JOURNAL,
    MANIFEST,
    PROBLEMS,
    VERSION,
    ClusterRule,
    Manifest,
    Part,
    ShardPart,
)
from contactlm.data.packed.store import PackedSet, PackedStore
from contactlm.data.selection import select_chains
from contactlm.data.store import ChainStore
from contactlm.homology.cluster import cluster_sequences
from contactlm.types import DataError

log = logging.getLogger(__name__)
SHARD_RESIDUES = 4_000_000  # 52 MB: quick to fetch, and few enough files for millions of chains


@dataclass(frozen=True)
class _Done:
    """A shard that lies there whole.

    Attributes:
        shard: Its part.
        files: Structure files in it.
        mark: What tells those files from others.
        index: Its chains, whose files are counted from the first of all.
        problems: Files that could not be read, with the reason.
    """

    shard: ShardPart
    files: int
    mark: str
    index: PackedIndex
    problems: dict[str, str]

    def entry(self) -> dict[str, Any]:
        """What the journal says of it."""
        return {"shard": asdict(self.shard), "files": self.files, "mark": self.mark}


class PackedWriter:
    """Writes a packed set, file after file.

    Shards are written as they fill up. The manifest is written by :meth:`finish`, so a folder without one is not
    complete; a writer of the same settings goes on with what lies there (:meth:`resume`). The same files give the same
    bytes.

    Args:
        out: The folder; made when missing. It must be empty or hold an unfinished packed set of the same settings.
        shard_residues: Most residues of a shard; a single file with more has a shard of its own.
        sequence: How the chains were read.
        cache_dir: The cache folder, where clusters are kept, and what a clustering that was ended had found so far;
            None: they are not kept.

    Raises:
        DataError: The folder holds something else, or cannot be written.
    """

    def __init__(
        self,
        out: Path,
        shard_residues: int = SHARD_RESIDUES,
        sequence: str = "seqres",
        cache_dir: Path | None = None,
    ) -> None:
        if shard_residues < 1:
            raise DataError(f"shard_residues is {shard_residues}; it must be at least 1")
        self.out, self.shard_residues, self.sequence, self.cache_dir = Path(out), shard_residues, sequence, cache_dir
        self._settings = {
            "version": VERSION,
            "reader": READER_VERSION,
            "sequence": sequence,
            "residues": shard_residues,
        }
        self._begun = False
        self._done: list[_Done] = []
        self._waiting: list[tuple[str, ChainStore | str, str]] = []
        self._residues = 0
        with self._writing():
            self.out.mkdir(parents=True, exist_ok=True)
            self._earlier = self._read_journal()

    def resume(self, mark_of: Callable[[int], str], files: int) -> int:
        """Go on with the shards of an earlier writer, as far as they hold the same files.

        Args:
            mark_of: Gives what tells a file from others, by number.
            files: Number of files to pack.

        Returns:
            How many files need not be added again.
        """
        for entry in self._earlier:
            part, first = ShardPart(**entry["shard"]), self.files
            numbers = range(first, first + entry["files"])
            if numbers.stop > files or _join(mark_of(i) for i in numbers) != entry["mark"]:
                log.warning("%s: other structure files than before from shard %d on", self.out, len(self._done))
                break
            try:
                store = ChainStore.open(LocalFolder(self.out).path(part))
            except DataError as error:
                log.warning("%s; it is packed again", error)
                break
            self._done.append(_describe(store, part, entry["files"], entry["mark"], first))
        with self._writing():
            self._begin()
        return self.files

    @property
    def files(self) -> int:
        """Files in finished shards."""
        return sum(done.files for done in self._done)

    @property
    def problems(self) -> dict[str, str]:
        """Files in finished shards that could not be read, with the reason."""
        return {name: reason for done in self._done for name, reason in done.problems.items()}

    def add(self, name: str, content: ChainStore | str, mark: str = "") -> None:
        """Add a structure file's chains.

        Args:
            name: The file, for the list of problems.
            content: Its chains, or the reason why it has none.
            mark: What tells it from other files.

        Raises:
            DataError: The folder cannot be written.
        """
        residues = 0 if isinstance(content, str) else int(content.lengths.sum())
        if self._residues and self._residues + residues > self.shard_residues:
            self._flush()
        self._waiting.append((name, content, mark))
        self._residues += residues

    def finish(self, rule: ClusterRule | None = None) -> Manifest:
        """Write what is left, the index, and at last the manifest.

        Args:
            rule: Which clusters to compute and record; None: none.

        Returns:
            The manifest.

        Raises:
            DataError: There is no chain at all, or the folder cannot be written.
        """
        self._flush()
        problems, files = self.problems, self.files
        index = PackedIndex.concatenate([done.index for done in self._done])
        if not len(index):
            self._remove()
            first = "".join(f"; the first: {name}: {reason}" for name, reason in list(problems.items())[:1])
            raise DataError(f"nothing to pack: {len(problems)} of {files} files cannot be read{first}")
        shards = tuple(done.shard for done in self._done)
        if rule is not None:
            index, rule = _cluster(PackedSet(LocalFolder(self.out), shards, index), rule, self.cache_dir)
        with self._writing():
            index.write(self.out / INDEX)
            _write(self.out / PROBLEMS, json.dumps(problems, indent=1).encode())
            listed, skipped = (Part.of(self.out / name) for name in (INDEX, PROBLEMS))
            manifest = Manifest(self.sequence, READER_VERSION, files, listed, skipped, shards, rule)
            _write(self.out / MANIFEST, manifest.to_bytes())
            (self.out / JOURNAL).unlink()
            for path in set(self.out.glob("shard-*.chains")) - {self.out / shard.name for shard in shards}:
                path.unlink()  # of an earlier packing, of more files
        return manifest

    def _remove(self) -> None:
        """Leave nothing of a set without chains."""
        for path in (self.out / JOURNAL, *(self.out / done.shard.name for done in self._done)):
            path.unlink(missing_ok=True)
        if not any(self.out.iterdir()):
            self.out.rmdir()

    def _flush(self) -> None:
        """Write a shard of all that waits."""
        if not self._waiting:
            return
        stores = [content for _, content, _ in self._waiting if isinstance(content, ChainStore)]
        files = [i for i, (_, c, _) in enumerate(self._waiting) if isinstance(c, ChainStore) for _ in range(len(c))]
        problems = {name: content for name, content, _ in self._waiting if isinstance(content, str)}
        store = ChainStore.concatenate(stores, {"file_of_chain": files, "problems": problems})
        path = self.out / f"shard-{len(self._done):06d}.chains"
        mark = _join(mark for _, _, mark in self._waiting)
        with self._writing():
            if not self._begun:
                self._begin()
            store.write(path)
            part = ShardPart(**asdict(Part.of(path)), chains=len(store), residues=len(store.tokens))
            self._done.append(_describe(store, part, len(self._waiting), mark, self.files))
            self._log(self._done[-1].entry())
        self._waiting, self._residues = [], 0

    def _begin(self) -> None:
        """Begin the journal with what is done, and remove what a killed process may have left half written."""
        remove_temporaries(self.out)
        lines = [self._settings, *(done.entry() for done in self._done)]
        _write(self.out / JOURNAL, "".join(f"{json.dumps(line)}\n" for line in lines).encode())
        self._begun = True

    def _log(self, entry: dict[str, Any]) -> None:
        with (self.out / JOURNAL).open("a", encoding="utf-8") as journal:
            journal.write(f"{json.dumps(entry)}\n")

    def _read_journal(self) -> list[dict[str, Any]]:
        """What an earlier writer of the same settings has done."""
        names = {path.name for path in self.out.iterdir() if not is_temporary(path)}
        if MANIFEST in names:
            raise DataError(
                f"out: {self.out} holds a packed set already; give another folder, or delete this one first"
            )
        if names and JOURNAL not in names:
            raise DataError(f"out: {self.out} is not empty; give a folder of its own")
        lines = (self.out / JOURNAL).read_text(encoding="utf-8").split("\n") if names else []
        entries = [json.loads(line) for line in lines[:-1]]  # a killed process may have left half of the last line
        if entries and entries[0] != self._settings:
            raise DataError(
                f"out: {self.out} holds an unfinished packed set of other settings ({entries[0]}, now "
                f"{self._settings}); repeat the command it was begun with, or delete the folder"
            )
        return entries[1:]

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise DataError(
                f"out: {self.out} cannot be written ({error.strerror or error}); give a folder that can be, with room; "
                "what is packed already is kept, and the same command goes on from there"
            ) from error


def _describe(store: ChainStore, part: ShardPart, files: int, mark: str, first_file: int) -> _Done:
    numbers = first_file + np.asarray(store.meta["file_of_chain"], dtype=np.int64)
    return _Done(part, files, mark, PackedIndex.of_store(store, numbers), store.meta["problems"])


def _cluster(packed: PackedSet, rule: ClusterRule, cache_dir: Path | None) -> tuple[PackedIndex, ClusterRule]:
    """Cluster the chains that a run with these options uses; the others stay without a cluster.

    The rule that comes back says which program it was.
    """
    every = PackedStore.of(packed)
    entries = join_chains(every) if rule.assembly == "complex" else every
    chosen = select_chains(entries, ReadReport(), rule.min_length).store
    if not isinstance(chosen, PackedStore):
        raise TypeError(type(chosen))
    sequences, _ = chain_sequences(chosen)
    numbers, _ = chosen.all_chains()
    clusters = np.full(len(every), UNCLUSTERED, dtype=np.int64)
    clusters[numbers] = cluster_sequences(sequences, rule.options, cache_dir, progress=True)
    return packed.index.with_clusters(clusters), replace(rule, options=rule.options.chosen(len(set(sequences))))


def _join(marks: Iterable[str]) -> str:
    return hashlib.sha256("\0".join(marks).encode("utf-8", "surrogateescape")).hexdigest()


def _write(path: Path, data: bytes) -> None:
    with atomic_file(path) as handle:
        handle.write(data)
