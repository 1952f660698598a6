"""Residue names, and what a structure file says of the residues of a chain."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from Bio.Data.PDBData import protein_letters_3to1, protein_letters_3to1_extended
from numpy.typing import NDArray

from contactlm.alphabet import UNKNOWN_LETTER

BLANK = " "  # the alternate location of most atoms: none

Position = NDArray | tuple[float, float, float]

BACKBONE = ("N", "CA", "C")
_MISSING = (math.nan,) * 3

STANDARD_NAMES = frozenset(protein_letters_3to1)

# Names that the extended table of Biopython lacks.
_MORE_NAMES = {
    **{"SEC": "U", "PYL": "O", "ASX": "B", "GLX": "Z", "UNK": UNKNOWN_LETTER},
    # D-amino acids
    **{"DAL": "A", "DAR": "R", "DSG": "N", "DAS": "D", "DCY": "C", "DGN": "Q", "DGL": "E", "DHI": "H", "DIL": "I"},
    **{"DLE": "L", "DLY": "K", "MED": "M", "DPN": "F", "DPR": "P", "DSN": "S", "DTH": "T", "DTR": "W", "DTY": "Y"},
    **{"DVA": "V"},
    # protonation states as molecular dynamics programs write them
    **{"HID": "H", "HIE": "H", "HIP": "H", "HSD": "H", "HSE": "H", "HSP": "H"},
    **{"CYX": "C", "CYM": "C", "ASH": "D", "GLH": "E", "LYN": "K"},
}
LETTER_OF_NAME: Mapping[str, str] = {
    **{name.strip(): letter for name, letter in protein_letters_3to1_extended.items()},
    **_MORE_NAMES,
}

# Groups that close the ends of a chain: SEQRES lists them, but they are no residues.
CAPS = frozenset(["ACE", "NH2", "NME", "NMA", "FOR", "BOC", "PHQ", "MYR", "TFA", "IVA"])


def plain_name(name: str) -> str:
    """Return the name without AMBER's mark of a chain's end: ``MET`` for ``NMET``, ``HIE`` for ``CHIE``."""
    return name[1:] if len(name) == 4 and name[0] in "NC" and name[1:] in LETTER_OF_NAME else name


def letter(name: str, parent: str = "") -> str:
    """Return the one-letter code of a residue: of its parent, else of its name, else X.

    Args:
        name: Residue name, such as ``MSE``.
        parent: Name of the parent that the file gives a modified residue; empty when it gives none.
    """
    return LETTER_OF_NAME.get(parent) or LETTER_OF_NAME.get(name, UNKNOWN_LETTER)


@dataclass(slots=True, eq=False)
class Residue:
    """One residue as the file gives it.

    Attributes:
        name: Residue name, such as ``MSE``.
        number: Author residue number.
        icode: Insertion code; a blank when there is none.
        hetero: Whether the file calls it a hetero group (HETATM).
        trailing: Whether it follows the last TER record of its chain.
        parent: Name of its parent, where the file says that it is modified; else empty.
        declared: Whether the file says that it is a part of the polymer.
        index: 0-based position in the chain's full sequence, where the file gives it; else None.
        position_in_polymer: The polymer and the number in it, where the file has it (``label_asym_id`` and
            ``label_seq_id``); else None.
        places: By alternate location, position in Å and occupancy of its N, CA and C, as far as the file has them.
        location: The alternate location that counts.
    """

    name: str
    number: int
    icode: str
    hetero: bool
    trailing: bool = False
    parent: str = ""
    declared: bool = False
    index: int | None = None
    position_in_polymer: tuple[str, int] | None = None
    places: dict[str, dict[str, tuple[Position, float]]] = field(default_factory=dict)
    location: str = BLANK

    def add(self, atom: str, position: Position, altloc: str, occupancy: float) -> None:
        """Take an atom; of two at one alternate location the first."""
        place = self.places.get(altloc)
        if place is None:
            place = self.places[altloc] = {}
        if atom not in place:
            place[atom] = position, occupancy

    def has(self, atom: str) -> bool:
        """Whether the file has the atom, at any location."""
        return any(atom in place for place in self.places.values())

    def occupancy(self, atom: str) -> float:
        """Return the highest occupancy of an atom; -1 when it is missing."""
        return max((place[atom][1] for place in self.places.values() if atom in place), default=-1.0)

    def backbone(self) -> list[Position]:
        """Positions of N, CA and C, in Å; NaN where missing."""
        if len(self.places) == 1:
            (place,) = self.places.values()
            return [place[atom][0] if atom in place else _MISSING for atom in BACKBONE]
        return [self._at(atom) for atom in BACKBONE]

    def _at(self, atom: str) -> Position:
        """Position of an atom: at the location that counts, else where it has no other, else at the likeliest."""
        for location in (self.location, BLANK):
            if atom in self.places.get(location, ()):
                return self.places[location][atom][0]
        found = [place[atom] for place in self.places.values() if atom in place]
        return max(found, key=lambda one: one[1])[0] if found else _MISSING

    def alternates(self) -> dict[str, tuple[int, float]]:
        """Locations that compete, in file order: backbone atoms that each gives, and their mean occupancy."""
        if len(self.places) < 2:
            return {}
        shared = self.places.get(BLANK, {})
        marked = {atom for name, place in self.places.items() if name != BLANK for atom in place}
        return {
            name: (len({*place, *shared}), sum(occupancy for _, occupancy in place.values()) / len(place))
            for name, place in self.places.items()
            if name != BLANK or not marked.isdisjoint(shared)
        }

    @property
    def known(self) -> bool:
        """Whether this is an amino acid by its name, or by the file."""
        return self.name in LETTER_OF_NAME or self.parent in LETTER_OF_NAME

    @property
    def letter(self) -> str:
        """One-letter code, X when unknown."""
        return letter(self.name, self.parent)


ResidueKey = tuple[int, str, str]  # number, label_asym_id (empty in the PDB format) and insertion code


@dataclass(slots=True, eq=False)
class RawChain:
    """All that a file says of one author chain, before judging what of it is the protein.

    Attributes:
        residues: In file order, by what tells them apart, the residue types seen there (mostly one).
        full: Residue names of the full sequence (SEQRES or ``_entity_poly_seq``); empty when the file has none.
        author: The author's chain id, where the file has several chains of that id; None: the chain's own.
    """

    residues: dict[ResidueKey, list[Residue]] = field(default_factory=dict)
    full: list[str] = field(default_factory=list)
    author: str | None = None


@dataclass(slots=True, eq=False)
class RawStructure:
    """The first model of a file."""

    chains: dict[str, RawChain] = field(default_factory=dict)
    parents: dict[str, str] = field(default_factory=dict)

    def declare(self, name: str, parent: str) -> None:
        """Note the parent of a modified residue; the name of a standard one keeps its meaning elsewhere."""
        if name not in STANDARD_NAMES:
            self.parents[name] = parent
