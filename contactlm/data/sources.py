"""Where structures come from: folders of the user, packed sets, lists of PDB ids, or a synthetic set."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from contactlm.data.cache import ReadReport, StructureCache
from contactlm.data.files import STRUCTURES, FoundFiles, existing_path, find_structures
from contactlm.data.packed.location import is_packed
from contactlm.data.packed.store import open_packed
from contactlm.data.predict_inputs import PREDICTABLE
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

    def check(self) -> None:
        """Complain of what is not there, before anything that takes time.

        Raises:
            DataError: No such folder or list, or one that cannot be read; or a list of ids that is none.
        """
        if self.is_ids:
            self._ids()
        elif "://" not in self.location:
            existing_path(self.location, self.option, STRUCTURES)

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
        paths = self.paths()
        store, report = cache.load(paths)
        report.remark = paths.remark() if isinstance(paths, FoundFiles) else ""
        return store, report

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


def find_sources(data: Mapping[str, Any], cache_folder: Path) -> dict[str, Source]:
    """Where the structures of each role come from.

    Args:
        data: Options of :class:`contactlm.ContactDataModule`.
        cache_folder: Where fetched structures go, unless ``download_dir`` is given.

    Raises:
        DataError: ``synthetic`` beside ``train_dir`` or ``test_dir``.
    """
    dirs, synthetic = {role: data[f"{role}_dir"] for role in ("train", "test")}, data["synthetic"]
    if synthetic is not None:
        if any(dirs.values()):
            raise DataError("synthetic stands for train_dir and test_dir: give one or the other")
        dirs = {role: str(Path(synthetic.folder).expanduser() / role) for role in dirs}
    if any(dirs.values()):
        return {role: Source(f"{role}_dir", location) for role, location in dirs.items() if location}
    folder = Path(data["download_dir"]).expanduser() if data["download_dir"] else cache_folder / "structures"
    ids = {role: data[f"{role}_ids"] for role in ("train", "test")}
    return {role: Source(f"{role}_ids", at, True, folder, data["base_url"]) for role, at in ids.items() if at}


def check_sources(stage: str, data: Mapping[str, Any]) -> None:
    """Complain of data that a command needs and that are not there, before a backbone is looked for.

    Args:
        stage: ``fit``, ``validate``, ``test`` or ``predict``.
        data: Options of :class:`contactlm.ContactDataModule`.

    Raises:
        DataError: Something is not given, or not there.
    """
    if stage == "predict":
        for path in need_predict_paths(data["predict_paths"]):
            existing_path(path, "predict_paths", PREDICTABLE)
        return
    sources = find_sources(data, Path())
    need_role(stage, sources)
    for role in (role for role in sources if data["synthetic"] is None):
        sources[role].check()


def need_role(stage: str, sources: Mapping[str, Source]) -> None:
    """Complain when a stage's structures are not given."""
    if stage in ("fit", "validate") and "train" not in sources:
        raise DataError(f"train_dir is not given, and {stage} needs it (the dev set is a part of it)")
    if stage == "test" and "test" not in sources:
        raise DataError("test_dir is not given, and test needs it")


def need_predict_paths(paths: Sequence[str] | None) -> Sequence[str]:
    """The paths; complain when there are none."""
    if not paths:
        raise DataError("predict_paths is not given: name FASTA or structure files, or folders of them")
    return paths


def _some(names: Sequence[str], most: int = 10) -> str:
    return ", ".join(names[:most]) + (" …" if len(names) > most else "")
