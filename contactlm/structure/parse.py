"""Structure files to protein chains."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import closing
from itertools import chain as joined
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
from Bio.PDB.kdtrees import KDTree
from numpy.typing import NDArray

from contactlm.alphabet import UNKNOWN_LETTER
from contactlm.structure.align import Observed, agreement, align_observed, merge
from contactlm.structure.binary_cif import read_bcif
from contactlm.structure.contacts import virtual_cbeta
from contactlm.structure.files import brief, read_blocks, read_bytes, split_name
from contactlm.structure.mmcif import read_mmcif
from contactlm.structure.pdb import read_pdb
from contactlm.structure.polymer import MAX_CA_DISTANCE, bonded, linked, polymer
from contactlm.structure.residues import CAPS, RawChain, RawStructure, Residue, letter
from contactlm.types import Chain, StructureError

SEQUENCES = ("seqres", "observed")
MIN_AGREEMENT = 0.5
"""A full sequence that gives fewer of the observed residues the same letter is of another protein: it is ignored."""

MODELS = ("first", "copies")
MAX_CLASHES, CLASH = 0.1, 2.5
"""A further model is a copy where at most this share of its CA is nearer than so many Å to one of those before."""

_PDB_STARTS = ("HEADER ", "TITLE ", "REMARK ", "CRYST1", "MODEL ", "ATOM  ", "HETATM")
_log = logging.getLogger(__name__)


class NumberedChain(NamedTuple):
    """A chain with what else its file says of it.

    Attributes:
        chain: The chain.
        name: Its author chain id; empty when the file leaves it blank.
        numbers: L author residue numbers with insertion codes, such as ``52`` and ``52A``; empty for residues without
            coordinates in the file.
        backbone: N, CA and C, float32 (L, 3 atoms, 3), in Å; NaN where missing.
    """

    chain: Chain
    name: str
    numbers: list[str]
    backbone: NDArray[np.float32]


def read_chains(path: str | Path, sequence: str = "seqres", models: str = "first") -> list[Chain]:
    """Read the protein chains of a structure file.

    Of the first model, each author chain with at least one resolved amino acid, in file order; chains of equal
    sequence are all kept. The id is the file's name without suffixes, ``_`` and the author chain id, so ``1abc_A``;
    ``1abc_`` when the chain id is blank. An mmCIF file gives the chains that the PDB file of the same entry gives.

    A residue is resolved when it has a CA with finite coordinates. Its C-beta is built from N, CA and C (see
    :func:`~contactlm.structure.contacts.virtual_cbeta`), or is the CA when N or C is missing. Of alternate locations
    one counts for a whole residue: the likeliest, of equals the first, for neighbours the same. Modified residues get
    the letter of their parent (MODRES or ``_pdbx_struct_mod_residue`` first, then Biopython's table), unknown ones X.
    Waters, ligands, free amino acids and nucleic acids are left out. Chains that share an id, as molecular dynamics
    programs write them, are distinguished by segment ids, TER records and numbers that begin again, and called
    ``A-SEGID``, or ``A-1``, ``A-2``.

    With ``sequence="seqres"`` a chain has the full sequence of SEQRES or ``_entity_poly_seq``, without terminal caps.
    Where the observed residues differ from it they win; where it lacks them they are inserted. If the file has no
    full sequence, or one of another protein, the chain has the residues in the coordinates, and where it breaks as
    many unknown ones (X, unresolved) as the residue numbers leave out, 99 at most: see
    :func:`~contactlm.structure.parse.fill_breaks`. So residues stay as far apart in the sequence as they are.

    Args:
        path: A file ending in ``.pdb``, ``.pdb1``, ``.ent``, ``.cif``, ``.mmcif`` or ``.bcif``, each also with ``.gz``,
            ``.bz2`` or ``.xz``, in any case.
        sequence: ``seqres`` for full sequences, ``observed`` for the resolved residues only.
        models: ``first``, or ``copies``: of biological assemblies, whose models are further copies of the chains,
            all; chains of the second are called ``A-2``. Models that lie on one another are an ensemble: of these the
            first counts.

    Returns:
        At least one chain.

    Raises:
        StructureError: The file cannot be read, or holds no protein chain; the message says which and why.
        ValueError: ``sequence`` or ``models`` is neither of the two.

    Examples:
        >>> from contactlm import read_chains
        >>> from contactlm.data.synthetic import SyntheticOptions, write_synthetic
        >>> train, test = write_synthetic(SyntheticOptions("proteins", n_train=1, n_test=1))  # PDB files to play with
        >>> [chain] = read_chains(test / "test00000.pdb")
        >>> chain.id, len(chain), chain.cb.shape, bool(chain.resolved.all())
        ('test00000_A', 67, (67, 3), True)
    """
    return [found.chain for found in read_numbered(path, sequence, models)]


def read_backbones(path: str | Path, sequence: str = "seqres") -> list[tuple[Chain, NDArray[np.float32]]]:
    """Read the protein chains of a structure file with their backbones.

    Returns:
        The chains that :func:`read_chains` gives, each with the coordinates of N, CA and C, float32 (L, 3 atoms, 3),
        in Å; NaN where missing.
    """
    return [(found.chain, found.backbone) for found in read_numbered(path, sequence)]


def read_numbered(path: str | Path, sequence: str = "seqres", models: str = "first") -> list[NumberedChain]:
    """Read the protein chains of a structure file with their residue numbers.

    Args:
        path: As for :func:`read_chains`.
        sequence: Likewise.
        models: Likewise.

    Returns:
        The chains that :func:`read_chains` gives, each with its numbers and backbone.

    Raises:
        StructureError: As :func:`read_chains` does.
        ValueError: Likewise.
    """
    if sequence not in SEQUENCES:
        raise ValueError(f"sequence={sequence!r}; it can be {' or '.join(map(repr, SEQUENCES))}")
    if models not in MODELS:
        raise ValueError(f"models={models!r}; it can be {' or '.join(map(repr, MODELS))}")
    stem = split_name(path)[0]
    chains: list[NumberedChain] = []
    for number, raw in enumerate(_raw_structures(path, models == "copies"), start=1):
        copy = _chains_of(path, stem, raw, sequence, "" if number == 1 else f"-{number}")
        if number > 1 and not (chains and copy and _are_apart(chains, copy)):
            break
        chains += copy
    if not chains:
        raise StructureError(path, "no protein chain: its first model has no amino acid with a C-alpha")
    return chains


def _raw_structures(path: str | Path, all_models: bool) -> Iterator[RawStructure]:
    """The first model, or all."""
    kind = split_name(path)[1]
    if kind == "bcif":
        yield from read_bcif(path, read_bytes(path), all_models)
        return
    with closing(read_blocks(path)) as blocks:
        checked = _checked(path, kind, blocks)
        found = read_pdb(path, checked) if kind == "pdb" else iter(read_mmcif(path, checked, all_models))
        yield from found if all_models else islice(found, 1)


def _chains_of(path: str | Path, stem: str, raw: RawStructure, sequence: str, mark: str) -> list[NumberedChain]:
    """The protein chains of a model."""
    chains: list[NumberedChain] = []
    lone: list[bool] = []
    for chain_id, raw_chain in raw.chains.items():
        try:
            chain = _chain(f"{stem}_{chain_id}{mark}", chain_id, raw_chain, raw.parents, sequence)
        except ValueError as error:
            raise StructureError(path, brief(f"chain {chain_id!r}: {error}")) from error
        if chain is not None:
            chains.append(chain)
            steps = np.linalg.norm(np.diff(chain.chain.ca, axis=0), axis=1)
            lone.append(not raw_chain.full and not (steps < MAX_CA_DISTANCE).any())
    if shared := [chain_id for chain_id, raw_chain in raw.chains.items() if raw_chain.author is not None]:
        _log.info("%s: chains that share an id or have none are called %s", path, ", ".join(shared))
    if all(lone):
        return chains
    # residues alone in a chain are ligands where there is a protein
    return [chain for chain, is_lone in zip(chains, lone, strict=True) if not is_lone]


def _are_apart(chains: list[NumberedChain], others: list[NumberedChain]) -> bool:
    """Whether the chains of a further model are copies elsewhere, not another state of the same."""
    here, there = (np.concatenate([one.chain.ca[one.chain.resolved] for one in each]) for each in (chains, others))
    tree = KDTree(np.ascontiguousarray(here, dtype=np.float64), 10)
    clashes = sum(bool(tree.search(np.ascontiguousarray(ca, dtype=np.float64), CLASH)) for ca in there)
    return clashes <= MAX_CLASHES * len(there)


def _checked(path: str | Path, kind: str, blocks: Iterator[str]) -> Iterator[str]:
    """Refuse what is of the other format, or empty, by how it begins."""
    first = next((block for block in blocks if not block.isspace()), None)
    if first is None:
        raise StructureError(path, "the file is empty")
    start = first.lstrip()[:200].upper()
    if kind == "pdb" and start.startswith("DATA_"):
        raise StructureError(path, "mmCIF by its content, PDB by its name: rename it to .cif")
    if kind == "mmcif" and start.startswith(_PDB_STARTS):
        raise StructureError(path, "PDB by its content, mmCIF by its name: rename it to .pdb")
    return joined([first], blocks)


def _chain(name: str, chain_id: str, raw: RawChain, parents: dict[str, str], sequence: str) -> NumberedChain | None:
    residues, xyz = polymer(raw)
    resolved = np.isfinite(xyz[:, 1, 0])  # a missing atom is NaN in all coordinates
    if not resolved.any():
        return None
    if sequence == "observed":
        letters = "".join(residues[i].letter for i in np.flatnonzero(resolved))
        residues = [residues[i] for i in np.flatnonzero(resolved)]
        xyz, resolved = xyz[resolved], resolved[resolved]
        positions = np.arange(len(letters))
    else:
        letters, positions = _full(name, residues, xyz, raw, parents)
    coordinates = np.full((len(letters), *xyz.shape[1:]), np.nan)
    coordinates[positions] = xyz
    n, ca, c = coordinates.swapaxes(0, 1)
    present = np.zeros(len(letters), dtype=np.bool_)
    present[positions] = resolved
    chain = Chain(name, letters, ca.astype(np.float32), virtual_cbeta(n, ca, c), present)
    numbers = [""] * len(letters)
    for position, residue in zip(positions.tolist(), residues, strict=True):
        numbers[position] = f"{residue.number}{residue.icode.strip()}"
    return NumberedChain(chain, chain_id if raw.author is None else raw.author, numbers, coordinates.astype(np.float32))


def _full(
    name: str, residues: list[Residue], xyz: NDArray[np.float64], raw: RawChain, parents: dict[str, str]
) -> tuple[str, NDArray[np.intp]]:
    """Return the sequence with unresolved residues, and the positions of the observed ones in it."""
    observed = "".join(residue.letter for residue in residues)
    indices = [residue.index for residue in residues if residue.index is not None]
    seen = frozenset(indices)
    kept = [i for i, n in enumerate(raw.full) if n not in CAPS or i in seen]
    full = "".join(letter(raw.full[i], parents.get(raw.full[i], "")) for i in kept)
    if not full:
        return fill_breaks(residues, xyz)
    if len(indices) == len(residues):
        positions = np.searchsorted(kept, indices)
    else:
        numbers = np.array([residue.number for residue in residues])
        positions = align_observed(Observed(observed, numbers, bonded(xyz)), full)
    agreeing = agreement(observed, full, positions)
    if agreeing < MIN_AGREEMENT:
        _log.warning("%s: the full sequence in the file agrees in %.0f %%: it is ignored", name, 100 * agreeing)
        return fill_breaks(residues, xyz)
    return merge(observed, full, positions)


MAX_JUMP = 100
"""Numbers that jump by more count as jumping by this: mostly the scheme changes there."""


def fill_breaks(residues: list[Residue], xyz: NDArray[np.float64]) -> tuple[str, NDArray[np.intp]]:
    """Put unknown residues where the chain breaks, so that residues stand as far apart as their numbers say.

    Where no bond links a residue to the next and the numbers jump by k, k - 1 unknown residues stand between them.
    Linked residues are neighbours whatever their numbers. Numbers that stay or jump backwards mean nothing, and
    insertion codes do not count: files use them in either order, and for second copies as well.

    Args:
        residues: M observed residues in chain order.
        xyz: Their backbone coordinates, (M, 3 atoms, 3), in Å; NaN where missing.

    Returns:
        The sequence, L letters with X for the unknown ones, and the 0-based positions of the observed residues, (M,).
    """
    apart = np.linalg.norm(np.diff(xyz[:, 1], axis=0), axis=-1) > MAX_CA_DISTANCE
    pairs = zip(residues[:-1], residues[1:], linked(xyz).tolist(), apart.tolist(), strict=True)
    steps = [1 if is_linked else min(max(_jump(one, other, far), 1), MAX_JUMP) for one, other, is_linked, far in pairs]
    positions = np.concatenate([[0], np.cumsum(steps)]).astype(np.intp)
    letters = [UNKNOWN_LETTER] * (int(positions[-1]) + 1)
    for at, residue in zip(positions.tolist(), residues, strict=True):
        letters[at] = residue.letter
    return "".join(letters), positions


def _jump(one: Residue, other: Residue, far: bool) -> int:
    """By how much the number grows from a residue to the next: the number in the polymer where the file has it.

    Some programs count the residues that they built: such numbers run on over a gap that author numbers show.
    """
    here, there = one.position_in_polymer, other.position_in_polymer
    by_author = other.number - one.number
    if here is None or there is None or here[0] != there[0]:
        return by_author
    in_polymer = there[1] - here[1]
    return by_author if in_polymer == 1 < by_author and far else in_polymer
