"""Where structures come from: folders of the user, packed sets, lists of PDB ids, or a synthetic set."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from contactlm.data.cache import ReadReport, StructureCache
from contactlm.data.files import find_structures
from contactlm.data.packed.store import is_packed, open_packed
from contactlm.data.rcsb.download import RCSB, download_structures
from contactlm.data.rcsb.ids import read_id_list
from contactlm.data.selection import name_problems
from contactlm.data.store import ChainStore
from contactlm.shipped import config_folder
from contactlm.types import DataError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Source:
    """Structure files of one option.

    Attributes:
        option: The option that names it, for messages.
        location: A folder, a structure file, a text file of paths or (``is_ids``) of PDB ids, or folder or URL of a
            packed set.
        is_ids: Whether ``location`` lists PDB ids.
        folder: Where the files of PDB ids are kept.
        base_url: Where they are fetched from.
    """

    option: str
    location: str
    is_ids: bool = False
    folder: Path = Path()
    base_url: str = RCSB

    def fetch(self) -> None:
        """Fetch what is missing of a list of PDB ids.

        Raises:
            DataError: The server cannot be reached, or has none of them.
        """
        if not self.is_ids:
            return
        entries = [entry for entry, _ in self._ids()]
        report = download_structures(entries, self.folder, self.base_url)
        if report.fetched:
            log.info("%s: fetched %d structures into %s", self.option, report.fetched, self.folder)
        name_problems(list(report.problems.items()))
        if not report.paths:
            raise DataError(f"{self.option}: {self.location}: none of {len(set(entries))} entries could be fetched")

    def paths(self) -> list[Path]:
        """The structure files; of PDB ids those that were fetched."""
        if not self.is_ids:
            return find_structures(self.location, self.option)
        entries = sorted({entry for entry, _ in self._ids()})
        return [path for path in (self.folder / f"{entry}.cif.gz" for entry in entries) if path.is_file()]

    def load(self, cache: StructureCache) -> tuple[ChainStore, ReadReport]:
        """Read all chains, or open them where they were packed; and what happened to the files.

        Raises:
            DataError: Nothing is there to read, or a packed set cannot be used.
        """
        if not self.is_ids and is_packed(self.location):
            return open_packed(self.location, cache.directory, cache.sequence, self.option)
        return cache.load(self.paths())

    def wanted(self, store: ChainStore) -> ChainStore:
        """Keep the chains that a list of PDB ids names; an id without a chain names all chains of its entry."""
        if not self.is_ids:
            return store
        named = set(self._ids())
        entries = [tuple(name.rsplit("_", 1)) for name in store.ids]
        kept = [i for i, (entry, chain) in enumerate(entries) if {(entry, chain), (entry, None)} & named]
        files = [store.meta["file_of_chain"][i] for i in kept]
        chosen = replace(store.select(kept), meta={**store.meta, "file_of_chain": files})
        there = set(entries)
        missing = sorted(f"{e}_{c}" for e, c in named if c is not None and (e, c) not in there)
        if missing:
            log.warning("%s: %d chains are not in their structures: %s", self.option, len(missing), _some(missing))
        return chosen

    def _ids(self) -> list[tuple[str, str | None]]:
        given = Path(self.location).expanduser()
        shipped = config_folder() / self.location
        return read_id_list(shipped if not given.is_file() and shipped.is_file() else given)


def _some(names: Sequence[str], most: int = 10) -> str:
    return ", ".join(names[:most]) + (" …" if len(names) > most else "")
