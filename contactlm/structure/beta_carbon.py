"""C-beta atoms as a file has them, for figures that were measured with those and not with virtual ones."""

from __future__ import annotations

import io
from contextlib import closing
from pathlib import Path

import numpy as np
from Bio.PDB.Chain import Chain as BioChain
from Bio.PDB.MMCIFParser import MMCIFParser
from Bio.PDB.PDBExceptions import PDBException
from Bio.PDB.PDBParser import PDBParser
from Bio.PDB.Residue import Residue as BioResidue
from numpy.typing import NDArray

from contactlm.structure.files import brief, read_blocks, split_name
from contactlm.types import Chain, StructureError

_PARSERS = {"pdb": PDBParser, "mmcif": MMCIFParser}
_Position = tuple[float, ...]


def beta_carbons(path: str | Path, chain: Chain) -> NDArray[np.float32]:
    """Look up the C-beta atoms of a chain that was read from a file.

    Residues are found again by the position of their C-alpha, which no two share.

    Returns:
        float32 (L, 3), in Å: the C-beta of the same alternate location as the C-alpha; the C-alpha of glycine; NaN
        where the residue is unresolved or the file lacks its C-beta.
    """
    with closing(read_blocks(path)) as blocks:
        text = io.StringIO("".join(blocks))
    parser = _PARSERS[split_name(path)[1]](QUIET=True)
    try:
        models = parser.get_structure("", text).get_list()
    except (PDBException, ValueError, LookupError) as error:
        raise StructureError(path, brief(f"its C-beta atoms cannot be read: {error}")) from error
    found: dict[_Position, NDArray[np.float32]] = {}
    for own in models[:1]:
        for bio_chain in own:
            found |= _by_alpha(bio_chain)
    cb = np.full((len(chain), 3), np.nan, dtype=np.float32)
    for i in np.flatnonzero(chain.resolved):
        missing = chain.ca[i] if chain.sequence[i] == "G" else cb[i]
        cb[i] = found.get(tuple(chain.ca[i].tolist()), missing)
    return cb


def _by_alpha(chain: BioChain) -> dict[_Position, NDArray[np.float32]]:
    """C-beta positions by the positions of the C-alphas."""
    found = {}
    for entry in chain.get_unpacked_list():
        for residue in entry.disordered_get_list() if entry.is_disordered() == 2 else [entry]:
            alphas, betas = (_alternates(residue, name) for name in ("CA", "CB"))
            for altloc, alpha in alphas.items():
                beta = betas.get(altloc, betas.get(" "))
                if beta is None and betas:  # the C-alpha has one place, the C-beta several: the first of the highest
                    beta = next(iter(betas.values()))
                if beta is not None:
                    found[tuple(alpha.tolist())] = beta
    return found


def _alternates(residue: BioResidue, name: str) -> dict[str, NDArray[np.float32]]:
    """Positions of an atom by alternate location, the one of the highest occupancy first."""
    atoms = [atom for atom in residue.get_unpacked_list() if atom.get_name() == name]
    atoms.sort(key=lambda atom: -(atom.get_occupancy() or 0.0))
    return {atom.get_altloc(): np.asarray(atom.get_coord(), np.float32) for atom in atoms}
