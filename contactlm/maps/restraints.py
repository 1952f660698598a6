"""The likely pairs of a map as restraints, for programs that fold and dock.

What each writer follows:

* Boltz 2.2.0, ``docs/prediction.md`` (1 September 2025): YAML; residues are counted from 1 in each chain.
* Chai 0.6.1, ``examples/restraints/README.md`` (17 November 2024): FASTA, whose chains are A, B, … in their order, and
  a CSV file of contacts between chains; a residue is its letter and number in its chain.
* Protenix 2.0.0, ``docs/infer_json_format.md`` (11 March 2026): JSON; a chain is a copy of an entity; contacts between
  chains only.
* HADDOCK3 2026.8.0, ``examples/``, ``haddock3-restraints validate_tbl`` (13 May 2025) and preprocessing: CNS restraints
  between molecules. Residues have the structure's numbers, as HADDOCK3 changes them: insertion codes are deleted, and
  residues behind them are numbered on.
* Rosetta, "Constraint File" (30 August 2016): residues are counted from 1 through all chains, as in a pose that is made
  of the sequence.
* Helico, ``helico.inference.contacts_from_pairs`` (12 August 2026): pairs (i, j), or (chain, i, chain, j), from 0.

The first three and Helico fold the sequence, and Rosetta a pose of it, so that residues without coordinates count. In
HADDOCK3 such residues are not there, and pairs of them are left out.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from string import ascii_letters
from typing import Any, NamedTuple

import numpy as np
import yaml

from contactlm.atomic import atomic_path, write_csv
from contactlm.maps.complexes import chain_spans, find_interfaces
from contactlm.maps.pairs import LEAST_SEPARATION, MapValues, highest, listed_pairs
from contactlm.types import ContactLMError, DataError, chain_letters, chain_numbers

STANDARD = frozenset("ACDEFGHIKLMNPQRSTVWY")
TOLERANCE = 2.0  # Å, on both sides of a predicted distance
BOLTZ_BOUNDS = (4.0, 20.0)  # Å, that Boltz supports
AMBIGUOUS = "2.0 2.0 0.0"  # of any atoms of two residues: up to 2 Å, on HADDOCK's effective distance


@dataclass(frozen=True)
class RestraintOptions:
    """Which pairs become restraints.

    Attributes:
        top: Most pairs, in units of L, the most probable first.
        min_separation: Least |i − j| within a chain.
        min_probability: Least probability.
    """

    top: float = 1.0
    min_separation: int = LEAST_SEPARATION
    min_probability: float = 0.3

    def __post_init__(self) -> None:
        if not 0 < self.top < math.inf:
            raise ContactLMError(f"restraints.top: {self.top} given; it must be positive")
        if self.min_separation < 1:
            raise ContactLMError(f"restraints.min_separation: {self.min_separation} given; it must be at least 1")
        if not 0 <= self.min_probability <= 1:
            raise ContactLMError(f"restraints.min_probability: {self.min_probability} given; it must be in [0, 1]")


class Restraint(NamedTuple):
    """A pair of residues, the probability that they touch, and bounds of their distance in Å."""

    i: int  # counted from 0 through all chains
    j: int
    probability: float
    lower: float
    upper: float


Writer = Callable[[MapValues, Path, RestraintOptions], None]


def chosen_pairs(
    contact_map: MapValues, options: RestraintOptions, only_inter: bool = False, there: Any = None
) -> list[Restraint]:
    """The pairs, the most probable first; ``there``: bool (L,), residues that can have restraints.

    A contact's distance is between 0 and what defines a contact; where the map has distances, within 2 Å of them.

    Raises:
        DataError: No pair is left.
    """
    i, j, p = listed_pairs(contact_map, options.min_separation, options.min_probability)
    chain = chain_numbers(contact_map.chain_lengths)
    kept = chain[i] != chain[j] if only_inter else np.ones(len(p), dtype=np.bool_)
    kept &= True if there is None else there[i] & there[j]
    i, j, p = i[kept], j[kept], p[kept]
    order = highest(p, math.ceil(options.top * len(contact_map)))
    if not len(order):
        where = "between chains " if only_inter else ""
        raise DataError(
            f"no pair {where}has a probability of {options.min_probability:g} or more; lower restraints.min_probability"
        )
    lower, upper = np.zeros(len(p)), np.full(len(p), contact_map.contact.below)
    distance = getattr(contact_map, "distance", None)
    if distance is not None:
        lower, upper = np.maximum(distance[i, j] - TOLERANCE, 0.0), distance[i, j] + TOLERANCE
    columns = (values[order].tolist() for values in (i, j, p, lower, upper))
    return [Restraint(*row) for row in zip(*columns, strict=True)]


class _Numbering:
    """Chain and number in its chain, from 1, of each residue; and the sequences with 20 letters and X."""

    def __init__(self, contact_map: MapValues) -> None:
        self.spans = chain_spans(contact_map.chain_lengths)
        self.chain = chain_numbers(contact_map.chain_lengths).tolist()
        self.sequence = "".join(letter if letter in STANDARD else "X" for letter in contact_map.sequence)
        self.sequences = [self.sequence[span] for span in self.spans]
        self.names = contact_map.chain_names
        self.atom = contact_map.contact.atom.upper()
        copies: dict[str, list[int]] = {}
        for chain, sequence in enumerate(self.sequences):
            copies.setdefault(sequence, []).append(chain)
        self.entities = list(copies.items())  # distinct sequences, each with its chains

    def number(self, i: int) -> int:
        return i - self.spans[self.chain[i]].start + 1

    def atom_of(self, i: int) -> str:
        """The atom that stands for a residue: glycine, and what is unknown, have no C-beta."""
        return "CA" if self.sequence[i] in "GX" else self.atom


def write_boltz(contact_map: MapValues, path: Path, options: RestraintOptions) -> None:
    """Write sequences and contacts for Boltz; its ``max_distance`` is held between 4 and 20 Å."""
    at, names = _Numbering(contact_map), contact_map.chain_names

    def token(i: int) -> list[Any]:
        return [names[at.chain[i]], at.number(i)]

    contacts = [
        {"token1": token(i), "token2": token(j), "max_distance": round(float(np.clip(upper, *BOLTZ_BOUNDS)), 2)}
        for i, j, _, _, upper in chosen_pairs(contact_map, options)
    ]
    proteins = [{"protein": {"id": [names[c] for c in own], "sequence": text}} for text, own in at.entities]
    content = {"version": 1, "sequences": proteins, "constraints": [{"contact": contact} for contact in contacts]}
    _write(path, yaml.safe_dump(content, sort_keys=False, default_flow_style=None, width=10**6))


def write_chai_fasta(contact_map: MapValues, path: Path, options: RestraintOptions) -> None:
    """Write the chains for Chai, which calls them A, B, … in their order."""
    sequences, names = _Numbering(contact_map).sequences, contact_map.chain_names
    stem = "_".join(contact_map.id.split())
    _write(path, "".join(f">protein|name={stem}_{n}\n{s}\n" for n, s in zip(names, sequences, strict=True)))


def write_chai_restraints(contact_map: MapValues, path: Path, options: RestraintOptions) -> None:
    """Write the contacts between chains for Chai."""
    at = _Numbering(contact_map)
    letters = chain_letters(len(at.spans))
    rows: list[dict[str, Any]] = []
    for i, j, p, lower, upper in chosen_pairs(contact_map, options, only_inter=True):
        places = [(letters[at.chain[k]], f"{at.sequence[k]}{at.number(k)}") for k in (i, j)]
        ends = {f"{key}{side}": value for side, place in zip("AB", places, strict=True)
                for key, value in zip(("chain", "res_idx"), place, strict=True)}  # fmt: skip
        about = {"connection_type": "contact", "confidence": f"{p:.4f}", "min_distance_angstrom": f"{lower:.2f}"}
        more = {"max_distance_angstrom": f"{upper:.2f}", "comment": "contactlm"}
        rows.append({"restraint_id": f"restraint{len(rows)}", **ends, **about, **more})
    write_csv(path, rows)


def write_protenix(contact_map: MapValues, path: Path, options: RestraintOptions) -> None:
    """Write sequences and contacts between chains for Protenix."""
    at = _Numbering(contact_map)
    place = {c: (entity, copy) for entity, (_, own) in enumerate(at.entities, 1) for copy, c in enumerate(own, 1)}
    contacts = []
    for i, j, _, lower, upper in chosen_pairs(contact_map, options, only_inter=True):
        contact: dict[str, Any] = {}
        for end, k in ((1, i), (2, j)):
            entity, copy = place[at.chain[k]]
            contact |= {f"entity{end}": entity, f"copy{end}": copy}
            contact |= {f"position{end}": at.number(k), f"atom{end}": at.atom_of(k)}
        contacts.append({**contact, "max_distance": round(upper, 2), "min_distance": round(lower, 2)})
    names = contact_map.chain_names
    proteins = [
        {"proteinChain": {"sequence": text, "count": len(own), "id": [names[c] for c in own]}}
        for text, own in at.entities
    ]
    _write(
        path,
        json.dumps([{"name": contact_map.id, "sequences": proteins, "constraint": {"contact": contacts}}], indent=1),
    )


def haddock_numbers(contact_map: MapValues) -> list[int | None]:
    """Each residue's number in HADDOCK3; None: it has no coordinates there.

    A number that came before in its chain (52, 52A) is one higher than the last, and all that follow are moved on.
    """
    at, residues = _Numbering(contact_map), contact_map.residues
    if residues is None:
        return [at.number(i) for i in range(len(contact_map))]
    found: list[int | None] = []
    seen, moved, before = set[int](), 0, -1
    for chain, text, resolved in zip(at.chain, residues.numbers, np.isfinite(residues.cb[:, 0]).tolist(), strict=True):
        if chain != before:
            seen, moved, before = set(), 0, chain
        if text:
            number = int(text.rstrip(ascii_letters))
            moved += number in seen
            seen.add(number)
        found.append(number + moved if text and resolved else None)
    return found


def write_unambiguous(contact_map: MapValues, path: Path, options: RestraintOptions) -> None:
    """Write the pairs between chains as unambiguous restraints of HADDOCK3, between C-betas."""
    at, numbers = _Numbering(contact_map), haddock_numbers(contact_map)
    there = np.array([number is not None for number in numbers])
    ends = [f"(resid {n} and name {at.atom_of(i)} and segid {at.names[at.chain[i]]})" for i, n in enumerate(numbers)]
    lines = [_remark(contact_map)]
    for i, j, _, lower, upper in chosen_pairs(contact_map, options, only_inter=True, there=there):
        wanted = (lower + upper) / 2 if lower else upper  # of distances: d, and how far below and above it may be
        lines.append(f"assign {ends[i]} {ends[j]} {wanted:.2f} {wanted - lower:.2f} {upper - wanted:.2f}")
    _write(path, "\n".join([*lines, ""]))


def write_ambiguous(contact_map: MapValues, path: Path, options: RestraintOptions) -> None:
    """Write the residues of interfaces as ambiguous restraints of HADDOCK3: each touches some of the other chain."""
    numbers, lines = haddock_numbers(contact_map), [_remark(contact_map)]
    for interface in find_interfaces(contact_map, options.min_probability):
        sides = [[numbers[i] for i in side if numbers[i] is not None] for side in interface.residues]
        for own, other in ((0, 1), (1, 0)):
            partners = [f"       (resid {n} and segid {interface.chains[other]})" for n in sides[other]]
            for number in sides[own] if partners else ():
                lines.append(f"assign (resid {number} and segid {interface.chains[own]})\n      (")
                lines.append("\n     or\n".join(partners) + f"\n      ) {AMBIGUOUS}")
    if len(lines) == 1:
        raise DataError(f"no pair between chains has a probability of {options.min_probability:g} or more")
    _write(path, "\n".join([*lines, ""]))


def _remark(contact_map: MapValues) -> str:
    return f"! {' '.join(contact_map.id.split())}, predicted by contactlm"


def write_rosetta(contact_map: MapValues, path: Path, options: RestraintOptions) -> None:
    """Write the pairs as bounded constraints of Rosetta, between C-betas."""
    at = _Numbering(contact_map)
    lines = [
        f"AtomPair {at.atom_of(i)} {i + 1} {at.atom_of(j)} {j + 1} BOUNDED {lower:.2f} {upper:.2f} 1.0 0.5 contact"
        for i, j, _, lower, upper in chosen_pairs(contact_map, options)
    ]
    _write(path, "\n".join([*lines, ""]))


def write_pair_list(contact_map: MapValues, path: Path, options: RestraintOptions) -> None:
    """Write sequences by chain, pairs counted from 0 in their chains, and their probabilities, as JSON."""
    at, names, chosen = _Numbering(contact_map), contact_map.chain_names, chosen_pairs(contact_map, options)
    several = len(names) > 1

    def place(i: int) -> list[Any]:
        return [names[at.chain[i]], at.number(i) - 1] if several else [i]

    content = {
        "id": contact_map.id,
        "sequences": {name: contact_map.sequence[span] for name, span in zip(names, at.spans, strict=True)},
        "contact": str(contact_map.contact),
        "one_indexed": False,
        "pairs": [[*place(each.i), *place(each.j)] for each in chosen],
        "probability": [round(each.probability, 5) for each in chosen],
        "max_distance": [round(each.upper, 2) for each in chosen],
    }
    _write(path, json.dumps(content))


def _write(path: Path, text: str) -> None:
    with atomic_path(path) as temporary, temporary.open("x", encoding="utf-8", newline="\n") as handle:
        handle.write(text)


RESTRAINTS: dict[str, Writer] = {
    ".boltz.yaml": write_boltz,
    ".chai.fasta": write_chai_fasta,
    ".chai.restraints": write_chai_restraints,
    ".protenix.json": write_protenix,
    ".unambig.tbl": write_unambiguous,
    ".ambig.tbl": write_ambiguous,
    ".cst": write_rosetta,
    ".pairs.json": write_pair_list,
}
TOOLS: dict[str, tuple[str, ...]] = {
    "boltz": (".boltz.yaml",),
    "chai": (".chai.restraints", ".chai.fasta"),
    "protenix": (".protenix.json",),
    "haddock": (".unambig.tbl", ".ambig.tbl"),
    "rosetta": (".cst",),
    "pairs": (".pairs.json",),
}
"""The files of each format; the first fails where there is nothing to write."""


def endings(kinds: Iterable[str]) -> list[str]:
    """What the files of some formats end in."""
    return [ending for kind in kinds for ending in TOOLS.get(kind, (f".{kind}",))]
