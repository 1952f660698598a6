"""Whether a chain of a structure file is the one that a list asks for, and where its residues are."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
from Bio.PDB.Chain import Chain as BioChain
from Bio.PDB.MMCIFParser import MMCIFParser
from Bio.PDB.PDBExceptions import PDBException
from Bio.PDB.PDBParser import PDBParser
from Bio.PDB.Residue import Residue as BioResidue
from numpy.typing import NDArray

from contactlm.alphabet import UNKNOWN_LETTER
from contactlm.benchmark.lists import AskedChain
from contactlm.benchmark.structures import FoundFiles, author_chains, entry_in
from contactlm.homology.alignment import Aligner
from contactlm.metrics.contracts import Atom
from contactlm.structure.files import brief, read_blocks, split_name
from contactlm.structure.parse import read_chains
from contactlm.types import Chain, StructureError

MIN_IDENTITY = 0.95  # of the known residues of the list that the file has
MIN_COVERAGE = 0.9  # share of the list's residues that the file has, resolved or not
MIN_RESOLVED = 0.5  # share of the list's residues with coordinates
FOUND, REPLACED, MISSING = "found", "replaced", "missing"
_PARSERS = {"pdb": PDBParser, "mmcif": MMCIFParser}
_Position = tuple[float, ...]


@dataclass(frozen=True, eq=False)
class CheckedChain:
    """What became of one chain of a list; identity and coverage are NaN where the list has no sequence."""

    asked: AskedChain  # the chain that the list asks for
    state: str  # found; replaced, by another chain or entry with the same sequence; or missing
    reason: str = ""  # why it is replaced or missing
    path: Path | None = None  # its file; None when missing, as what follows
    chain: Chain | None = None  # the chain of that file
    # index in the chain of each residue of the list's sequence (of the file's, where the list has none); −1: none
    positions: NDArray[np.int64] | None = None  # (L,)
    identity: float = float("nan")  # share of the aligned residues that agree
    coverage: float = float("nan")  # share of the list's residues that the file has

    @property
    def sequence(self) -> str:
        """The residues that are scored, L letters."""
        return self.asked.sequence or (self.chain.sequence if self.chain is not None else "")

    def coordinates(self, atom: Atom) -> NDArray[np.float32]:
        """Positions of an atom of every residue that is scored, float32 (L, 3), in Å; NaN where unresolved."""
        if self.chain is None or self.positions is None or self.path is None:
            raise ValueError(f"{self.asked.id} is missing: it has no coordinates")
        real = beta_carbons(self.path, self.chain) if atom == "cb" else None
        own = real if real is not None else self.chain.ca if atom == "ca" else self.chain.cb
        placed = np.concatenate([own, np.full((1, 3), np.nan, np.float32)])  # −1 takes the last row
        return placed[self.positions]


def check_chains(
    chains: Sequence[AskedChain], files: FoundFiles, advance: Callable[[], object] = lambda: None
) -> list[CheckedChain]:
    """Look up every chain of a list in the files of its entries; ``advance`` is called after each."""
    checked = []
    read = lru_cache(maxsize=1)(_chains_in)  # lists name several parts of one chain
    for asked in chains:
        checked.append(_check(asked, files, read))
        advance()
    return checked


def _chains_in(path: Path) -> dict[str, Chain]:
    """Chains of a file by the author's chain id."""
    stem = split_name(path)[0]
    return {chain.id[len(stem) + 1 :]: chain for chain in read_chains(path)}


def counts(checked: Sequence[CheckedChain]) -> Counter[str]:
    """How many chains were ``asked``, ``found`` (those replaced among them), ``replaced`` and ``missing``."""
    states = Counter(each.state for each in checked)
    found = states[FOUND] + states[REPLACED]
    return Counter(asked=len(checked), found=found, replaced=states[REPLACED], missing=states[MISSING])


def _check(asked: AskedChain, files: FoundFiles, read: Callable[[Path], Mapping[str, Chain]]) -> CheckedChain:
    if asked.facts.get("scorable") == "0":
        return CheckedChain(asked, MISSING, "the list says that it cannot be scored (scorable is 0)")
    path = files.of(asked)
    if path is None:
        return CheckedChain(asked, MISSING, files.problems.get(asked.entry, "no file of that entry is there"))
    try:
        chains = read(path)
        name = author_chains(path).get(asked.chain) if asked.naming == "label" else asked.chain
        own_entry = entry_in(path)
    except StructureError as error:
        return CheckedChain(asked, MISSING, str(error))
    checked = _choose(asked, path, name, chains)
    if checked.state != MISSING and own_entry not in (None, asked.entry):
        said = f"the file of {asked.entry} says that it is entry {own_entry}"
        return replace(checked, state=REPLACED, reason=f"{checked.reason}; {said}" if checked.reason else said)
    return checked


def _choose(asked: AskedChain, path: Path, name: str | None, chains: Mapping[str, Chain]) -> CheckedChain:
    """Take the chain that is named; where it is not there, another of the same sequence."""
    if name is not None and name in chains:
        return _fit(asked, path, chains[name])
    there = f"the file has no chain {asked.chain} ({asked.naming} id), but {', '.join(map(repr, chains))}"
    for other, chain in chains.items() if asked.sequence else ():
        checked = _fit(asked, path, chain)
        if checked.state == FOUND:
            return replace(checked, state=REPLACED, reason=f"{there}; chain {other} has its sequence")
    return CheckedChain(asked, MISSING, there)


def _fit(asked: AskedChain, path: Path, chain: Chain) -> CheckedChain:
    """Compare a chain with what the list says of it."""
    if asked.sequence is None:
        positions, identity, coverage = np.arange(len(chain)), float("nan"), float("nan")
        fault = _length_fault(asked, chain)
    else:
        positions, identity, coverage = place(asked.sequence, chain.sequence)
        fault = ""
        if identity < MIN_IDENTITY or coverage < MIN_COVERAGE:
            fault = (
                f"chain {chain.id} has another sequence: {coverage:.0%} of the list's residues, {identity:.0%} of "
                f"these identical (at least {MIN_COVERAGE:.0%} and {MIN_IDENTITY:.0%} are needed)"
            )
    resolved = int(chain.resolved[positions[positions >= 0]].sum())
    if not fault and resolved < max(2, MIN_RESOLVED * len(positions)):
        fault = f"too few residues: {resolved} of {len(positions)} have coordinates"
    if fault:
        return CheckedChain(asked, MISSING, fault, identity=identity, coverage=coverage)
    return CheckedChain(asked, FOUND, "", path, chain, positions, identity, coverage)


def _length_fault(asked: AskedChain, chain: Chain) -> str:
    """A list without sequences may count all residues or those resolved."""
    wanted = asked.length
    for length in (len(chain), int(chain.resolved.sum())):
        if wanted is None or min(length, wanted) >= MIN_COVERAGE * max(length, wanted):
            return ""
    return f"chain {chain.id} has {len(chain)} residues, the list says {wanted}: another sequence"


def place(wanted: str, there: str) -> tuple[NDArray[np.int64], float, float]:
    """Find the L residues of a sequence in a longer, shorter or slightly different one.

    Returns:
        The index in ``there`` of each residue, int64 (L,), −1: none; the share of identical ones among those aligned,
        and the share aligned, both without unknown residues (X) of either.
    """
    start = there.find(wanted)
    if start >= 0:
        return np.arange(start, start + len(wanted)), 1.0, 1.0
    positions = np.full(len(wanted), -1, dtype=np.int64)
    for hit in Aligner([there]).align(wanted, np.zeros(1, np.int64)):
        i, j = hit.query_start, hit.target_start
        for column in hit.alignment or "":
            if column in "MX":
                positions[i] = j
            i += column != "I"
            j += column != "D"
    known = [i for i, letter in enumerate(wanted) if letter != UNKNOWN_LETTER]
    aligned = [i for i in known if positions[i] >= 0 and there[positions[i]] != UNKNOWN_LETTER]
    identical = sum(wanted[i] == there[positions[i]] for i in aligned)
    covered = sum(positions[i] >= 0 for i in known)
    return positions, identical / max(len(aligned), 1), covered / max(len(known), 1)


def beta_carbons(path: str | Path, chain: Chain) -> NDArray[np.float32]:
    """Look up the C-beta atoms, float32 (L, 3) in Å, of a chain that was read from a file, by its C-alphas' positions.

    That of the same alternate location as the C-alpha; the C-alpha of glycine; NaN where the residue is unresolved or
    the file lacks its C-beta. For figures that were measured with those and not with virtual ones.
    """
    with closing(read_blocks(path)) as blocks:
        text = io.StringIO("".join(blocks))
    kind = split_name(path)[1]
    if kind not in _PARSERS:
        raise StructureError(path, "C-beta atoms are read from PDB and mmCIF files: give one of these")
    parser = _PARSERS[kind](QUIET=True)
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
