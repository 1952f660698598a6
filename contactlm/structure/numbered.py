"""What a structure file says of the residues of a map: their numbers, positions and secondary structure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path

import numpy as np
from Bio.Align import Alignment, PairwiseAligner, substitution_matrices
from numpy.typing import NDArray

from contactlm.structure.parse import SEQUENCES, NumberedChain, read_numbered
from contactlm.structure.polymer import linked
from contactlm.structure.secondary import helices_and_strands
from contactlm.types import StructureError

LEAST_IDENTITY = 0.25  # of aligned pairs: below, a chain is no relative of the sequence
OWN_IDENTITY = 0.95  # from here on a chain counts as the protein's own
LEAST_ALIGNED = 0.3  # of the sequence: a shorter alignment shows little of its map
STATES = "-HE"  # loop, helix, strand: letters of `FileResidues.states`
_GAP_OPEN, _GAP_EXTEND = -11.0, -1.0


@dataclass(frozen=True, eq=False)
class FileResidues:
    """L residues of a map, as a structure file has them.

    Attributes:
        file: The structure file.
        chains: L author chain ids; empty where the file leaves them blank, or has no such residue.
        numbers: L author residue numbers with insertion codes, such as ``52A``; empty where the file has no such
            residue.
        cb: Virtual C-beta (C-alpha where contacts are between these), float32 (L, 3), in Å; NaN where the file has no
            such residue.
        states: Secondary structure, L letters: H helix, E strand, - neither or unknown.
        identity: Share of the aligned residues that are the same; 1.0 where the file is the one the sequence came from.
    """

    file: str
    chains: list[str]
    numbers: list[str]
    cb: NDArray[np.float32]
    states: str
    identity: float = 1.0

    def __post_init__(self) -> None:
        L = len(self.numbers)
        lengths = (len(self.chains), len(self.states), self.cb.shape)
        if lengths != (L, L, (L, 3)):
            raise ValueError(f"{self.file}: {L} numbers, but chains, states and cb are of {lengths}")

    @property
    def is_own(self) -> bool:
        """Whether the structure is the protein's own, so that pairs apart in it are no contacts."""
        return self.identity >= OWN_IDENTITY


def find_residues(
    path: str | Path, sequence: str, chain_lengths: Sequence[int] | None = None, name: str = "", atom: str = "cb"
) -> FileResidues:
    """Find the residues of a sequence in a structure file: by its chains' own sequences, else by alignment.

    Args:
        path: A structure file, as for :func:`contactlm.read_chains`.
        sequence: L letters.
        chain_lengths: Of a complex, residues of each chain; None: it is one chain.
        name: The map's id, such as ``1abc_B``, which chooses among copies of a chain.
        atom: ``cb`` or ``ca``: whose coordinates to take.

    Returns:
        The residues. Each chain of a complex has a chain of the file for itself.
    """
    ends = [0, *accumulate(chain_lengths or [len(sequence)])]
    parts = [sequence[start:stop] for start, stop in pairwise(ends)]
    same = _same_sequences(path, parts, name)
    if same is not None:
        return _joined(
            path, [(chain, np.arange(len(part))) for chain, part in zip(same, parts, strict=True)], 1.0, atom
        )
    left, found, equal = read_numbered(path), list[tuple[NumberedChain, NDArray[np.intp]]](), []
    for part in parts:
        if not left:
            raise StructureError(path, f"it has {len(found)} protein chains, but the map has {len(parts)}")
        chain, positions, identity = _nearest(path, part, left)
        left = [other for other in left if other is not chain]
        found.append((chain, positions))
        equal.append(identity)
    return _joined(path, found, float(np.mean(equal)), atom)


def _same_sequences(path: str | Path, parts: Sequence[str], name: str) -> list[NumberedChain] | None:
    """Chains of exactly these sequences, each once; None where there are none."""
    for how in SEQUENCES:
        left, found = read_numbered(path, how), list[NumberedChain]()
        for part in parts:
            equal = [chain for chain in left if chain.chain.sequence == part]
            named = [chain for chain in equal if name == chain.chain.id or name.startswith(f"{chain.chain.id}_")]
            if not equal:
                break
            found.append((named or equal)[0])
            left = [chain for chain in left if chain is not found[-1]]
        if len(found) == len(parts):
            return found
    return None


def _nearest(
    path: str | Path, part: str, chains: Sequence[NumberedChain]
) -> tuple[NumberedChain, NDArray[np.intp], float]:
    """The chain that aligns best, the position in it of each residue (-1: none), and their identity."""
    aligner = PairwiseAligner(mode="local", open_gap_score=_GAP_OPEN, extend_gap_score=_GAP_EXTEND)
    aligner.substitution_matrix = substitution_matrices.load("BLOSUM62")
    query = _plain(part)
    best = max(chains, key=lambda chain: aligner.score(query, _plain(chain.chain.sequence)))
    positions = _positions(aligner.align(query, _plain(best.chain.sequence)), len(part))
    at = np.flatnonzero(positions >= 0)
    same = sum(part[i] == best.chain.sequence[positions[i]] for i in at.tolist())
    identity = same / len(at) if len(at) else 0.0
    if identity < LEAST_IDENTITY or len(at) < LEAST_ALIGNED * len(part):
        raise StructureError(
            path,
            f"no chain is related to the sequence: the nearest, {best.chain.id}, aligns with {len(at)} of {len(part)} "
            f"residues, {identity:.0%} of them the same; give a structure of this protein or of a relative",
        )
    return best, positions, identity


def _positions(alignments: Sequence[Alignment], length: int) -> NDArray[np.intp]:
    positions = np.full(length, -1, dtype=np.intp)
    if len(alignments):
        for (start, stop), (other, _) in zip(*alignments[0].aligned, strict=True):
            positions[start:stop] = np.arange(other, other + stop - start)
    return positions


def _plain(sequence: str) -> str:
    """Letters that the substitution matrix has."""
    return "".join(letter if letter in "ARNDCQEGHILKMFPSTWYVBZX" else "X" for letter in sequence)


def _joined(
    path: str | Path, found: Sequence[tuple[NumberedChain, NDArray[np.intp]]], identity: float, atom: str
) -> FileResidues:
    chains, numbers, states, cb = list[str](), list[str](), "", []
    for chain, positions in found:
        own = _states(chain)
        there = [chain.numbers[at] if at >= 0 else "" for at in positions.tolist()]
        numbers += there
        chains += [chain.name if number else "" for number in there]
        states += "".join(own[at] if at >= 0 else STATES[0] for at in positions.tolist())
        atoms = chain.chain.ca if atom == "ca" else chain.chain.cb
        cb.append(np.where((positions >= 0)[:, None], atoms[positions], np.float32("nan")))
    return FileResidues(str(Path(path).absolute()), chains, numbers, np.concatenate(cb), states, identity)


def _states(chain: NumberedChain) -> str:
    """Helices and strands by the C-alpha trace (P-SEA), which needs no further library."""
    helix, strand = helices_and_strands(chain.chain.ca, linked(chain.backbone))
    return "".join(STATES[1] if h else STATES[2] if e else STATES[0] for h, e in zip(helix, strand, strict=True))
