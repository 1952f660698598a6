"""A map on its structure: scripts for PyMOL and ChimeraX that draw pairs as dashes; contact numbers as B-factors."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from warnings import catch_warnings, simplefilter

import numpy as np
from Bio.PDB.MMCIFParser import MMCIFParser
from Bio.PDB.PDBExceptions import PDBException
from Bio.PDB.PDBIO import PDBIO
from Bio.PDB.PDBParser import PDBParser
from Bio.PDB.Structure import Structure
from numpy.typing import NDArray

from contactlm.atomic import atomic_path, file_name
from contactlm.maps.pairs import LEAST_SEPARATION, MapValues, top_contacts, truth_of
from contactlm.structure.files import read_blocks, split_name
from contactlm.structure.numbered import FileResidues
from contactlm.types import DataError, StructureError, chain_numbers

# Okabe and Ito's blue, vermilion and yellow: distinct with colour-vision deficiency, and in grey by their lightness
COLORS = {"right": "#0072B2", "wrong": "#D55E00", "predicted_only": "#F0E442"}
Drawn = dict[str, list[tuple[int, int]]]


def drawn_pairs(contact_map: MapValues) -> tuple[FileResidues, Drawn]:
    """The map's residues, and by kind i < j, from 0, of its L most probable pairs whose residues the structure has.

    Of ``predicted_only`` the truth is not known, which is so too of a pair that is apart in a relative's structure.
    """
    residues = need_residues(contact_map)
    truth = truth_of(contact_map)
    is_known = contact_map.labels is not None or residues.is_own
    drawn: Drawn = {kind: [] for kind in COLORS}
    for i, j, _ in top_contacts(contact_map, len(contact_map), LEAST_SEPARATION):
        if not (residues.numbers[i] and residues.numbers[j]):
            continue
        label = -1 if truth is None else int(truth[i, j])
        kind = "right" if label == 1 else "wrong" if label == 0 and is_known else "predicted_only"
        drawn[kind].append((i, j))
    return residues, drawn


def need_residues(contact_map: MapValues) -> FileResidues:
    """The map's residues in its structure."""
    if contact_map.residues is None:
        raise DataError(
            f"{contact_map.id}: no structure is known to show the map on; predict from a structure file, or name one: "
            'save("x.pml", structure="1abc.pdb")'
        )
    return contact_map.residues


def write_pymol(contact_map: MapValues, path: str | Path) -> None:
    """Write a PyMOL script: the structure as a cartoon, and the L most probable pairs as dashes between C-alphas.

    The structure is loaded from where it lies; the objects ``right``, ``wrong`` and ``predicted_only`` can be turned
    on and off.
    """
    _write(path, "\n".join([*_pymol_lines(contact_map), ""]))


def write_chimerax(contact_map: MapValues, path: str | Path) -> None:
    """Write a ChimeraX script: as :func:`write_pymol` does, with pseudobonds; to be opened in a new session."""
    _write(path, "\n".join([*_chimerax_lines(contact_map), ""]))


def _write(path: str | Path, text: str) -> None:
    with atomic_path(Path(path).expanduser()) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def _legend(contact_map: MapValues, drawn: Drawn) -> Iterator[str]:
    name = "".join(letter if letter.isprintable() else "?" for letter in contact_map.id)
    yield f"# contactlm: the {len(contact_map)} most probable pairs of {name}, where the structure has both residues"
    for kind, pairs in drawn.items():
        yield f"# {kind.replace('_', ' ')} ({COLORS[kind]}): {len(pairs)}"


def _pymol_lines(contact_map: MapValues) -> Iterator[str]:
    residues, drawn = drawn_pairs(contact_map)
    name = "".join(letter if letter.isalnum() or letter in "_-" else "_" for letter in file_name(contact_map.id))
    yield from _legend(contact_map, drawn)
    yield f"/cmd.load({_python(residues.file)}, {_python(name)}, multiplex=0)"
    yield f"/cmd.hide('everything', '%{name}')"
    yield f"/cmd.show('cartoon', '%{name}')"
    yield f"/cmd.color('grey80', '%{name}')"
    named = (chain for chain, number in zip(residues.chains, residues.numbers, strict=True) if number)
    own = " or ".join(f'chain "{chain}"' for chain in dict.fromkeys(named))
    yield f"/cmd.set('cartoon_transparency', 0.8, {_python(f'%{name} and not ({own})')})"
    for kind, pairs in drawn.items():
        for i, j in pairs:
            ends = (_python(_pymol_atom(residues, at, name)) for at in (i, j))
            yield f"/cmd.distance('{kind}', {', '.join(ends)})"
        if pairs:
            yield f"/cmd.set('dash_color', '{COLORS[kind].replace('#', '0x')}', '{kind}')"
    yield "/cmd.hide('labels')"
    yield "/cmd.set('dash_width', 2.5)"
    yield f"/cmd.orient({_python(f'%{name} and ({own})')})"


def _pymol_atom(residues: FileResidues, at: int, name: str) -> str:
    number = residues.numbers[at].replace("-", "\\-")
    return f'first (%{name} and chain "{residues.chains[at]}" and resi {number} and name CA)'


def _python(text: str) -> str:
    """A string of Python in one line that the program does not split: it cuts lines at semicolons."""
    return ascii(text).replace(";", "\\x3b").replace("#", "\\x23")


def _chimerax_lines(contact_map: MapValues) -> Iterator[str]:
    residues, drawn = drawn_pairs(contact_map)
    yield from _legend(contact_map, drawn)
    file = residues.file
    mark = next((mark for mark in ('"', "'") if mark not in file), None)
    if mark is None or not file.isprintable() or "\\" in file:
        raise DataError(f"{contact_map.id}: ChimeraX's commands cannot name the file {file!r}: rename it")
    yield f"open {mark}{file}{mark}"
    yield "hide #1 atoms"
    yield "cartoon #1"
    yield "color #1 #cccccc"
    for kind, pairs in drawn.items():
        for i, j in pairs:
            ends = " ".join(_chimerax_atom(contact_map, residues, at) for at in (i, j))
            yield f"pbond {ends} color {COLORS[kind].lower()} radius 0.12 dashes 5 name {kind}"


def _chimerax_atom(contact_map: MapValues, residues: FileResidues, at: int) -> str:
    chain, number = residues.chains[at], residues.numbers[at]
    if not chain or chain.isalnum():
        return f"#1{'/' if chain else ''}{chain}:{number}@CA"
    # after a slash, A-2 is a range of chains and _ no name
    if not chain.isprintable() or '"' in chain:
        raise DataError(f"{contact_map.id}: chain {chain!r} of {residues.file} has no name in ChimeraX's commands")
    return f'#1:{number}::chain_id=="{chain}"@CA'


def contact_numbers(contact_map: MapValues) -> NDArray[np.float32]:
    """Each residue's sum of probabilities of pairs at least 6 residues apart or of different chains, float32 (L,)."""
    chain, at = chain_numbers(contact_map.chain_lengths), np.arange(len(contact_map))
    counted = (np.abs(at - at[:, None]) >= LEAST_SEPARATION) | (chain != chain[:, None])
    return np.where(counted, contact_map.probability, 0).sum(axis=1, dtype=np.float32)


def write_bfactors(contact_map: MapValues, path: str | Path) -> None:
    """Write the first model of the map's structure (PDB format) with contact numbers as B-factors."""
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
            value = values.get((chain.id.strip(), f"{number}{icode.strip()}"), 0.0)  # 0: ligands, water, other chains
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
    _write(path, remark + buffer.getvalue())


def _read(file: str) -> Structure:
    kind = split_name(file)[1]
    if kind == "bcif":
        raise StructureError(
            file, "all its atoms are read from PDB and mmCIF files: give one of these, or leave out pdb"
        )
    parser = PDBParser(QUIET=True) if kind == "pdb" else MMCIFParser(QUIET=True)
    text = io.StringIO("".join(read_blocks(file)))
    try:
        with catch_warnings():
            simplefilter("ignore")
            return parser.get_structure("", text)
    except (ValueError, KeyError, PDBException) as error:
        raise StructureError(file, f"cannot be read with all its atoms: {error}") from error
