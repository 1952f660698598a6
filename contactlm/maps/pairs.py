"""The pairs of a map: ranked, and as a table."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from contactlm.atomic import write_csv
from contactlm.structure.assembly import chain_numbers
from contactlm.structure.contacts import contact_map as contacts_of

if TYPE_CHECKING:
    from contactlm.maps.contact_map import ContactMap

LEAST_SEPARATION = 6  # of listed pairs within a chain: nearer ones touch whatever the fold
CSV_PER_RESIDUE = 5.0  # most pairs in a table, in units of L
LEAST_CSV_PROBABILITY = 0.01
COLUMNS = (
    *("rank", "i", "j", "letter_i", "letter_j", "chain_i", "chain_j", "number_i", "number_j"),
    *("separation", "probability", "called", "distance", "contact"),
)


class Contact(NamedTuple):
    """A pair of residues i < j, counted from 0, and the probability that they touch."""

    i: int
    j: int
    probability: float


def listed_pairs(
    contact_map: ContactMap, min_separation: int, min_probability: float
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """Pairs that may be listed, by i, then j.

    Args:
        contact_map: The map.
        min_separation: Least |i - j| within a chain; pairs of different chains are listed whatever it is.
        min_probability: Least p.

    Returns:
        Residues i < j, int64 (n,), from 0, and p, float32 (n,).
    """
    i, j = np.triu_indices(len(contact_map), k=1)
    p, chain = contact_map.probability[i, j], chain_numbers(contact_map.chain_lengths)
    listed = (p >= np.float32(min_probability)) & ((j - i >= min_separation) | (chain[i] != chain[j]))
    return i[listed], j[listed], p[listed]


def highest(p: NDArray[np.float32], most: int) -> NDArray[np.int64]:
    """Indices of the ``most`` highest values, the highest first, of equals the first first."""
    indices = np.arange(len(p))
    if most < len(p):  # a map of 4,000 residues has eight million pairs: sorting them all takes seconds
        indices = np.flatnonzero(p >= np.partition(p, -most)[-most]) if most else indices[:0]
    return indices[np.argsort(-p[indices], kind="stable")][:most]


def top_contacts(
    contact_map: ContactMap, most: int | None, min_separation: int, min_probability: float = 0.0
) -> list[Contact]:
    """The most probable pairs, the most probable first; None: all of them."""
    i, j, p = listed_pairs(contact_map, min_separation, min_probability)
    order = highest(p, len(p) if most is None else most)
    return [Contact(*row) for row in zip(i[order].tolist(), j[order].tolist(), p[order].tolist(), strict=True)]


def truth_of(contact_map: ContactMap) -> NDArray[np.int8] | None:
    """The labels; where there are none, the contacts in the map's structure; else None."""
    if contact_map.labels is None and contact_map.residues is not None:
        return contacts_of(contact_map.residues.cb)
    return contact_map.labels


def pair_rows(contact_map: ContactMap, contacts: list[Contact]) -> Iterator[dict[str, Any]]:
    """The rows of a table, as :data:`COLUMNS` names them; residues are counted from 1, and unknown cells empty."""
    truth, residues = truth_of(contact_map), contact_map.residues
    chain, sequence = chain_numbers(contact_map.chain_lengths), contact_map.sequence
    blank = [""] * len(sequence)
    chains, numbers = (blank, blank) if residues is None else (residues.chains, residues.numbers)
    for rank, (i, j, p) in enumerate(contacts, start=1):
        distance = np.nan if residues is None else float(np.linalg.norm(np.float64(residues.cb[i]) - residues.cb[j]))
        label = -1 if truth is None else int(truth[i, j])
        yield {
            **{"rank": rank, "i": i + 1, "j": j + 1, "letter_i": sequence[i], "letter_j": sequence[j]},
            **{"chain_i": chains[i], "chain_j": chains[j], "number_i": numbers[i], "number_j": numbers[j]},
            "separation": j - i if chain[i] == chain[j] else "",
            **{"probability": f"{p:.5f}", "called": int(p > contact_map.threshold)},
            "distance": "" if np.isnan(distance) else f"{distance:.2f}",
            "contact": "" if label < 0 else label,
        }


def write_pairs(contact_map: ContactMap, path: str | Path) -> None:
    """Write the pairs as a table (CSV), the most probable first.

    The 5 L most probable of the pairs with p of at least 0.01 that are at least 6 residues apart or of different
    chains. ``i`` and ``j`` count residues from 1 through all chains; chain, number (with insertion code) and distance
    in Å are those of the structure; ``contact`` is 1 or 0 where the truth is known, ``called`` 1 above the threshold.
    """
    most = int(np.ceil(CSV_PER_RESIDUE * len(contact_map)))
    contacts = top_contacts(contact_map, most, LEAST_SEPARATION, LEAST_CSV_PROBABILITY)
    write_csv(Path(path).expanduser(), list(pair_rows(contact_map, contacts)), COLUMNS)
