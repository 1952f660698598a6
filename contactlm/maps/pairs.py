"""The pairs of a map: ranked, and as a table."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from contactlm.atomic import write_csv
from contactlm.structure.contacts import contact_map as contacts_of
from contactlm.types import chain_numbers

if TYPE_CHECKING:
    from contactlm.maps.contact_map import ContactMap

LEAST_SEPARATION = 6  # of listed pairs within a chain: nearer ones touch whatever the fold
CSV_PER_RESIDUE = 5.0  # most pairs in a table, in units of L
LEAST_CSV_PROBABILITY = 0.01
COLUMNS = (
    *("rank", "i", "j", "letter_i", "letter_j", "chain_i", "chain_j", "number_i", "number_j"),
    *("separation", "probability", "called", "distance", "contact"),
)


DIGITS = {"probability": 5, "distance": 2}  # decimals in a table


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


def ranked_pairs(
    contact_map: ContactMap, most: int | None, min_separation: int, min_probability: float = 0.0
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """As :func:`listed_pairs`, the most probable first, and at most so many; None: all of them."""
    i, j, p = listed_pairs(contact_map, min_separation, min_probability)
    order = highest(p, len(p) if most is None else most)
    return i[order], j[order], p[order]


def top_contacts(
    contact_map: ContactMap, most: int | None, min_separation: int, min_probability: float = 0.0
) -> list[Contact]:
    """The pairs that :func:`ranked_pairs` gives, one by one."""
    ranked = ranked_pairs(contact_map, most, min_separation, min_probability)
    return [Contact(*row) for row in zip(*(values.tolist() for values in ranked), strict=True)]


def truth_of(contact_map: ContactMap) -> NDArray[np.int8] | None:
    """The labels; where there are none, the contacts in the map's structure; else None."""
    if contact_map.labels is None and contact_map.residues is not None:
        return contacts_of(contact_map.residues.cb)
    return contact_map.labels


def pair_columns(
    contact_map: ContactMap, i: NDArray[np.int64], j: NDArray[np.int64], p: NDArray[np.float32]
) -> dict[str, NDArray[Any]]:
    """The columns of a table, as :data:`COLUMNS` names them, of n pairs, the most probable first.

    Residues are counted from 1; what is not known is NaN, or an empty text.
    """
    truth, residues = truth_of(contact_map), contact_map.residues
    chain, letters = chain_numbers(contact_map.chain_lengths), np.array(list(contact_map.sequence))
    blank = [""] * len(letters)
    chains = np.array(blank if residues is None else residues.chains)
    numbers = np.array(blank if residues is None else residues.numbers)
    unknown = np.full(len(p), np.nan)
    labels = unknown if truth is None else truth[i, j].astype(np.float64)
    cb = None if residues is None else residues.cb.astype(np.float64)
    return {
        **{"rank": np.arange(1, len(p) + 1), "i": i + 1, "j": j + 1, "letter_i": letters[i], "letter_j": letters[j]},
        **{"chain_i": chains[i], "chain_j": chains[j], "number_i": numbers[i], "number_j": numbers[j]},
        "separation": np.where(chain[i] == chain[j], j - i, np.nan),
        **{"probability": p, "called": p > np.float32(contact_map.threshold)},
        "distance": unknown if cb is None else np.linalg.norm(cb[i] - cb[j], axis=-1),
        "contact": np.where(labels < 0, np.nan, labels),
    }


def write_pairs(contact_map: ContactMap, path: str | Path) -> None:
    """Write the pairs as a table (CSV), the most probable first.

    The 5 L most probable of the pairs with p of at least 0.01 that are at least 6 residues apart or of different
    chains. ``i`` and ``j`` count residues from 1 through all chains; chain, number (with insertion code) and distance
    in Å are those of the structure; ``contact`` is 1 or 0 where the truth is known, ``called`` 1 above the threshold.
    """
    most = int(np.ceil(CSV_PER_RESIDUE * len(contact_map)))
    columns = pair_columns(contact_map, *ranked_pairs(contact_map, most, LEAST_SEPARATION, LEAST_CSV_PROBABILITY))
    cells = [[_cell(value, DIGITS.get(name, 0)) for value in columns[name].tolist()] for name in COLUMNS]
    write_csv(
        Path(path).expanduser(), [dict(zip(COLUMNS, row, strict=True)) for row in zip(*cells, strict=True)], COLUMNS
    )


def _cell(value: Any, digits: int) -> Any:
    if not isinstance(value, float):
        return int(value) if isinstance(value, bool) else value
    return "" if np.isnan(value) else f"{value:.{digits}f}"
