"""Making a structure database from structure files, reading only what the cache lacks.

What is read goes into the structure cache that training uses: an entry made here holds secondary structure with the
chains, and serves both. Measured (tests/benchmarks/bench_search.py): 20 s of processor time per 1,000 chains of 205
residues, two thirds of it for secondary structure; 0.1 s when nothing has changed.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from contactlm.data.cache import ReadReport, StructureCache, Task, entry_of
from contactlm.data.files import find_structures
from contactlm.data.store import ChainStore
from contactlm.retrieval.database import StructureDatabase, fingerprint_of, is_database, may_hold
from contactlm.structure.parse import read_backbones
from contactlm.structure.secondary import SECONDARY_VERSION, STATE_LETTERS, load_dssp, secondary_structure
from contactlm.types import DataError

log = logging.getLogger(__name__)
_VERSION_KEY, _STATES_KEY = "secondary_version", "secondary"
_STATE_OF_BYTE = np.zeros(256, dtype=np.uint8)
_STATE_OF_BYTE[np.frombuffer(STATE_LETTERS.encode(), dtype=np.uint8)] = range(len(STATE_LETTERS))


@dataclass
class BuildReport:
    """What a build did."""

    chains: int  # in the database
    residues: int
    files: int  # asked for
    parsed: int  # read now; the others were in the cache
    problems: dict[str, str]  # files left out, with the reason
    unchanged: bool  # the database was there already


class BackboneCache(StructureCache):
    """The structure cache, with secondary structure; options as for :class:`~contactlm.data.cache.StructureCache`."""

    def collect(self, paths: Sequence[Path]) -> tuple[ChainStore, NDArray[np.uint8], ReadReport]:
        """Read all chains of some files, their secondary structure end to end, uint8 (N,), and what happened."""
        keys, problems = self._keys(paths)
        readable = [path for path in paths if path in keys]
        entries, parsed = self._entries([(path, keys[path]) for path in readable])
        report = ReadReport(len(paths), parsed, dict(problems))
        for path, entry in zip(readable, entries, strict=True):
            if entry.meta["problem"] is not None:
                report.problems[str(path)] = entry.meta["problem"]
        text = "".join(states for entry in entries for states in entry.meta.get(_STATES_KEY, ()))
        states = _STATE_OF_BYTE[np.frombuffer(text.encode("ascii"), dtype=np.uint8)]
        return ChainStore.concatenate(entries), states, report

    def _suffices(self, entry: ChainStore) -> bool:
        return entry.meta["problem"] is not None or entry.meta.get(_VERSION_KEY) == SECONDARY_VERSION

    def _task(self) -> Task:
        load_dssp()  # before processes start: each would import torch for it
        return _Reader(self.sequence)


@dataclass(frozen=True)
class _Reader:
    """Reads some files; a file that cannot be read becomes an empty entry with the reason."""

    sequence: str

    def __call__(self, task: Sequence[tuple[int, Path]]) -> list[tuple[int, ChainStore]]:
        return [(i, entry_of(self._read, path)) for i, path in task]

    def _read(self, path: Path) -> ChainStore:
        read = read_backbones(path, self.sequence)
        states = [secondary_structure(backbone, chain.sequence) for chain, backbone in read]
        text = ["".join(STATE_LETTERS[state] for state in each) for each in states]
        meta = {"problem": None, _STATES_KEY: text, _VERSION_KEY: SECONDARY_VERSION}
        return ChainStore.from_chains([chain for chain, _ in read], meta)


def build_database(sources: Sequence[str | Path], out: str | Path, cache: BackboneCache) -> BuildReport:
    """Make a structure database of exactly these files; while it is made an old one stays in place."""
    folder = Path(out).expanduser()
    if not may_hold(folder):
        raise DataError(f"out: {folder} is there, and is no structure database; give another folder, or remove it")
    found = [find_structures(source, "structures") for source in sources]
    for source, files in zip(sources, found, strict=True):
        if files.passed_over:
            log.warning("%s: %s", source, files.remark())
    paths = list(dict.fromkeys(path for files in found for path in files))
    store, states, report = cache.collect(paths)
    if not len(store):
        first = ": ".join(next(iter(report.problems.items()), ("", "no protein chain")))
        raise DataError(f"structures: none of {len(paths)} files has a chain that can be read; the first: {first}")
    names = [str(Path(source).expanduser().absolute()) for source in sources]
    before = _open_or_none(folder)
    made_of = (fingerprint_of(store, states), tuple(names))
    unchanged = before is not None and (before.fingerprint, before.sources) == made_of
    if not unchanged:
        StructureDatabase.write(folder, store, states, names)
    return BuildReport(len(store), len(states), report.files, report.parsed, report.problems, unchanged)


def _open_or_none(folder: Path) -> StructureDatabase | None:
    """The database that lies there, if it is whole."""
    if not is_database(folder):
        return None
    try:
        return StructureDatabase.open(folder)
    except DataError as error:
        log.info("rebuilding the database: %s", error)
        return None
