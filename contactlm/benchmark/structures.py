"""Structure files of a test set: of a folder, fetched from RCSB once, or made of synthetic proteins."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from contactlm.atomic import atomic_path, write_csv
from contactlm.benchmark.lists import AskedChain, BenchmarkSet, read_list
from contactlm.data.files import find_structures
from contactlm.data.rcsb.download import CHECK, RCSB, download_structures
from contactlm.data.rcsb.ids import parse_id
from contactlm.data.synthetic import SyntheticOptions, write_synthetic
from contactlm.structure.files import lines_of, read_blocks, split_name
from contactlm.structure.mmcif import ATOMS, BackboneDict, CifTable
from contactlm.structure.parse import read_chains
from contactlm.types import DataError, StructureError

MISSING_FILE = "missing_entries.txt"
SMOKE = "smoke"
PROTEINS = 8  # of it
_HEADER_LINES = 200  # within which a file says which entry it is


@dataclass(frozen=True)
class StructureSource:
    """Where structures come from."""

    cache: Path  # folder of what was fetched
    folder: Path | None = None  # of the user, in place of fetching; its files are called as their entries are
    offline: bool = False
    base_url: str = RCSB  # server and path before /1ABC.cif.gz


@dataclass
class FoundFiles:
    """Files by stem in lower case, of several of one stem mmCIF first; and by entry why there is none."""

    files: dict[str, Path]
    problems: dict[str, str] = field(default_factory=dict)

    def of(self, asked: AskedChain) -> Path | None:
        """The file of a chain: one of its own (``1abc_A.pdb``), or that of its entry."""
        stems = (f"{asked.entry}_{asked.chain}".lower(), asked.entry, f"pdb{asked.entry}")
        return next((self.files[stem] for stem in stems if stem in self.files), None)


def obtain_structures(chains: Sequence[AskedChain], source: StructureSource, out: Path) -> FoundFiles:
    """Find the files of some chains, and fetch what is missing unless a folder or offline work was asked for.

    Where the server cannot be reached, the missing entries are listed in the folder ``out``.
    """
    if source.folder is not None:
        return FoundFiles(_by_stem(find_structures(source.folder, "structures")))
    entries = sorted({chain.entry for chain in chains})
    missing = [entry for entry in entries if not (source.cache / f"{entry}.cif.gz").is_file()]
    if source.offline:
        reason = f"not fetched yet: run once without --offline, or put {{}}.cif.gz into {source.cache}"
        files = {entry: source.cache / f"{entry}.cif.gz" for entry in entries if entry not in missing}
        return FoundFiles(files, {entry: reason.format(entry) for entry in missing})
    try:
        report = download_structures(entries, source.cache, source.base_url, remedy=CHECK)
    except DataError as error:
        missing = [entry for entry in entries if not (source.cache / f"{entry}.cif.gz").is_file()]
        with atomic_path(out / MISSING_FILE) as temporary:
            temporary.write_text("\n".join(missing) + "\n", encoding="utf-8")
        raise DataError(
            f"{len(missing)} of {len(entries)} structures are missing and cannot be fetched ({error}). Their ids are "
            f"in {out / MISSING_FILE}: fetch these as mmCIF elsewhere and give their folder with --structures, or "
            "score what is there with --offline"
        ) from error
    problems = {
        entry: f"{reason}; obsolete entries are not available there" if "404" in reason else reason
        for entry, reason in report.problems.items()
    }
    return FoundFiles(_by_stem(report.paths), problems)


def _by_stem(paths: Sequence[Path]) -> dict[str, Path]:
    files: dict[str, Path] = {}
    for path in paths:
        stem, kind, _ = split_name(path)
        if stem.lower() not in files or kind == "mmcif":
            files[stem.lower()] = path
    return files


def entry_in(path: Path) -> str | None:
    """The PDB id that a file gives itself, in lower case; None where it gives none."""
    kind = split_name(path)[1]
    if kind == "bcif":
        return None
    is_pdb = kind == "pdb"
    with closing(read_blocks(path)) as blocks:
        for _, line in zip(range(_HEADER_LINES), lines_of(blocks), strict=False):
            word = line[62:66] if is_pdb and line.startswith("HEADER") else ""
            if not is_pdb and (match := re.match(r"(?:data_|_entry\.id\s+)(\S+)", line, re.IGNORECASE)):
                word = match[1]
            try:
                return parse_id(word)[0]
            except DataError:
                continue
    return None


def author_chains(path: Path) -> dict[str, str]:
    """The author's chain id of each of mmCIF's own (label) ids. Raises StructureError for other files."""
    if split_name(path)[1] != "mmcif":
        raise StructureError(path, "the list names the chain by its label id, which only mmCIF files have")
    try:
        with closing(read_blocks(path)) as blocks:
            table = CifTable(BackboneDict(lines_of(blocks)))
            rows = table.rows(ATOMS, "label_asym_id", "auth_asym_id", "label_seq_id")
    except (ValueError, LookupError) as error:
        raise StructureError(path, f"cannot be read as mmCIF: {error}") from error
    return {label: author for label, author, number in reversed(rows) if number not in "?."}


def smoke_set(folder: Path) -> tuple[BenchmarkSet, Path]:
    """Write a test set of synthetic proteins into a folder; the set, and the folder of its structures."""
    test = write_synthetic(SyntheticOptions(str(folder / "made"), n_train=1, n_test=PROTEINS, seed=22))[1]
    rows = []
    for number, path in enumerate(sorted(test.glob("*.pdb"))):
        entry = f"9s{number:02d}"  # files are called as entries are
        with atomic_path(folder / "structures" / f"{entry}.pdb") as temporary:
            temporary.write_bytes(path.read_bytes())
        [chain] = read_chains(path)
        rows.append({"pdb_id": entry, "chain": "A", "length": len(chain), "sequence": chain.sequence})
    write_csv(folder / "smoke.csv", rows)
    about = "SYNTHETIC proteins: scores say nothing about real ones"
    asked = BenchmarkSet(SMOKE, read_list(folder / "smoke.csv"), about, "contactlm.data.synthetic")
    return asked, folder / "structures"
