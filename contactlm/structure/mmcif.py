"""mmCIF format: Biopython's dictionary of the file, made from the few rows that concern the backbone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import repeat
from pathlib import Path
from typing import NamedTuple

from Bio.PDB.MMCIF2Dict import MMCIF2Dict

from contactlm.structure.files import brief, lines_of
from contactlm.structure.residues import BACKBONE, LETTER_OF_NAME, RawChain, RawStructure, Residue, plain_name
from contactlm.types import StructureError

ATOMS = "_atom_site"
FULL_SEQUENCES = "_entity_poly_seq"
MODIFIED_RESIDUES = "_pdbx_struct_mod_residue"

CATEGORIES = frozenset({ATOMS, FULL_SEQUENCES, MODIFIED_RESIDUES})
_ROW_COLUMNS = ("pdbx_PDB_model_num", "label_atom_id", "label_comp_id", "label_asym_id", "label_seq_id")
_INSERTION = "pdbx_PDB_ins_code"


class BackboneLines:
    """Passes on the categories needed, of the first data block, and of the atoms only the first model's backbone.

    Iterating gives lines of a valid, much shorter mmCIF file. Rows that are not written in the usual way (one line,
    no blanks within quotes) are all passed on.
    """

    def __init__(self, lines: Iterable[str], all_models: bool = False) -> None:
        self._source, self._all_models = lines, all_models
        self._category = ""
        self._loop = False  # a loop was opened, and its first column not yet seen
        self._columns: list[str] = []  # of the atoms
        self._indices: tuple[int, ...] | None = None  # of _ROW_COLUMNS among them
        self._model = ""
        self._residue = ("", "", "", "")  # model, number, chain and insertion code of the atom before

    def __iter__(self) -> Iterator[str]:
        in_text = started = False
        for line in self._source:
            if in_text or line.startswith(";"):
                in_text ^= line.startswith(";")  # a text field runs from one such line to the next
                if self._category in CATEGORIES:
                    yield line
            elif self._category == ATOMS and line.startswith(("ATOM ", "HETATM ")):
                if self._wants(line):
                    yield line
            elif (word := line.lstrip()[:5].lower()) == "data_":
                if self._columns:
                    return
                started, self._category = True, ""
                yield "data_\n"
            elif word and not word.startswith("#"):
                if not started:
                    raise ValueError("it does not begin with data_")
                yield from self._other(word, line)

    def _other(self, word: str, line: str) -> Iterator[str]:
        if word == "loop_":
            self._loop, self._category = True, ""
        elif word.startswith("_"):
            yield from self._item(line)
        elif self._category in CATEGORIES:
            yield line

    def _item(self, line: str) -> Iterator[str]:
        self._category, _, column = line.split(None, 1)[0].partition(".")
        if self._category in CATEGORIES:
            if self._loop:
                yield "loop_\n"
            yield line
        if self._category == ATOMS:
            self._columns.append(column)
            self._indices = None
        self._loop = False

    def _wants(self, row: str) -> bool:
        fields = row.split()
        if len(fields) != len(self._columns):
            return True
        if self._indices is None:
            if not set(_ROW_COLUMNS) <= set(self._columns):
                return True
            names = (*_ROW_COLUMNS, _INSERTION if _INSERTION in self._columns else "label_seq_id")
            self._indices = tuple(self._columns.index(name) for name in names)
            self._model = fields[self._indices[0]]
        model, atom, name, chain, number, icode = self._indices
        if fields[model] != self._model and not self._all_models:
            return False
        residue = fields[model], fields[number], fields[chain], fields[icode]
        opens = residue != self._residue
        if opens:
            self._residue = residue
        # The first atom of a residue describes it even if it has no backbone.
        return fields[atom].strip("'\"") in BACKBONE or (opens and fields[name] in LETTER_OF_NAME)


_UNSET = frozenset("?.")


def read_mmcif(path: str | Path, blocks: Iterable[str], all_models: bool = False) -> list[RawStructure]:
    """Read the first model, or all, of the first data block of a file in mmCIF format.

    Chains and residues go by their author ids, as in the PDB format; ``label_seq_id`` gives their position in the full
    sequence.
    """
    try:
        table = BackboneDict(lines_of(blocks), all_models)
        return structures_of(CifTable(table), all_models)
    except StructureError:  # of reading the stream
        raise
    except (ValueError, LookupError, ArithmeticError) as error:
        raise StructureError(path, brief(f"cannot be read as mmCIF: {error}")) from error


class CifTable:
    """The columns of a file, by category and name.

    Args:
        columns: Such as ``_atom_site.Cartn_x``.
    """

    def __init__(self, columns: Mapping[str, list[str]]) -> None:
        self._columns = columns

    def column(self, category: str, *names: str) -> list[str] | None:
        """Return the first of these columns that the file has."""
        return next((self._columns[key] for name in names if (key := f"{category}.{name}") in self._columns), None)

    def rows(self, category: str, *names: str) -> list[tuple[str, ...]]:
        """Return the rows of a table, limited to these columns; none if the file has not all of them."""
        columns = [column for name in names if (column := self.column(category, name)) is not None]
        _require_whole_rows(category, columns)
        return list(zip(*columns, strict=True)) if len(columns) == len(names) else []


class BackboneDict(MMCIF2Dict):
    """Biopython's mmCIF dictionary, made from :class:`~contactlm.structure.mmcif.BackboneLines` only."""

    def __init__(self, lines: Iterable[str], all_models: bool = False) -> None:
        super().__init__(iter(BackboneLines(lines, all_models)))

    def _splitline(self, line: str) -> Iterator[str]:
        # Biopython goes letter by letter, which only quotes and comments need.
        if "'" in line or '"' in line or "#" in line:
            return super()._splitline(line)
        return iter(line.split())


def structures_of(table: CifTable, all_models: bool) -> list[RawStructure]:
    """Make structures of the tables: of the first model, or of all."""
    models: dict[str, list[_Row]] = {}
    for row in _atom_rows(table):
        models.setdefault(row.model, []).append(row)
    structures = []
    for rows in list(models.values()) if all_models else list(models.values())[:1]:
        has_polymers = any(row.label_number not in _UNSET for row in rows)
        assembly = _Assembly(table)
        for row in rows:
            if row.label_number not in _UNSET or not has_polymers:
                assembly.add(row)
        structures.append(assembly.structure())
    return structures


def _require_whole_rows(category: str, columns: list[list[str]]) -> None:
    if len({len(column) for column in columns}) > 1:
        raise ValueError(f"its {category} table ends within a row; the file may be cut")


class _Row(NamedTuple):
    """One atom, each value as the file has it."""

    model: str
    group: str
    atom: str
    altloc: str
    name: str
    label_chain: str
    label_number: str
    entity: str
    chain: str
    number: str
    icode: str
    x: str
    y: str
    z: str
    occupancy: str


# For every value of a row the columns it may come from, of which the first one present counts.
_COLUMNS: dict[str, tuple[str, ...]] = {
    "model": ("pdbx_PDB_model_num",),
    "group": ("group_PDB",),
    "atom": ("label_atom_id", "auth_atom_id"),
    "altloc": ("label_alt_id",),
    "name": ("label_comp_id", "auth_comp_id"),
    "label_chain": ("label_asym_id",),
    "label_number": ("label_seq_id",),
    "entity": ("label_entity_id",),
    "chain": ("auth_asym_id", "label_asym_id"),
    "number": ("auth_seq_id", "label_seq_id"),
    "icode": ("pdbx_PDB_ins_code",),
    "x": ("Cartn_x",),
    "y": ("Cartn_y",),
    "z": ("Cartn_z",),
    "occupancy": ("occupancy",),
}
_NEEDED = ("atom", "name", "chain", "x", "y", "z")


def _atom_rows(table: CifTable) -> list[_Row]:
    """Return the atoms; a value that the table lacks is unset."""
    columns = {field: table.column(ATOMS, *_COLUMNS[field]) for field in _Row._fields}
    present = [column for column in columns.values() if column is not None]
    if not present:
        raise ValueError(f"it has no {ATOMS} table")
    if missing := [_COLUMNS[field][0] for field in _NEEDED if columns[field] is None]:
        raise ValueError(f"its {ATOMS} table lacks {', '.join(missing)}")
    _require_whole_rows(ATOMS, present)
    values = [column or repeat("?", len(present[0])) for column in columns.values()]
    return [_Row(*row) for row in zip(*values, strict=True)]


class _Assembly:
    """Turns the tables into chains."""

    def __init__(self, table: CifTable) -> None:
        self._raw = RawStructure()
        self._parents = _parents(table)
        for (*_, name), parent in self._parents.items():
            self._raw.declare(name, parent)
        self._entities = _entities(table)
        self._starts: dict[str, int] = {}  # by label_asym_id: where its entity begins in the chain's full sequence
        self._residue: Residue | None = None
        self._held: tuple[str, ...] = ()  # what distinguishes this residue from the next
        self._places: dict[tuple[str, str, str], tuple[str, str]] = {}  # author number and code of a label number
        self._renumbered: set[str] = set()  # chains whose label numbers stand for several residues

    def add(self, row: _Row) -> None:
        held = row.label_chain, row.label_number, row.chain, row.number, row.icode, row.name
        if held != self._held or self._residue is None:
            self._held, self._residue = held, self._open(row)
        if row.atom in BACKBONE:
            occupancy = 1.0 if row.occupancy in _UNSET else float(row.occupancy)
            altloc = " " if row.altloc in _UNSET else row.altloc
            position = float(row.x), float(row.y), float(row.z)
            self._residue.add(row.atom, position, altloc, occupancy)

    def _open(self, row: _Row) -> Residue:
        """Open a residue, or return to it."""
        chain_id = row.label_chain if row.chain in _UNSET and row.label_chain not in _UNSET else row.chain
        chain = self._raw.chains.setdefault(chain_id, RawChain())
        number = int(row.label_number if row.number in _UNSET else row.number)
        icode = " " if row.icode in _UNSET else row.icode
        in_polymer = row.label_number not in _UNSET
        key = (int(row.label_number) if in_polymer else number, row.label_chain if in_polymer else "", icode)
        if self._places.setdefault((chain_id, row.label_chain, row.label_number), (row.number, icode))[1] != icode:
            self._renumbered.add(chain_id)
        variants = chain.residues.setdefault(key, [])
        for residue in variants:
            if residue.name == plain_name(row.name):
                return residue
        index = self._index(row, chain) if in_polymer else None
        residue = Residue(
            name=plain_name(row.name),
            number=number,
            icode=icode,
            hetero=row.group == "HETATM",
            declared=index is not None,
            parent=self._parents.get((row.chain, number, icode, row.name), ""),
            index=index,
            position_in_polymer=(row.label_chain, int(row.label_number)) if in_polymer else None,
        )
        variants.append(residue)
        return residue

    def _index(self, row: _Row, chain: RawChain) -> int | None:
        positions = self._entities.get(row.entity, {})
        if row.label_chain not in self._starts:
            self._starts[row.label_chain] = len(chain.full)
            chain.full.extend(name for _, name in positions.values())
        if int(row.label_number) not in positions:
            return None
        return self._starts[row.label_chain] + positions[int(row.label_number)][0]

    def structure(self) -> RawStructure:
        """The chains; where label numbers are author numbers without their insertion codes, they place nothing."""
        for chain_id in self._renumbered:
            for residue in (each for variants in self._raw.chains[chain_id].residues.values() for each in variants):
                residue.index, residue.position_in_polymer = None, None
        return self._raw


def _entities(table: CifTable) -> dict[str, dict[int, tuple[int, str]]]:
    """Return for every entity its residues by ``num``: the 0-based position and the (first) name."""
    entities: dict[str, dict[int, tuple[int, str]]] = {}
    for entity, number, name in table.rows(FULL_SEQUENCES, "entity_id", "num", "mon_id"):
        residues = entities.setdefault(entity, {})
        residues.setdefault(int(number), (len(residues), name))
    return entities


def _parents(table: CifTable) -> dict[tuple[str, int, str, str], str]:
    """Return the parent of every modified residue, by author chain, number, insertion code and name."""
    parents = {}
    columns = ("auth_asym_id", "auth_seq_id", "PDB_ins_code", "label_comp_id", "parent_comp_id")
    for chain, number, icode, name, parent in table.rows(MODIFIED_RESIDUES, *columns):
        if parent in LETTER_OF_NAME and (known := _number(number)) is not None:
            parents[chain, known, " " if icode in _UNSET else icode, name] = parent
    return parents


def _number(text: str) -> int | None:
    """A residue number; None where it is unset or none: then the residue is unknown."""
    try:
        return int(text)
    except ValueError:
        return None
