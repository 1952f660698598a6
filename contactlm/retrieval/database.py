"""The structure database: chains with sequence, C-beta and secondary structure, opened by memory map.

A folder of three files. ``manifest.json`` names the other two and is replaced last, so a database is the old one or
the new one, never half of each::

    manifest.json           format and its version, what the database was made of, checksums
    <fingerprint>.chains    a chain store: ids, sequences, C-beta coordinates (see contactlm.data.store)
    <fingerprint>.states    secondary structure, uint8 a residue, in the order of the store

14 bytes a residue: 100,000 chains of 205 residues take 290 MB, and open in 0.1 s of processor time. Nothing here
depends on a language model.
"""

from __future__ import annotations

import hashlib
import json
import re
import shlex
import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from contactlm.atomic import TEMPORARY_NAME, atomic_file
from contactlm.data.store import ChainStore
from contactlm.structure.secondary import Segment, find_segments
from contactlm.types import DataError

FORMAT = "contactlm structure database"
FORMAT_VERSION = 1  # raise it whenever the files' meaning changes: older databases are then refused
MANIFEST = "manifest.json"
LEFT_BEHIND = 24 * 3600.0  # seconds after which a data file that no manifest names is deleted
_DATA_NAME = re.compile(rf"[0-9a-f]{{32}}\.(?:chains|states)|{TEMPORARY_NAME}")


@dataclass(frozen=True, eq=False)
class StructureDatabase:
    """Chains of known structure, memory-mapped. Chains go by their number, 0 … n − 1."""

    path: Path
    store: ChainStore  # ids, sequences and virtual C-beta coordinates of n chains
    states: NDArray[np.uint8]  # (N,) secondary structure of all end to end: 0 loop, 1 helix, 2 strand
    fingerprint: str  # of all that the chains hold; two databases of one fingerprint are the same
    sources: tuple[str, ...] = ()  # folders, files and lists that it was made of

    def __len__(self) -> int:
        return len(self.store)

    def id_of(self, index: int) -> str:
        """Id of a chain: the file's stem, ``_`` and the author chain id, such as ``1abc_A``."""
        return self.store.ids[index]

    def sequence_of(self, index: int) -> str:
        """Sequence of a chain, L letters, unresolved residues included."""
        return self.store.sequence_of(index)

    def cb_of(self, index: int) -> NDArray[np.float32]:
        """Virtual C-beta coordinates of a chain, float32 (L, 3), in Å; NaN where unresolved."""
        return self.store.cb_of(index)

    def states_of(self, index: int) -> NDArray[np.uint8]:
        """Secondary structure of a chain, uint8 (L,): 0 loop, 1 helix, 2 strand."""
        start = self.store.starts[index]
        return self.states[start : start + self.store.lengths[index]]

    def segments_of(self, index: int) -> list[Segment]:
        """Helices (4 residues and more) and strands (2 and more) of a chain, in chain order."""
        return find_segments(self.states_of(index))

    @classmethod
    def open(cls, path: str | Path) -> StructureDatabase:
        """Open a database and check it; what cannot be used is an error with the command that makes it again."""
        folder = Path(path).expanduser()
        about = _read_manifest(folder)
        sources = tuple(about["sources"])
        if not about["chains"]:
            raise DataError(f"{folder}: holds no chain. Make it again: {rebuild_command(folder, sources)}")
        try:
            store = ChainStore.open(folder / about["chains_file"])
            states = _read_states(folder / about["states_file"], about["states_crc32"], len(store.tokens))
        except DataError as error:
            again = rebuild_command(folder, sources)
            raise DataError(f"{folder}: a damaged structure database: {error}. Make it again: {again}") from error
        return cls(folder, store, states, about["fingerprint"], sources)

    @classmethod
    def write(
        cls, path: Path, store: ChainStore, states: NDArray[np.uint8], sources: Sequence[str]
    ) -> StructureDatabase:
        """Write a database, whole or not at all, and open it. What it replaces is deleted last.

        ``states`` is the secondary structure, uint8 (N,), chain after chain.
        """
        kept = ChainStore(store.ids, store.starts, store.lengths, store.cb, store.tokens)
        fingerprint = fingerprint_of(kept, states)
        about = {
            "format": FORMAT,
            "version": FORMAT_VERSION,
            "fingerprint": fingerprint,
            "chains": len(kept),
            "residues": len(states),
            "sources": list(sources),
            "chains_file": f"{fingerprint}.chains",
            "states_file": f"{fingerprint}.states",
            "states_crc32": zlib.crc32(states.tobytes()),
        }
        kept.write(path / str(about["chains_file"]))
        with atomic_file(path / str(about["states_file"])) as handle:
            handle.write(states.tobytes())
        replaced = _data_files(path)
        with atomic_file(path / MANIFEST) as handle:
            handle.write(json.dumps({**about, "crc32": _checksum(about)}, indent=1).encode())
        old = time.time() - LEFT_BEHIND  # younger ones may be of another build
        left = {file for file in path.iterdir() if _DATA_NAME.fullmatch(file.name) and file.stat().st_mtime < old}
        for stale in (replaced | left) - _data_files(path):
            stale.unlink(missing_ok=True)
        return cls.open(path)


def rebuild_command(path: Path, sources: Sequence[str] = ()) -> str:
    """The command that makes a database again."""
    given = " ".join(shlex.quote(source) for source in sources) or "FOLDER"
    return f"contactlm index build --structures {given} --out {shlex.quote(str(path))}"


def fingerprint_of(store: ChainStore, states: NDArray[np.uint8]) -> str:
    """Return a checksum of the database, 32 hexadecimal digits: made of ids, sequences, coordinates and states."""
    digest = hashlib.sha256(json.dumps([FORMAT_VERSION, store.ids, store.lengths.tolist()]).encode())
    for array in (store.tokens, store.cb, states):
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()[:32]


def is_database(path: Path) -> bool:
    """Whether a structure database lies there, of whatever version, damaged or not."""
    return (path / MANIFEST).is_file()


def may_hold(path: Path) -> bool:
    """Whether a database may be written there: nothing lies there, or one that may lack its manifest."""
    if not path.is_dir():
        return not path.exists()
    return is_database(path) or all(_DATA_NAME.fullmatch(file.name) for file in path.iterdir())


def _checksum(about: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(about, sort_keys=True).encode())


def _read_manifest(folder: Path) -> dict[str, Any]:
    again = rebuild_command(folder)
    if not is_database(folder):
        what = "has no manifest.json: no structure database" if folder.is_dir() else "there is no structure database"
        raise DataError(f"{folder}: {what}. Make one: {again}")
    try:
        about = json.loads((folder / MANIFEST).read_bytes())
    except ValueError as error:
        raise DataError(f"{folder / MANIFEST}: damaged ({error}). Make the database again: {again}") from error
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        raise DataError(f"{folder / MANIFEST}: not that of a structure database. Make one: {again}")
    if about.get("version") != FORMAT_VERSION:
        again = rebuild_command(folder, about.get("sources", ()))
        what = f"of format version {about.get('version')}; this contactlm reads version {FORMAT_VERSION}"
        raise DataError(f"{folder}: {what}. Make it again: {again}")
    if about.pop("crc32", None) != _checksum(about):
        raise DataError(f"{folder / MANIFEST}: damaged (its checksum does not fit). Make the database again: {again}")
    return about


def _read_states(path: Path, checksum: int, residues: int) -> NDArray[np.uint8]:
    try:
        states = np.memmap(path, np.uint8, "r")
    except (OSError, ValueError) as error:  # ValueError: an empty file cannot be mapped
        raise DataError(f"{path}: cannot be opened ({error})") from error
    if len(states) != residues or zlib.crc32(states.data) != checksum:
        raise DataError(f"{path}: damaged (its checksum does not fit)")
    return states


def _data_files(folder: Path) -> set[Path]:
    """The files that the manifest names, as far as it can be read."""
    try:
        about = json.loads((folder / MANIFEST).read_bytes())
        return {folder / Path(about[key]).name for key in ("chains_file", "states_file")}
    except (FileNotFoundError, ValueError, LookupError, TypeError):
        return set()
