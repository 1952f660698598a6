"""PDB format: Biopython's parser, shown only the backbone and extended with MODRES and SEQRES."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from Bio.PDB.PDBExceptions import PDBConstructionException
from Bio.PDB.PDBParser import PDBParser
from Bio.PDB.StructureBuilder import StructureBuilder
from numpy.typing import NDArray

from contactlm.structure.numbering import decode_number, from_columns, to_columns
from contactlm.structure.residues import BACKBONE, LETTER_OF_NAME, AtomSite, RawChain, RawStructure, Residue
from contactlm.types import StructureError

# " CA " is the proper column; some programs write "CA  ". Calcium is told apart by its residue, not by its column.
_BACKBONE_COLUMNS = frozenset(f"{' ' * shift}{atom}".ljust(4) for atom in BACKBONE for shift in range(5 - len(atom)))
_OVERFLOW = "*" * 8  # what Fortran prints for a number too long for its field
_LINE_LENGTH = 54  # up to the end of the coordinates


def read_pdb(path: str | Path, text: str) -> RawStructure:
    """Read the first model of a file in PDB format.

    Args:
        path: Named in errors.
        text: The content.

    Raises:
        StructureError: A line that concerns the backbone cannot be read.
    """
    try:
        return BackboneParser().get_structure("", io.StringIO(text, newline=None))
    except ValueError as error:
        raise StructureError(path, str(error)) from error


class BackboneParser(PDBParser):
    """Biopython's PDB parser, shown only the first model's backbone and extended with MODRES and SEQRES.

    Most of the time of a plain parse goes to side chains, waters and headers; here none of those lines reach
    Biopython. ``get_structure`` returns a :class:`~contactlm.structure.residues.RawStructure`.
    """

    structure_builder: BackboneBuilder

    def __init__(self) -> None:
        super().__init__(PERMISSIVE=True, QUIET=True, structure_builder=BackboneBuilder())
        self._lines = _BackboneLines()

    def get_structure(self, id: str, file: Any) -> RawStructure:
        """Parse an open text file.

        Raises:
            ValueError: The file is empty or a line cannot be read; the message names the line.
        """
        try:
            return super().get_structure(id, file)
        except PDBConstructionException as error:
            position = self.structure_builder.line_counter - 1
            field = self._lines.kept[position][30:54]
            raise ValueError(f"line {self._lines.numbers[position]}: no coordinates in {field!r}") from error

    def _get_header(self, lines: list[str]) -> tuple[dict[str, Any], list[str]]:
        self._lines = selected = _BackboneLines()
        selected.select(lines)
        builder = self.structure_builder
        builder.last_ter = selected.last_ter
        for line in selected.header:
            if line.startswith("MODRES"):
                builder.add_modres(line)
            else:
                builder.seqres.setdefault(line[11:12].strip(), []).extend(line[19:70].split())
        return {}, selected.kept


class _BackboneLines:
    """The few lines of a file that are worth parsing."""

    def __init__(self) -> None:
        self.header: list[str] = []  # SEQRES and MODRES
        self.kept: list[str] = []  # atoms
        self.numbers: list[int] = []  # where they stand in the file
        self.last_ter: dict[str, int] = {}  # by chain: how many atom lines precede its last TER

    def select(self, lines: list[str]) -> None:
        """Sort out the first model's N, CA and C.

        A residue of a known name that begins with another atom keeps that line too: it is in the sequence even if it
        has no backbone.
        """
        place, models, plain = "", 0, True
        for number, line in enumerate(lines, 1):
            record = line[:6]
            if record == "ATOM  " or record == "HETATM":
                opens = line[17:27] != place
                if opens:
                    place = line[17:27]
                    plain = _is_decimal(line[22:26], number)
                if line[12:16] in _BACKBONE_COLUMNS or (opens and line[17:20].strip() in LETTER_OF_NAME):
                    self.kept.append(_checked(line, number, plain))
                    self.numbers.append(number)
            elif record == "SEQRES" or record == "MODRES":
                self.header.append(line)
            elif record[:3] == "TER":
                self.last_ter[place[4:5].strip()] = len(self.kept)
            elif record[:5] == "MODEL":
                models += 1
                if models > 1:
                    break
            elif record == "ENDMDL":
                break


def _is_decimal(columns: str, number: int) -> bool:
    try:
        return -1000 < decode_number(columns) < 10000
    except ValueError:
        raise ValueError(f"line {number}: {columns!r} is no residue number") from None


def _checked(line: str, number: int, plain: bool) -> str:
    """Return the line as Biopython takes it, or raise when it is cut."""
    if len(line.rstrip()) < _LINE_LENGTH:
        raise ValueError(f"line {number} ends within the coordinates: {line.rstrip()!r}; the file may be cut")
    if not plain:
        line = line[:22] + to_columns(decode_number(line[22:26]), line[26]) + line[27:]
    return line.replace(_OVERFLOW, "     nan") if _OVERFLOW in line else line


class BackboneBuilder(StructureBuilder):
    """Collects what Biopython's parser reads, where Biopython would build its own tree.

    That tree loses residues: of two types at one place without letters, of hetero groups given twice. Here all
    that is seen is kept side by side, to be judged later.
    """

    def __init__(self) -> None:
        super().__init__()
        self.init_structure("")

    def init_structure(self, structure_id: str) -> None:
        """Start anew."""
        self.raw = RawStructure()
        self.seqres: dict[str, list[str]] = {}
        self.last_ter: dict[str, int] = {}
        self._parents: dict[tuple[str, int, str, str], str] = {}
        self._chain_id = ""
        self._residue: Residue | None = None

    def add_modres(self, line: str) -> None:
        """Note the parent of one modified residue, by chain, number, insertion code and name."""
        name, chain_id, parent = line[12:15].strip(), line[16:17].strip(), line[24:27].strip()
        if parent not in LETTER_OF_NAME:
            return  # of a nucleotide, or left empty
        try:
            number = decode_number(line[18:22])
        except ValueError:
            return
        self._parents[chain_id, number, line[22:23] or " ", name] = parent
        self.raw.parents[name] = parent

    def init_model(self, model_id: int, serial_num: int | None = None) -> None:
        """Do nothing: the parser passes the first model only."""

    def init_seg(self, segid: str) -> None:
        """Do nothing: segment ids are not used."""

    def init_chain(self, chain_id: str) -> None:
        """Open a chain, or return to it."""
        self._chain_id = chain_id.strip()
        if self._chain_id not in self.raw.chains:
            self.raw.chains[self._chain_id] = RawChain(full=self.seqres.get(self._chain_id, []))

    def init_residue(self, resname: str, field: str, resseq: int, icode: str) -> None:
        """Open a residue, or return to it."""
        chain = self.raw.chains[self._chain_id]
        number, icode = place = from_columns(resseq, icode)
        self._residue = chain.residue(resname, place)
        if self._residue is None:
            last_ter = self.last_ter.get(self._chain_id)
            self._residue = Residue(
                name=resname,
                number=number,
                icode=icode,
                hetero=field != " ",
                trailing=last_ter is not None and self.line_counter > last_ter,
                parent=self._parents.get((self._chain_id, number, icode, resname), ""),
            )
            chain.places.setdefault(place, []).append(self._residue)

    def init_atom(
        self,
        name: str,
        coord: NDArray,
        b_factor: float | None,
        occupancy: float | None,
        altloc: str,
        fullname: str,
        *unused: Any,
        **also_unused: Any,
    ) -> None:
        """Keep a backbone atom; one without occupancy counts as fully occupied."""
        if name in BACKBONE and self._residue is not None:
            self._residue.add(name, AtomSite(coord.tolist(), 1.0 if occupancy is None else occupancy, altloc))

    def get_structure(self) -> RawStructure:
        """Return what was collected."""
        return self.raw
