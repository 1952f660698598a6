"""The lines of an mmCIF file that its protein chains come from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from contactlm.structure.residues import BACKBONE, LETTER_OF_NAME

ATOMS = "_atom_site"
FULL_SEQUENCES = "_entity_poly_seq"
MODIFIED_RESIDUES = "_pdbx_struct_mod_residue"

_CATEGORIES = frozenset({ATOMS, FULL_SEQUENCES, MODIFIED_RESIDUES})
_ROW_COLUMNS = ("pdbx_PDB_model_num", "label_atom_id", "label_comp_id", "label_asym_id", "label_seq_id")
_NEEDED = frozenset(_ROW_COLUMNS)


class BackboneLines:
    """Passes on the categories needed, of the first data block, and of the atoms only the first model's backbone.

    Iterating gives lines of a valid, much shorter mmCIF file. Rows that are not written in the usual way (one line,
    no blanks within quotes) are all passed on.

    Args:
        lines: Lines of the file, each with its line end.
    """

    def __init__(self, lines: Iterable[str]) -> None:
        self._source = lines
        self._category = ""
        self._loop = False  # a loop was opened, and its first column not yet seen
        self._columns: list[str] = []  # of the atoms
        self._indices: tuple[int, ...] | None = None  # of _ROW_COLUMNS among them
        self._model = ""
        self._residue = ("", "")  # number and chain of the atom before

    def __iter__(self) -> Iterator[str]:
        in_text = started = False
        for line in self._source:
            if in_text or line.startswith(";"):
                in_text ^= line.startswith(";")  # a text field runs from one such line to the next
                if self._category in _CATEGORIES:
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
        elif self._category in _CATEGORIES:
            yield line

    def _item(self, line: str) -> Iterator[str]:
        self._category, _, column = line.split(None, 1)[0].partition(".")
        if self._category in _CATEGORIES:
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
            if not _NEEDED.issubset(self._columns):
                return True
            self._indices = tuple(self._columns.index(name) for name in _ROW_COLUMNS)
            self._model = fields[self._indices[0]]
        model, atom, name, chain, number = self._indices
        if fields[model] != self._model:
            return False
        opens = fields[number] != self._residue[0] or fields[chain] != self._residue[1]
        if opens:
            self._residue = fields[number], fields[chain]
        # The first atom of a residue tells of it even if it has no backbone.
        return fields[atom].strip("'\"") in BACKBONE or (opens and fields[name] in LETTER_OF_NAME)
