"""PDB format: Biopython's parser, shown only the backbone and extended with MODRES and SEQRES."""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from Bio.PDB.PDBExceptions import PDBConstructionException
from Bio.PDB.PDBParser import PDBParser
from Bio.PDB.StructureBuilder import StructureBuilder
from numpy.typing import NDArray

from contactlm.structure.files import lines_of, read_blocks
from contactlm.structure.pdb_columns import ChainParts, decode_number, from_columns, to_columns
from contactlm.structure.residues import (
    BACKBONE,
    LETTER_OF_NAME,
    RawChain,
    RawStructure,
    Residue,
    ResidueKey,
    plain_name,
)
from contactlm.types import StructureError

_LINE_LENGTH = 54  # up to the end of the coordinates
_OVERFLOW = "*" * 8  # what Fortran prints for a number too long for its field
_NO_NUMBER = "nan".rjust(8)

# Lines whose atom name is N, CA or C, in whichever of its four columns it begins; a few other names pass as well.
# CB is wanted for residues that have nothing else: they are in the sequence, though unresolved.
_NAME = r"......[ NC][ NCAB]{3}"
_RECORDS = re.compile(rf"\n(?:ATOM  {_NAME}|HETATM{_NAME}|SEQRES|MODRES|TER|MODEL|ENDMDL|END(?= *\n))[^\n]*")


def read_pdb(path: str | Path, blocks: Iterable[str]) -> Iterator[RawStructure]:
    """Read the models of a file in PDB format, one at a time; what follows the last one asked for is not read."""
    try:
        # Most of the time of a plain parse goes to lines that are not needed: here Biopython does not see them.
        for records in _models(blocks):
            if not records:
                raise StructureError(path, "it has no ATOM records, as the PDB format does")
            text = "".join(records)[1:].replace(_OVERFLOW, _NO_NUMBER)
            yield BackboneParser().get_structure("", io.StringIO(text))
    except _LineError as error:
        raise StructureError(path, f"line {_line_number(path, error.line)}: {error}") from error


def _models(blocks: Iterable[str]) -> Iterator[list[str]]:
    """The records needed of each model, each after its line end, those that precede the first model with every one.

    Where END records stand between models in place of MODEL and ENDMDL, the next model begins with the atom that the
    first began with.
    """
    last = first_atom = ""
    opened = ended = complete = False
    header, records = list[str](), list[str]()
    for block in blocks:
        for record in _RECORDS.findall("\n" + block):
            kind = record[1:5]
            is_atom = kind == "ATOM" or kind == "HETA"
            if is_atom and not ended:  # nearly always
                first_atom = first_atom or record[13:28]
                records.append(record)
                continue
            opens, closes = kind == "MODE", record.startswith("\nENDMDL")
            if first_atom and ((is_atom and record[13:28] == first_atom) or (opens and opened) or closes):
                complete = True
                yield records
                first_atom, opened, records = "", False, list(header)
            opened |= opens
            if is_atom:
                first_atom, ended = first_atom or record[13:28], False
            elif kind[:3] == "END":
                ended = not closes
                continue
            elif not (first_atom or complete or opens):
                header.append(record)
            records.append(record)
        if not block.isspace():
            last = block.rstrip()
    _refuse_cut(last[last.rfind("\n") + 1 :])  # also when it is none of the lines needed
    if first_atom or not complete:
        yield records


def _line_number(path: str | Path, wanted: str) -> int:
    """Where a line stands in the file, from 1."""
    lines = enumerate(lines_of(read_blocks(path)), start=1)
    return next(i for i, line in lines if line.rstrip().replace(_OVERFLOW, _NO_NUMBER) == wanted.rstrip())


class _LineError(ValueError):
    """A line that cannot be read."""

    def __init__(self, line: str, reason: str) -> None:
        super().__init__(reason)
        self.line = line


class BackboneParser(PDBParser):
    """Biopython's PDB parser, extended with MODRES and SEQRES, of the first model's backbone.

    ``get_structure`` returns a :class:`~contactlm.structure.residues.RawStructure`.
    """

    structure_builder: BackboneBuilder

    def __init__(self) -> None:
        super().__init__(PERMISSIVE=True, QUIET=True, structure_builder=BackboneBuilder())
        self._original: list[str] = []  # the atom lines as they stand in the file

    def get_structure(self, id: str, file: Any) -> RawStructure:
        """Parse an open text file."""
        try:
            return super().get_structure(id, file)
        except PDBConstructionException as error:
            line = self._original[self.structure_builder.line_counter - 1]
            raise _LineError(line, f"no coordinates in {line[30:54]!r}") from error

    def _get_header(self, lines: list[str]) -> tuple[dict[str, Any], list[str]]:
        """Read MODRES, SEQRES and TER; return the atom lines of the first model."""
        builder = self.structure_builder
        atoms: list[str] = []
        self._original = []
        parts = builder.parts = ChainParts(lines)
        residue, models, decimal, chain_id, usual = "", 0, True, "", None
        keep, keep_original = atoms.append, self._original.append
        for at, line in enumerate(lines):
            record = line[:6]
            if record == "ATOM  " or record == "HETATM":
                if line[17:27] != residue:
                    residue = line[17:27]
                    decimal = _is_decimal(line)
                    chain_id = parts.open(at)
                    usual = f" {chain_id}" if decimal else None
                elif line[13:15] == "CB":
                    continue
                keep_original(line)
                keep(line if line[20:22] == usual and len(line) > _LINE_LENGTH else _adapted(line, decimal, chain_id))
            elif record == "SEQRES":
                builder.seqres.setdefault(line[11:12].strip(), []).extend(line[19:70].split())
            elif record == "MODRES":
                builder.add_modres(line)
            elif record[:3] == "TER":
                letter = line[21:22] if len(line.rstrip()) > 21 else residue[4:5]
                builder.last_ter[parts.end(letter).strip()] = len(atoms)
            elif record[:5] == "MODEL" and models == 0:
                models = 1
            else:  # the end of the first model
                break
        return {}, atoms


def _is_decimal(line: str) -> bool:
    """Tell a decimal residue number from a hybrid-36 one."""
    columns = line[22:26]
    try:
        int(columns)
    except ValueError:
        try:
            decode_number(columns)
        except ValueError:
            raise _LineError(line, f"{columns!r} is no residue number") from None
        return False
    return True


def _adapted(line: str, decimal: bool, chain_id: str) -> str:
    """Return an atom line as Biopython takes it."""
    if len(line) <= _LINE_LENGTH:
        _refuse_cut(line)
    if line[20] != " " or line[21:22] != chain_id:
        line = f"{line[:17]}{plain_name(line[17:21]):<4}"[:20] + f" {chain_id}{line[22:]}"
    if not decimal:
        line = line[:22] + to_columns(decode_number(line[22:26]), line[26]) + line[27:]
    return line


def _refuse_cut(line: str) -> None:
    if line.startswith(("ATOM  ", "HETATM")) and len(line.rstrip("\n")) < _LINE_LENGTH:
        raise _LineError(line, f"it ends before its coordinates do, {line.rstrip()!r}: the file may be cut")


class BackboneBuilder(StructureBuilder):
    """Collects what Biopython's parser reads, where Biopython would build its own tree.

    That tree loses residues: of two types of one number without letters, of hetero groups given twice. Here all
    that is seen is kept side by side, to be judged later.
    """

    def __init__(self) -> None:
        super().__init__()
        self.init_structure("")

    def init_structure(self, structure_id: str) -> None:
        """Start anew."""
        self.raw = RawStructure()
        self.parts = ChainParts([])
        self.seqres: dict[str, list[str]] = {}
        self.last_ter: dict[str, int] = {}
        self._parents: dict[tuple[str, int, str, str], str] = {}
        self._chain_id = ""
        self._residues: dict[ResidueKey, list[Residue]] = {}
        self._end = sys.maxsize
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
        self.raw.declare(name, parent)

    def init_model(self, model_id: int, serial_num: int | None = None) -> None:
        """Do nothing: the parser passes the first model only."""

    def init_seg(self, segid: str) -> None:
        """Do nothing: segment ids are not used."""

    def init_chain(self, chain_id: str) -> None:
        """Open a chain, or return to it."""
        chain_id = chain_id.strip()
        self._chain_id = letter = self.parts.letter(chain_id)
        if chain_id not in self.raw.chains:
            self.raw.chains[chain_id] = RawChain(full=self.seqres.get(letter, []))
        self._residues = self.raw.chains[chain_id].residues
        self._end = self.last_ter.get(chain_id, sys.maxsize)

    def init_residue(self, resname: str, field: str, resseq: int, icode: str) -> None:
        """Open a residue, or return to it."""
        number, icode = from_columns(resseq, icode)
        variants = self._residues.setdefault((number, "", icode), [])
        for residue in variants:
            if residue.name == resname:
                self._residue = residue
                return
        parent = self._parents.get((self._chain_id, number, icode, resname), "") if self._parents else ""
        self._residue = Residue(resname, number, icode, field != " ", self.line_counter > self._end, parent)
        variants.append(self._residue)

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
            self._residue.add(name, coord, altloc, 1.0 if occupancy is None else occupancy)

    def get_structure(self) -> RawStructure:
        """Return what was collected, chains of one letter by names that tell them apart."""
        names = self.parts.names()
        for chain_id in [name for name in names if name in self.raw.chains]:
            self.raw.chains[chain_id].author = self.parts.letter(chain_id)
        self.raw.chains = {names.get(chain_id, chain_id): chain for chain_id, chain in self.raw.chains.items()}
        return self.raw
