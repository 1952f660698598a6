"""What is to be predicted: sequences from FASTA files, chains from structure files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from contactlm.data.cache import StructureCache
from contactlm.data.complexes import join_chains
from contactlm.data.fasta import FastaProblem, iter_fasta
from contactlm.data.files import FoundFiles, existing_path, is_structure_file, search_folder
from contactlm.data.store import ChainStore
from contactlm.types import Chain, DataError

FASTA_SUFFIXES = (".fasta", ".fa", ".faa", ".fas", ".fsa")
KNOWN = f"FASTA ({' '.join(FASTA_SUFFIXES)}) or structure files (.pdb .ent .cif .mmcif), each also .gz"
PREDICTABLE = f"{KNOWN}, or folders of them"


@dataclass
class PredictInputs:
    """Chains to predict, with distinct ids.

    Attributes:
        store: The chains; coordinates are NaN where they came from a FASTA file.
        problems: What could not be read, by file or record, with the reason.
        notes: What was changed or left out, in sentences.
        files: The structure file of each chain that came from one, by id.
    """

    store: ChainStore
    problems: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    files: dict[str, Path] = field(default_factory=dict)


def read_predict_inputs(sources: Sequence[str], cache: StructureCache, join: bool = False) -> PredictInputs:
    """Read FASTA and structure files and folders of both.

    Args:
        sources: Paths; folders are searched recursively.
        cache: Reads structure files.
        join: Take all chains of a structure file as one complex; else chains of equal sequence are taken once.

    Raises:
        DataError: A path that does not exist, is of no known kind, or a folder that holds neither.
    """
    inputs = PredictInputs(ChainStore.from_chains([]))
    paths = _paths(sources, inputs.notes)
    structures = _read_structures([path for path in paths if is_structure_file(path)], cache, inputs, join)
    stores = [structures[path] if is_structure_file(path) else _read_fasta(path, inputs) for path in paths]
    inputs.store = _with_distinct_ids(ChainStore.concatenate(stores), inputs.notes)
    origins = [path for path, store in zip(paths, stores, strict=True) for _ in store.ids]
    inputs.files = {id: path for id, path in zip(inputs.store.ids, origins, strict=True) if is_structure_file(path)}
    return inputs


def structure_paths(sources: Sequence[str]) -> list[Path]:
    """The structure files among the sources; arguments and errors are those of :func:`read_predict_inputs`."""
    return [path for path in _paths(sources, []) if is_structure_file(path)]


def is_fasta_file(path: Path) -> bool:
    """Whether the name ends like a FASTA file's: ``.fasta .fa .faa .fas .fsa``, each also ``.gz``."""
    return path.name.lower().removesuffix(".gz").endswith(FASTA_SUFFIXES)


def _paths(sources: Sequence[str], notes: list[str]) -> list[Path]:
    """All files of the sources; what was passed over is noted."""
    paths: list[Path] = []
    for source in sources:
        found = _files(Path(source).expanduser())
        paths += found
        if found.passed_over:
            notes.append(f"{source}: {found.remark()}")
    return paths


def _is_input(path: Path) -> bool:
    return is_fasta_file(path) or is_structure_file(path)


def _files(source: Path) -> FoundFiles:
    source = existing_path(source, "predict_paths", PREDICTABLE)
    if source.is_dir():
        found = search_folder(source, _is_input)
        if not found:
            beside = f"; {found.remark()}" if found.passed_over else ""
            raise DataError(f"predict_paths: {source} holds no {KNOWN}{beside}")
        return found
    if not _is_input(source):
        raise DataError(f"predict_paths: {source} is of no known kind; give {KNOWN}")
    return FoundFiles([source], {})


def _read_structures(
    paths: list[Path], cache: StructureCache, inputs: PredictInputs, join: bool
) -> dict[Path, ChainStore]:
    """Read structure files in one go; the chains of each."""
    nothing = ChainStore.from_chains([])
    chains = dict.fromkeys(paths, nothing)
    if not paths:
        return chains
    store, report = cache.load(paths)
    inputs.problems.update(report.problems)
    if join:
        store = join_chains(store)
    bounds = np.searchsorted(store.meta["file_of_chain"], np.arange(len(report.read) + 1))
    for path, first, last in zip(report.read, bounds, bounds[1:], strict=False):  # one bound more
        of_file = store.select(np.arange(first, last))
        chains[path] = of_file if join else _each_once(of_file, path, inputs.notes)
    return chains


def _each_once(store: ChainStore, path: Path, notes: list[str]) -> ChainStore:
    """Leave out chains of equal sequence but the one with most resolved residues."""
    resolved = store.resolved_counts()
    best: dict[bytes, int] = {}
    for i in range(len(store)):
        key = store.tokens_of(i).tobytes()
        if key not in best or resolved[i] > resolved[best[key]]:
            best[key] = i
    if len(best) < len(store):
        notes.append(f"{path}: {len(store) - len(best)} chains are copies of another in the file: taken once")
    return store.select(sorted(best.values()))


def _read_fasta(path: Path, inputs: PredictInputs) -> ChainStore:
    chains = []
    try:
        for record in iter_fasta(path):
            if isinstance(record, FastaProblem):
                inputs.problems[f"{path}, record {record.number} ({record.id})"] = record.reason
                continue
            inputs.notes += [f"{path}: {record.id}: {note}" for note in record.notes]
            unknown = np.full((len(record), 3), np.nan, dtype=np.float32)
            chains.append(Chain(record.id, record.sequence, unknown, unknown, np.zeros(len(record), dtype=np.bool_)))
    except DataError as error:
        inputs.problems[str(path)] = str(error).removeprefix(f"{path}: ")
    return ChainStore.from_chains(chains)


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
