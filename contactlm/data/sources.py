"""Where chains come from: folders of structures, packed sets, lists of PDB ids, synthetic sets, files to predict."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from contactlm.data.cache import ReadReport, StructureCache
from contactlm.data.complexes import assemble, read_pairs
from contactlm.data.fasta import FastaProblem, iter_fasta
from contactlm.data.files import (
    PREDICTABLE,
    STRUCTURES,
    existing_path,
    find_predictable,
    find_structures,
)
from contactlm.data.packed.location import is_packed
from contactlm.data.packed.store import open_packed
from contactlm.data.rcsb.download import RCSB, download_structures
from contactlm.data.rcsb.ids import read_id_list
from contactlm.data.split import best_copies, name_problems
from contactlm.data.store import ChainStore, join_chains
from contactlm.shipped import config_folder
from contactlm.structure.files import is_structure_name
from contactlm.types import Chain, DataError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Source:
    """Structure files of one option."""

    option: str  # that names it, for messages
    location: str  # folder, structure file, text file of paths or of PDB ids; folder or URL of a packed set
    is_ids: bool = False  # whether it lists PDB ids
    folder: Path = Path()  # where the files of PDB ids are kept
    base_url: str = RCSB  # where they are fetched from

    def check(self) -> None:
        """Raise :class:`DataError` for what is not there or no list of ids, before anything that takes time."""
        if self.is_ids:
            self._ids()
        elif "://" not in self.location:
            existing_path(self.location, self.option, STRUCTURES)

    def fetch(self) -> None:
        """Fetch what is missing of a list of PDB ids."""
        if not self.is_ids:
            return
        entries = [entry for entry, _ in self._ids()]
        report = download_structures(entries, self.folder, self.base_url)
        if report.fetched:
            log.info("%s: fetched %d structures into %s", self.option, report.fetched, self.folder)
        name_problems(report.problems)
        if not report.paths:
            raise DataError(f"{self.option}: {self.location}: none of {len(set(entries))} entries could be fetched")

    def load(self, cache: StructureCache) -> tuple[ChainStore, ReadReport]:
        """Read all chains, or open them where they were packed; and what happened to the files."""
        if self.is_ids:
            entries = sorted({entry for entry, _ in self._ids()})
            fetched = [self.folder / f"{entry}.cif.gz" for entry in entries]
            return cache.load([path for path in fetched if path.is_file()])
        if is_packed(self.location):
            if cache.atom != "cb":
                raise DataError(
                    f"{self.option}: {self.location}: packed sets hold C-betas, and contact.atom is {cache.atom}; give "
                    "the structure files"
                )
            return open_packed(self.location, cache.directory, cache.sequence, self.option)
        paths = find_structures(self.location, self.option)
        store, report = cache.load(paths)
        report.remark = paths.remark()
        return store, report

    def wanted(self, store: ChainStore) -> ChainStore:
        """Keep the chains that a list of PDB ids names; an id without a chain names all chains of its entry."""
        if not self.is_ids:
            return store
        named = set(self._ids())
        entries = [tuple(name.rsplit("_", 1)) for name in store.ids]
        kept = [i for i, (entry, chain) in enumerate(entries) if {(entry, chain), (entry, None)} & named]
        files = [store.meta["file_of_chain"][i] for i in kept]
        missing = sorted(f"{e}_{c}" for e, c in named - set(entries) if c is not None)
        if missing:
            listed = ", ".join(missing[:10]) + (" …" if len(missing) > 10 else "")
            log.warning("%s: %d chains are not in their structures: %s", self.option, len(missing), listed)
        return replace(store.select(kept), meta={**store.meta, "file_of_chain": files})

    def _ids(self) -> list[tuple[str, str | None]]:
        given = Path(self.location).expanduser()
        shipped = config_folder() / self.location
        return read_id_list(shipped if not given.is_file() and shipped.is_file() else given)


def find_sources(data: Mapping[str, Any], cache_folder: Path) -> dict[str, Source]:
    """Where the structures of each role come from, by options of the data module; what is fetched goes to the cache."""
    dirs, synthetic = {role: data[f"{role}_dir"] for role in ("train", "test")}, data["synthetic"]
    if synthetic is not None:
        if any(dirs.values()):
            raise DataError("synthetic stands for train_dir and test_dir: give one or the other")
        dirs = {role: str(Path(synthetic.folder).expanduser() / role) for role in dirs}
    if any(dirs.values()):
        return {role: Source(f"{role}_dir", _shipped(location)) for role, location in dirs.items() if location}
    folder = Path(data["download_dir"]).expanduser() if data["download_dir"] else cache_folder / "structures"
    ids = {role: data[f"{role}_ids"] for role in ("train", "test")}
    return {role: Source(f"{role}_ids", at, True, folder, data["base_url"]) for role, at in ids.items() if at}


def _shipped(location: str) -> str:
    """A folder as it is given, or, where nothing lies there, the one of that name that comes with the package."""
    shipped = config_folder() / location
    return str(shipped) if not Path(location).expanduser().exists() and shipped.is_dir() else location


def check_sources(stage: str, data: Mapping[str, Any]) -> None:
    """Raise :class:`DataError` for data that a stage needs and lacks, before a backbone is looked for."""
    if stage == "predict":
        for path in need_predict_paths(data["predict_paths"]):
            existing_path(path, "predict_paths", PREDICTABLE)
        return
    sources = find_sources(data, Path())
    need_role(stage, sources)
    for source in sources.values() if data["synthetic"] is None else ():
        source.check()


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


@dataclass
class PredictInputs:
    """Chains to predict, with distinct ids."""

    store: ChainStore
    problems: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    files: dict[str, Path] = field(default_factory=dict)


def read_predict_inputs(
    sources: Sequence[str], cache: StructureCache, join: bool = False, pairs: str | None = None
) -> PredictInputs:
    """Read FASTA and structure files and folders of both; with a table of pairs, the complexes that it names."""
    inputs = PredictInputs(ChainStore.from_chains([]))
    paths: list[Path] = []
    for source in sources:
        found = find_predictable(source)
        paths += found
        if found.passed_over:
            inputs.notes.append(f"{source}: {found.remark()}")
    structures = _read_structures([path for path in paths if is_structure_name(path)], cache, inputs, join)
    stores = [structures[path] if is_structure_name(path) else _read_fasta(path, inputs) for path in paths]
    inputs.store = _with_distinct_ids(ChainStore.concatenate(stores), inputs.notes)
    origins = [path for path, store in zip(paths, stores, strict=True) for _ in store.ids]
    inputs.files = {id: path for id, path in zip(inputs.store.ids, origins, strict=True) if is_structure_name(path)}
    if pairs is not None:  # which need no common frame: they are predicted from their sequences
        store, problems = assemble(inputs.store, read_pairs(pairs), keeps_coordinates=False)
        inputs.store, inputs.files = _with_distinct_ids(store, inputs.notes), {}
        inputs.problems |= problems
    return inputs


def _read_structures(
    paths: list[Path], cache: StructureCache, inputs: PredictInputs, join: bool
) -> dict[Path, ChainStore]:
    """Read structure files in one go; the chains of each."""
    chains = dict.fromkeys(paths, ChainStore.from_chains([]))
    if not paths:
        return chains
    store, report = cache.load(paths)
    inputs.problems.update(report.problems)
    store = join_chains(store) if join else store
    copies: dict[str, int] = {}
    bounds = np.searchsorted(store.meta["file_of_chain"], np.arange(len(report.read) + 1))
    for path, first, last in zip(report.read, bounds, bounds[1:], strict=False):  # one bound more
        chains[path] = of_file = store.select(np.arange(first, last))
        if not join:  # of chains of equal sequence the one with most resolved residues
            chains[path] = each_once = of_file.select(best_copies(of_file.sequence_keys(), of_file.resolved_counts()))
            if len(each_once) < len(of_file):
                copies[str(path)] = len(of_file) - len(each_once)
    if copies:
        first, *others = copies
        where = first if not others else f"{len(copies)} files ({first}, …)"
        inputs.notes.append(f"{where}: {sum(copies.values())} duplicate chains skipped")
    return chains


def _read_fasta(path: Path, inputs: PredictInputs) -> ChainStore:
    chains, lengths = [], []
    try:
        for record in iter_fasta(path):
            if isinstance(record, FastaProblem):
                inputs.problems[f"{path}, record {record.number} ({record.id})"] = record.reason
                continue
            inputs.notes += [f"{path}: {record.id}: {note}" for note in record.notes]
            unknown = np.full((len(record), 3), np.nan, dtype=np.float32)
            chains.append(Chain(record.id, record.sequence, unknown, unknown, np.zeros(len(record), dtype=np.bool_)))
            lengths.append(record.chain_lengths or (len(record),))
    except DataError as error:
        inputs.problems[str(path)] = str(error).removeprefix(f"{path}: ")
    store = ChainStore.from_chains(chains)
    return replace(store, chain_lengths=lengths) if any(len(each) > 1 for each in lengths) else store


def _with_distinct_ids(store: ChainStore, notes: list[str]) -> ChainStore:
    """Names become file names: the second protein of one name gets ``_2``, and so on."""
    seen: Counter[str] = Counter()
    ids = []
    for name in store.ids:
        distinct = name
        while seen[distinct]:
            seen[name] += 1
            distinct = f"{name}_{seen[name]}"
        seen[distinct] += 1
        if distinct != name:
            notes.append(f"{name}: another protein has this name: called {distinct}")
        ids.append(distinct)
    return replace(store, ids=ids)
