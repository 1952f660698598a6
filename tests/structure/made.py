"""Writes tiny structure files: peptides of ideal bond lengths and angles, in PDB and mmCIF format."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import numpy as np
from Bio.Data.PDBData import protein_letters_1to3
from numpy.typing import NDArray

NAMES = {**{one: three.upper() for one, three in protein_letters_1to3.items()}, "U": "SEC", "X": "UNK"}

# bond length in Å, angle and dihedral in rad by which each atom follows on the three before it
_N = (1.329, np.deg2rad(117.2))
_CA = (1.458, np.deg2rad(121.7))
_C = (1.525, np.deg2rad(111.0))


@dataclass
class Res:
    """One residue to write; ``alternates`` are written after it as further locations of the same place."""

    name: str
    number: int | str
    xyz: dict[str, NDArray[np.float64]]
    chain: str = "A"
    icode: str = " "
    hetero: bool = False
    altloc: str = " "
    occupancy: float = 1.0
    label: int | None = None
    alternates: list[Res] = field(default_factory=list)

    def without(self, *atoms: str) -> Res:
        return replace(self, xyz={name: at for name, at in self.xyz.items() if name not in atoms})

    def moved(self, by: float) -> dict[str, NDArray[np.float64]]:
        return {name: at + by for name, at in self.xyz.items()}


def follow(a: NDArray, b: NDArray, c: NDArray, length: float, angle: float, dihedral: float) -> NDArray:
    """Place an atom by its bond to c, its angle with b, c and its dihedral with a, b, c."""
    bc = (c - b) / np.linalg.norm(c - b)
    n = np.cross(b - a, bc)
    n /= np.linalg.norm(n)
    local = [-np.cos(angle), np.sin(angle) * np.cos(dihedral), np.sin(angle) * np.sin(dihedral)]
    return c + length * (local[0] * bc + local[1] * np.cross(n, bc) + local[2] * n)


def peptide(letters: str, chain: str = "A", start: int = 1, seed: int = 0, origin: float = 0.0) -> list[Res]:
    """Make a peptide with random backbone dihedrals; coordinates have three decimals as in files."""
    rng = np.random.default_rng(seed)
    atoms = [np.array([0.0, 0.0, 0.0]), np.array([1.458, 0.0, 0.0]), np.array([2.0, 1.42, 0.0])]
    for _ in letters[1:]:
        phi, psi = rng.uniform(-2.2, -1.0), rng.uniform(-0.9, 2.6)
        for (length, angle), dihedral in ((_N, psi), (_CA, np.pi), (_C, phi)):
            atoms.append(follow(*atoms[-3:], length, angle, dihedral))
    residues = []
    for i, one in enumerate(letters):
        n, ca, c = (np.round(at + origin, 3) for at in atoms[3 * i : 3 * i + 3])
        cb = np.round(ca + 1.5 * (ca - (n + c) / 2) / np.linalg.norm(ca - (n + c) / 2), 3)
        xyz = {"N": n, "CA": ca, "C": c, "O": np.round(c + np.array([0.6, 0.6, 0.9]), 3), "CB": cb}
        residues.append(Res(NAMES[one], start + i, xyz, chain, label=i + 1))
    return residues


def pdb_atoms(residues: Iterable[Res]) -> list[str]:
    lines = []
    for r in residues:
        for each in (r, *r.alternates):
            for atom, (x, y, z) in each.xyz.items():
                lines.append(
                    f"{'HETATM' if each.hetero else 'ATOM  '}{len(lines) + 1:5d}  {atom:<3}{each.altloc}{each.name:>3} "
                    f"{each.chain:1}{each.number!s:>4}{each.icode}   {x:8.3f}{y:8.3f}{z:8.3f}"
                    f"{each.occupancy:6.2f}{20.0:6.2f}          {atom[0]:>2}"
                )
    return lines


def seqres(names: list[str], chain: str = "A") -> list[str]:
    rows = [names[i : i + 13] for i in range(0, len(names), 13)]
    return [f"SEQRES {i:3d} {chain:1} {len(names):4d}  {' '.join(row)}" for i, row in enumerate(rows, 1)]


def modres(name: str, chain: str, number: int, icode: str, parent: str) -> str:
    return f"MODRES 1ABC {name:>3} {chain:1} {number:4d}{icode} {parent:>3}  MODIFIED RESIDUE"


def three(letters: str) -> list[str]:
    return [NAMES[one] for one in letters]


_COLUMNS = (
    *("group_PDB", "id", "type_symbol", "label_atom_id", "label_alt_id", "label_comp_id", "label_asym_id"),
    *("label_entity_id", "label_seq_id", "pdbx_PDB_ins_code", "Cartn_x", "Cartn_y", "Cartn_z", "occupancy"),
    *("B_iso_or_equiv", "auth_seq_id", "auth_asym_id", "pdbx_PDB_model_num"),
)


def cif(
    residues: Iterable[Res],
    full: dict[str, list[str]] | None = None,
    more: Iterable[str] = (),
    label_chains: dict[str, str] | None = None,
    model: int = 1,
) -> str:
    """Write mmCIF; ``full`` gives the names of each author chain's full sequence, each chain its own entity."""
    lines = ["data_1ABC", "#", *more]
    residues = list(residues)
    chains = list(dict.fromkeys(r.chain for r in residues))
    if full:
        lines += ["loop_", *(f"_entity_poly_seq.{c}" for c in ("entity_id", "num", "mon_id", "hetero"))]
        for chain, names in full.items():
            lines += [f"{chains.index(chain) + 1} {i} {name} n" for i, name in enumerate(names, 1)]
        lines.append("#")
    lines += ["loop_", *(f"_atom_site.{c}" for c in _COLUMNS)]
    serial = 0
    for r in residues:
        label_chain = (label_chains or {}).get(r.chain, r.chain)
        for each in (r, *r.alternates):
            for atom, (x, y, z) in each.xyz.items():
                serial += 1
                label = "." if r.label is None else r.label
                lines.append(
                    f"{'HETATM' if each.hetero else 'ATOM'} {serial} {atom[0]} {atom} {each.altloc.strip() or '.'} "
                    f"{each.name} {label_chain} {chains.index(r.chain) + 1} {label} {each.icode.strip() or '?'} "
                    f"{x:.3f} {y:.3f} {z:.3f} {each.occupancy:.2f} 20.00 {each.number} {each.chain} {model}"
                )
    return "\n".join([*lines, "#", ""])
