"""The structure of a map with each residue's predicted number of contacts as B-factor."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING
from warnings import catch_warnings, simplefilter

import numpy as np
from Bio.PDB.MMCIFParser import MMCIFParser
from Bio.PDB.PDBExceptions import PDBException
from Bio.PDB.PDBIO import PDBIO
from Bio.PDB.PDBParser import PDBParser
from Bio.PDB.Structure import Structure
from numpy.typing import NDArray

from contactlm.atomic import atomic_path
from contactlm.maps.pairs import LEAST_SEPARATION
from contactlm.maps.scripts import need_residues
from contactlm.structure.files import read_blocks, split_name
from contactlm.types import StructureError, chain_numbers

if TYPE_CHECKING:
    from contactlm.maps.contact_map import ContactMap

ELSEWHERE = 0.0  # B-factor of what the map does not speak of: ligands, water, other chains


def contact_numbers(contact_map: ContactMap) -> NDArray[np.float32]:
    """How many contacts each residue is predicted to have, float32 (L,).

    The sum of its pairs' probabilities, of those at least 6 residues apart or of different chains.
    """
    chain, at = chain_numbers(contact_map.chain_lengths), np.arange(len(contact_map))
    counted = (np.abs(at - at[:, None]) >= LEAST_SEPARATION) | (chain != chain[:, None])
    return np.where(counted, contact_map.probability, 0).sum(axis=1, dtype=np.float32)


def write_bfactors(contact_map: ContactMap, path: str | Path) -> None:
    """Write the first model of the map's structure (PDB format) with contact numbers as B-factors.

    Raises:
        DataError: The map has no structure.
        StructureError: The structure cannot be read, or does not fit the PDB format.
    """
    residues = need_residues(contact_map)
    values = {
        (chain, number): float(value)
        for chain, number, value in zip(residues.chains, residues.numbers, contact_numbers(contact_map), strict=True)
        if number
    }
    structure = _read(residues.file)
    for chain in structure[0]:
        for residue in chain:
            _, number, icode = residue.id
            value = values.get((chain.id.strip(), f"{number}{icode.strip()}"), ELSEWHERE)
            for atom in residue.get_unpacked_list():
                atom.set_bfactor(value)
    buffer = io.StringIO()
    writer = PDBIO()
    writer.set_structure(structure[0])
    try:
        writer.save(buffer)
    except (ValueError, PDBException) as error:
        raise StructureError(residues.file, f"does not fit the PDB format ({error}): leave out pdb, use cxc") from error
    remark = f"REMARK   6 B-FACTORS: CONTACTS PREDICTED FOR THE RESIDUE, {LEAST_SEPARATION} OR MORE RESIDUES APART\n"
    with atomic_path(Path(path).expanduser()) as temporary:
        temporary.write_text(remark + buffer.getvalue(), encoding="utf-8", newline="\n")


def _read(file: str) -> Structure:
    parser = PDBParser(QUIET=True) if split_name(file)[1] == "pdb" else MMCIFParser(QUIET=True)
    text = io.StringIO("".join(read_blocks(file)))
    try:
        with catch_warnings():
            simplefilter("ignore")
            return parser.get_structure("", text)
    except (ValueError, KeyError, PDBException) as error:
        raise StructureError(file, f"cannot be read with all its atoms: {error}") from error
