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

from contactlm.atomic import atomic_path
from contactlm.maps.complexes import find_interfaces
from contactlm.maps.pairs import LEAST_SEPARATION, MapValues, highest, listed_pairs
from contactlm.types import ContactLMError, DataError, chain_letters, chain_numbers, chain_spans

STANDARD = frozenset("ACDEFGHIKLMNPQRSTVWY")
TOLERANCE = 2.0  # Å, on both sides of a predicted distance
CHAI_COLUMNS = (
    *("restraint_id", "chainA", "res_idxA", "chainB", "res_idxB", "connection_type", "confidence"),
    *("min_distance_angstrom", "max_distance_angstrom", "comment"),
)
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
        bounds = {"top": (1e-9, 1e9), "min_separation": (1, 10**9), "min_probability": (0, 1)}
        for name, (least, most) in bounds.items():
            if not least <= getattr(self, name) <= most:
                raise ContactLMError(f"restraints.{name}: {getattr(self, name)} given; it must be {least} to {most}")


class Restraint(NamedTuple):
    """A pair of residues, the probability that they touch, and bounds of their distance in Å."""

    i: int  # counted from 0 through all chains
    j: int
    probability: float
    lower: float
    upper: float


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


class _Chains:
    """Chain and number in its chain, from 1, of each residue; and sequences of 20 letters and X."""

    def __init__(self, contact_map: MapValues) -> None:
        self.spans, self.names = chain_spans(contact_map.chain_lengths), contact_map.chain_names
        self.of = chain_numbers(contact_map.chain_lengths).tolist()
        self.sequence = "".join(letter if letter in STANDARD else "X" for letter in contact_map.sequence)
        self.atom = contact_map.contact.atom.upper()
        self.entities: dict[str, list[int]] = {}  # chains by their sequence
        for chain, span in enumerate(self.spans):
            self.entities.setdefault(self.sequence[span], []).append(chain)

    def place(self, i: int, first: int = 1) -> list[Any]:
        return [self.names[self.of[i]], i - self.spans[self.of[i]].start + first]

    def atom_of(self, i: int) -> str:
        """The atom that stands for a residue: glycine, and what is unknown, have no C-beta."""
        return "CA" if self.sequence[i] in "GX" else self.atom


def _boltz(contact_map: MapValues, options: RestraintOptions) -> str:
    at = _Chains(contact_map)
    contacts = [
        {"contact": {"token1": at.place(i), "token2": at.place(j), "max_distance": float(np.clip(upper, 4.0, 20.0))}}
        for i, j, _, _, upper in chosen_pairs(contact_map, options)
    ]
    proteins = [{"protein": {"id": [at.names[c] for c in own], "sequence": text}} for text, own in at.entities.items()]
    content = {"version": 1, "sequences": proteins, "constraints": contacts}
    return yaml.safe_dump(content, sort_keys=False, default_flow_style=None, width=10**6)


def _chai_fasta(contact_map: MapValues, options: RestraintOptions) -> str:
    at, stem = _Chains(contact_map), "_".join(contact_map.id.split())
    named = zip(at.names, at.spans, strict=True)
    return "".join(f">protein|name={stem}_{name}\n{at.sequence[span]}\n" for name, span in named)


def _chai_restraints(contact_map: MapValues, options: RestraintOptions) -> str:
    at, lines = _Chains(contact_map), [",".join(CHAI_COLUMNS)]
    letters = chain_letters(len(at.spans))
    for n, (i, j, p, lower, upper) in enumerate(chosen_pairs(contact_map, options, only_inter=True)):
        ends = ",".join(f"{letters[at.of[k]]},{at.sequence[k]}{at.place(k)[1]}" for k in (i, j))
        lines.append(f"restraint{n},{ends},contact,{p:.4f},{lower:.2f},{upper:.2f},contactlm")
    return _joined(lines)


def _protenix(contact_map: MapValues, options: RestraintOptions) -> str:
    at, contacts = _Chains(contact_map), []
    copies = {c: (e, copy) for e, own in enumerate(at.entities.values(), 1) for copy, c in enumerate(own, 1)}
    for i, j, _, lower, upper in chosen_pairs(contact_map, options, only_inter=True):
        contact: dict[str, Any] = {"max_distance": round(upper, 2), "min_distance": round(lower, 2)}
        for end, k in ((1, i), (2, j)):
            entity, copy = copies[at.of[k]]
            contact |= {f"entity{end}": entity, f"copy{end}": copy}
            contact |= {f"position{end}": at.place(k)[1], f"atom{end}": at.atom_of(k)}
        contacts.append(contact)
    proteins = [
        {"proteinChain": {"sequence": text, "count": len(own), "id": [at.names[c] for c in own]}}
        for text, own in at.entities.items()
    ]
    return json.dumps([{"name": contact_map.id, "sequences": proteins, "constraint": {"contact": contacts}}], indent=1)


def haddock_numbers(contact_map: MapValues) -> list[int | None]:
    """Each residue's number in HADDOCK3; None: it has no coordinates there.

    A number that came before in its chain (52, 52A) is one higher than the last, and all that follow are moved on.
    """
    at, residues = _Chains(contact_map), contact_map.residues
    if residues is None:
        return [at.place(i)[1] for i in range(len(contact_map))]
    found: list[int | None] = []
    seen, moved, before = set[int](), 0, -1
    for chain, text, resolved in zip(at.of, residues.numbers, np.isfinite(residues.cb[:, 0]).tolist(), strict=True):
        if chain != before:
            seen, moved, before = set(), 0, chain
        if text:
            number = int(text.rstrip(ascii_letters))
            moved += number in seen
            seen.add(number)
        found.append(number + moved if text and resolved else None)
    return found


def _unambiguous(contact_map: MapValues, options: RestraintOptions) -> str:
    at, numbers = _Chains(contact_map), haddock_numbers(contact_map)
    there = np.array([number is not None for number in numbers])
    ends = [f"(resid {n} and name {at.atom_of(i)} and segid {at.place(i)[0]})" for i, n in enumerate(numbers)]
    lines = []
    for i, j, _, lower, upper in chosen_pairs(contact_map, options, only_inter=True, there=there):
        wanted = (lower + upper) / 2 if lower else upper  # a distance, and how far below and above it may be
        lines.append(f"assign {ends[i]} {ends[j]} {wanted:.2f} {wanted - lower:.2f} {upper - wanted:.2f}")
    return _joined(lines)


def _ambiguous(contact_map: MapValues, options: RestraintOptions) -> str:
    """Each residue of an interface touches some residue of the other side."""
    numbers, lines = haddock_numbers(contact_map), list[str]()
    for interface in find_interfaces(contact_map, options.min_probability):
        sides = [[numbers[i] for i in side if numbers[i] is not None] for side in interface.residues]
        for own, other in ((0, 1), (1, 0)):
            partners = [f"       (resid {n} and segid {interface.chains[other]})" for n in sides[other]]
            for number in sides[own] if partners else ():
                lines.append(f"assign (resid {number} and segid {interface.chains[own]})\n      (")
                lines.append("\n     or\n".join(partners) + f"\n      ) {AMBIGUOUS}")
    if not lines:
        raise DataError(f"no pair between chains has a probability above {options.min_probability:g}")
    return _joined(lines)


def _rosetta(contact_map: MapValues, options: RestraintOptions) -> str:
    at = _Chains(contact_map)
    return _joined(
        f"AtomPair {at.atom_of(i)} {i + 1} {at.atom_of(j)} {j + 1} BOUNDED {lower:.2f} {upper:.2f} 1.0 0.5 contact"
        for i, j, _, lower, upper in chosen_pairs(contact_map, options)
    )


def _pair_list(contact_map: MapValues, options: RestraintOptions) -> str:
    at, chosen = _Chains(contact_map), chosen_pairs(contact_map, options)
    used = slice(0 if len(at.spans) > 1 else 1, None)  # of one chain numbers alone
    content = {
        "id": contact_map.id,
        "sequences": {name: contact_map.sequence[span] for name, span in zip(at.names, at.spans, strict=True)},
        "contact": str(contact_map.contact),
        "one_indexed": False,
        "pairs": [[*at.place(each.i, 0)[used], *at.place(each.j, 0)[used]] for each in chosen],
        "probability": [round(each.probability, 5) for each in chosen],
        "max_distance": [round(each.upper, 2) for each in chosen],
    }
    return json.dumps(content)


def _joined(lines: Iterable[str]) -> str:
    return "".join(f"{line}\n" for line in lines)


def write_restraints(contact_map: MapValues, path: Path, ending: str, options: RestraintOptions | None = None) -> None:
    """Write the file of an ending of :data:`RESTRAINTS`; :class:`DataError` where no pair may be listed."""
    text = RESTRAINTS[ending](contact_map, options or RestraintOptions())
    with atomic_path(path) as temporary, temporary.open("x", encoding="utf-8", newline="\n") as handle:
        handle.write(text)


RESTRAINTS: dict[str, Callable[[MapValues, RestraintOptions], str]] = {
    ".boltz.yaml": _boltz,
    ".chai.fasta": _chai_fasta,
    ".chai.restraints": _chai_restraints,
    ".protenix.json": _protenix,
    ".unambig.tbl": _unambiguous,
    ".ambig.tbl": _ambiguous,
    ".cst": _rosetta,
    ".pairs.json": _pair_list,
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
