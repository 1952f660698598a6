"""What must not be used as evidence: asked by training and evaluation alike."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from contactlm.retrieval.database import StructureDatabase
from contactlm.types import DataError

# 1abc, pdb1abc, pdb_00001abc, d1abca_ (SCOP), 1abcA00 (CATH), each followed by whatever is no letter or digit
_CODE = r"(?P<code>[1-9][a-z0-9]{3})"
_NAME = re.compile(
    rf"(?:(?:pdb|pdb_0000)?{_CODE}(?:[a-z]\d\d)?|d{_CODE.replace('code', 'scop')}[a-z0-9_.])(?![a-z0-9])"
)


def entry_of(chain_id: str) -> str:
    """Return the entry that a chain of a database is of, in lower case.

    The PDB code where the id begins with one (``1ABC_A``, ``pdb1abc_A``, ``1abc-assembly1_A``, ``1FAK_r_u_H``), else
    the file's stem: what is before the last ``_``.
    """
    name = chain_id.lower()
    match = _NAME.match(name)
    if match:
        return match["code"] or match["scop"]
    return name.rpartition("_")[0] or name


def entries_of(query_id: str) -> frozenset[str]:
    """Return the entries that a query may be of: as :func:`entry_of`, or the whole id (a complex has no chain's)."""
    name = query_id.lower()
    return frozenset([entry_of(name)] if _NAME.match(name) else [entry_of(name), name])


@dataclass(frozen=True)
class Exclusion:
    """Chains of the database that must not be hits."""

    entries: frozenset[str] = frozenset()  # in lower case: no chain of them, nor of a sequence of theirs
    sequences: frozenset[str] = frozenset()  # no chain of exactly such a sequence
    # no chain with more identical residues among the aligned pairs of known ones; gaps do not make a copy a relative
    max_identity: float = 0.95
    own_entry: bool = True  # no chain of the query's own entry

    def __post_init__(self) -> None:
        if not 0 < self.max_identity <= 1:
            raise DataError(f"max_identity is {self.max_identity}; it must be above 0 and at most 1")

    @classmethod
    def of_proteins(cls, ids: Iterable[str], sequences: Iterable[str], max_identity: float = 0.95) -> Exclusion:
        """Exclude the proteins a model is scored on: their entries, and whatever has their sequence."""
        entries = frozenset(entry for chain_id in ids for entry in entries_of(chain_id))
        return cls(entries, frozenset(sequences), max_identity)

    @classmethod
    def nothing(cls) -> Exclusion:
        """Allow every chain: for predictions, where the protein's own structure may be used if it is known."""
        return cls(max_identity=1.0, own_entry=False)

    @cached_property
    def digest(self) -> str:
        """Tells two exclusions apart, whatever order they were made in."""
        parts = (sorted(self.entries), sorted(self.sequences), self.max_identity, self.own_entry)
        return hashlib.sha256(repr(parts).encode()).hexdigest()[:40]


class ChainIndex:
    """The chains of a database by distinct sequence and by entry: which of them an exclusion leaves."""

    def __init__(self, database: StructureDatabase) -> None:
        members: dict[str, list[int]] = {}
        for chain in range(len(database)):
            members.setdefault(database.sequence_of(chain), []).append(chain)
        resolved = database.store.resolved_counts()
        self.sequences = list(members)  # in order of first appearance
        self._members = [sorted(chains, key=lambda chain: (-resolved[chain], chain)) for chains in members.values()]
        self._entries = [entry_of(name) for name in database.store.ids]
        self.known_entries = frozenset(self._entries)
        self._allowed: dict[str, NDArray[np.bool_]] = {}

    def usable(self, groups: NDArray[np.int64], own: frozenset[str], exclusion: Exclusion) -> list[tuple[int, int]]:
        """Which of m sequences, by number, may be used: index in ``groups``, and the chain that stands for it.

        That is the one with most resolved residues of no own entry. The ceiling of identity is for the caller to keep.
        """
        if exclusion.digest not in self._allowed:
            self._allowed[exclusion.digest] = self._find_allowed(exclusion)
        allowed = self._allowed[exclusion.digest]
        chosen = []
        for index in np.flatnonzero(allowed[groups]).tolist():
            members = self._members[groups[index]]
            chain = next((chain for chain in members if self._entries[chain] not in own), None)
            if chain is not None:
                chosen.append((index, chain))
        return chosen

    def _find_allowed(self, exclusion: Exclusion) -> NDArray[np.bool_]:
        def may_be_used(sequence: str, members: list[int]) -> bool:
            entries = (self._entries[chain] for chain in members)
            return sequence not in exclusion.sequences and exclusion.entries.isdisjoint(entries)

        return np.array(list(map(may_be_used, self.sequences, self._members)), np.bool_)
