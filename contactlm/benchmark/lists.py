"""Test sets as lists of chains: the shipped ones by name, and a user's own as a CSV file with the same columns."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from contactlm.alphabet import LETTERS
from contactlm.data.rcsb.ids import parse_id
from contactlm.types import DataError

FOLDER = Path(__file__).parent / "lists"
NEEDED = ("pdb_id", "chain")
NAMINGS = ("auth", "label")
DATES = ("submission_date", "release_date")
WHOLE = "all"


@dataclass(frozen=True)
class AskedChain:
    """One chain of a list."""

    id: str  # 1abc_A; with :target behind it where a list has several parts of one chain
    entry: str  # PDB id in lower case
    chain: str  # chain id in the entry
    naming: str = "auth"  # whether that is the author's (auth) or mmCIF's own (label)
    sequence: str | None = None  # the residues that are scored, L letters; None: those of the file
    length: int | None = None  # residues, where the list says
    facts: Mapping[str, str] = field(default_factory=dict)  # all columns of its row

    @property
    def protein(self) -> str:
        """The chain it is (a part of): parts of one chain are not independent."""
        return f"{self.entry}_{self.chain}"

    def belongs(self, subset: str) -> bool:
        """Whether a subset has it: ``all``; its id; a value of a column such as ``role``; or dates ``from..to``."""
        first, dots, last = subset.partition("..")
        if dots:
            return any(first <= self.facts[name] <= last for name in DATES if self.facts.get(name))
        return subset in (WHOLE, self.id, self.facts.get("role"), self.facts.get("identity_stratum"))


@dataclass(frozen=True)
class BenchmarkSet:
    """A list of chains in order, and what is known of it.

    ``age`` is ``older`` or ``newer`` than ESM-2's pretraining data, or empty; ``note`` belongs with every result.
    """

    name: str
    chains: tuple[AskedChain, ...]
    about: str = ""
    source: str = ""
    licence: str = ""
    age: str = ""
    note: str = ""

    def part(self, subset: str) -> BenchmarkSet:
        """The chains of a subset; see :meth:`AskedChain.belongs`. Raises DataError where it has none."""
        chains = tuple(chain for chain in self.chains if chain.belongs(subset))
        if not chains:
            raise DataError(
                f"{self.name}:{subset}: no chain of {self.name} belongs to it; give dates as FROM..TO, a chain's id, "
                "or a value of the column role or identity_stratum"
            )
        return replace(self, name=f"{self.name}:{subset}", chains=chains)


@dataclass(frozen=True)
class PublishedFigure:
    """A figure from the literature: the mean of a score over a subset's chains, under a contract."""

    set: str
    subset: str
    model: str
    method: str
    score: str
    value: float
    contract: str
    source: str


@cache
def shipped_sets() -> dict[str, dict[str, str]]:
    """What is known of each shipped list, by name."""
    return yaml.safe_load((FOLDER / "sets.yaml").read_text(encoding="utf-8"))


@cache
def published_figures() -> tuple[PublishedFigure, ...]:
    """All published figures that are shipped."""
    rows = _rows(FOLDER / "published.csv", ("set", "subset", "contract", "value"))
    return tuple(PublishedFigure(**{**row, "value": float(row["value"])}) for _, row in rows)


def load_set(name: str) -> BenchmarkSet:
    """Read a shipped test set by its name, or a CSV file; ``NAME:SUBSET`` takes a part.

    A file has the columns ``pdb_id`` and ``chain`` and, where they are known, ``sequence``, ``length``,
    ``chain_naming`` (``auth`` or ``label``), ``target``, ``role``, ``submission_date``, ``release_date`` and
    ``scorable`` (0: it is not).
    """
    known = shipped_sets()
    own = Path(name).expanduser()
    if name in known:
        return BenchmarkSet(name, read_list(FOLDER / f"{name}.csv"), **known[name])
    if own.is_file():
        return BenchmarkSet(own.stem, read_list(own), about="a list of your own", source=name)
    base, colon, subset = name.rpartition(":")
    if colon and (base in known or Path(base).expanduser().is_file()):
        return load_set(base).part(subset)
    raise DataError(
        f"{name}: no such test set; give one of {', '.join([*known, 'smoke'])}, or a CSV file with the columns "
        f"{', '.join(NEEDED)}"
    )


def read_list(path: Path) -> tuple[AskedChain, ...]:
    """Read a CSV file of chains; see :func:`load_set`."""
    rows = _rows(path, NEEDED)
    if not rows:
        raise DataError(f"{path}: the list has no chain")
    parts = Counter((row["pdb_id"].lower(), row["chain"]) for _, row in rows)
    chains = [_asked(f"{path}, line {line}", row, parts) for line, row in rows]
    repeated = [name for name, count in Counter(chain.id for chain in chains).items() if count > 1]
    if repeated:
        raise DataError(f"{path}: {repeated[0]} is listed twice; name its parts in a column target")
    return tuple(chains)


def _asked(where: str, row: Mapping[str, str], parts: Counter[tuple[str, str]]) -> AskedChain:
    naming, sequence = row.get("chain_naming") or "auth", row.get("sequence", "").upper() or None
    try:
        entry = parse_id(row["pdb_id"])[0]
    except DataError as error:
        raise DataError(f"{where}: pdb_id: {error}") from error
    if not row["chain"]:
        raise DataError(f"{where}: chain is empty; name the chain of {entry}")
    if naming not in NAMINGS:
        raise DataError(f"{where}: chain_naming is {naming!r}; give {' or '.join(NAMINGS)}")
    if odd := sorted(set(sequence or "") - set(LETTERS)):
        raise DataError(f"{where}: sequence has {odd[0]!r}; allowed are {LETTERS}")
    length = row.get("length") or (str(len(sequence)) if sequence else "")
    if length and not length.isdigit():
        raise DataError(f"{where}: length is {length!r}; give a number of residues")
    several = parts[row["pdb_id"].lower(), row["chain"]] > 1 and row.get("target")
    name = f"{entry}_{row['chain']}" + (f":{row['target']}" if several else "")
    return AskedChain(name, entry, row["chain"], naming, sequence, int(length) if length else None, dict(row))


def _rows(path: Path, needed: Sequence[str]) -> list[tuple[int, dict[str, Any]]]:
    """Rows of a CSV file with their line numbers."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as handle:
            reader = csv.DictReader(handle)
            rows = [(reader.line_num, {k: (v or "").strip() for k, v in row.items() if k}) for row in reader]
            columns = reader.fieldnames or ()
    except (UnicodeDecodeError, csv.Error, AttributeError) as error:
        raise DataError(f"{path}: cannot be read as a CSV file ({error})") from error
    if missing := [name for name in needed if name not in columns]:
        raise DataError(f"{path}: the list lacks the columns {', '.join(missing)}; its first line must name them")
    return rows
