"""The pairs of a map: ranked, as a table (CSV), and in the residue-residue format of CASP."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from contactlm.atomic import atomic_path, write_csv
from contactlm.metrics.scores import score_protein
from contactlm.shipped import __version__
from contactlm.structure.contacts import contact_map as contacts_of
from contactlm.structure.numbered import FileResidues
from contactlm.types import ContactDefinition, chain_letters, chain_numbers, chain_spans

LEAST_SEPARATION = 6  # of listed pairs within a chain: nearer ones touch whatever the fold
CSV_PER_RESIDUE = 5.0  # most pairs in a table, in units of L
LEAST_CSV_PROBABILITY = 0.01
COLUMNS = (
    *("rank", "i", "j", "letter_i", "letter_j", "chain_i", "chain_j", "number_i", "number_j"),
    *("separation", "probability", "called", "distance", "contact"),
)
# Keys of ``how``: in what the map lies outside what dev had, and what kind of number the threshold is, in words
OUTSIDE, THRESHOLD_KIND = "outside_dev", "threshold_kind"
DIGITS = {"probability": 5, "distance": 2}  # decimals in a table


@dataclass(eq=False, repr=False)
class MapValues:
    """What is listed, drawn and written of a :class:`contactlm.ContactMap`, which documents the attributes."""

    id: str
    sequence: str
    probability: NDArray[np.float32]
    labels: NDArray[np.int8] | None = None
    threshold: float = 0.5
    how: dict[str, Any] = field(default_factory=dict)
    residues: FileResidues | None = None
    distance: NDArray[np.float32] | None = None
    distance_bins: NDArray[np.float16] | None = None

    def __len__(self) -> int:
        return len(self.sequence)

    @property
    def chain_lengths(self) -> list[int]:
        """Residues of each chain: of one, unless the map is that of a complex."""
        return self.how.get("chain_lengths", [len(self)])

    @property
    def chain_names(self) -> list[str]:
        """A name for each chain: those of its structure where they are distinct, else A, B, …."""
        spans, chains = chain_spans(self.chain_lengths), [""] if self.residues is None else self.residues.chains
        named = [name for span in spans for name in {*chains[span]} - {""}]
        return named if len(named) == len({*named}) == len(spans) else chain_letters(len(spans))

    @property
    def contact(self) -> ContactDefinition:
        """When two residues touch, of which the probabilities are."""
        said = self.how.get("contact")
        return ContactDefinition() if said is None else ContactDefinition.from_text(said)

    @property
    def is_ranked(self) -> bool:
        """Whether its probabilities are ranks of scores that nothing was calibrated on."""
        return self.how.get("p") == RANKED

    def scores(self) -> dict[str, float]:
        """The map's scores against its labels, at its threshold; see :func:`contactlm.metrics.scores.score_protein`.

        Pairs between chains of a complex count as long-range ones.
        """
        if self.labels is None:
            raise ValueError(f"{self.id}: no labels to score the map against")
        maps = torch.from_numpy(self.probability), torch.from_numpy(self.labels)
        return score_protein(*maps, self.threshold, torch.from_numpy(chain_numbers(self.chain_lengths)))


class Contact(NamedTuple):
    """A pair of residues i < j, counted from 0, and the probability that they touch."""

    i: int
    j: int
    probability: float


def listed_pairs(
    contact_map: MapValues, min_separation: int, min_probability: float
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """Pairs that may be listed, by i, then j: residues i < j, from 0, and p, each (n,)."""
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
    contact_map: MapValues, most: int | None, min_separation: int, min_probability: float = 0.0
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """As :func:`listed_pairs`, the most probable first, and at most so many; None: all of them."""
    i, j, p = listed_pairs(contact_map, min_separation, min_probability)
    order = highest(p, len(p) if most is None else most)
    return i[order], j[order], p[order]


def top_contacts(
    contact_map: MapValues, most: int | None, min_separation: int, min_probability: float = 0.0
) -> list[Contact]:
    """The pairs that :func:`ranked_pairs` gives, one by one."""
    ranked = ranked_pairs(contact_map, most, min_separation, min_probability)
    return [Contact(*row) for row in zip(*(values.tolist() for values in ranked), strict=True)]


def truth_of(contact_map: MapValues) -> NDArray[np.int8] | None:
    """The labels; where there are none, the contacts in the map's structure; else None."""
    if contact_map.labels is None and contact_map.residues is not None:
        return contacts_of(contact_map.residues.cb, contact_map.contact.below)
    return contact_map.labels


def pair_columns(
    contact_map: MapValues, i: NDArray[np.int64], j: NDArray[np.int64], p: NDArray[np.float32]
) -> dict[str, NDArray[Any]]:
    """The columns of a table of n pairs, as :data:`COLUMNS` names them; what is not known is NaN, or an empty text."""
    truth, residues = truth_of(contact_map), contact_map.residues
    chain, letters = chain_numbers(contact_map.chain_lengths), np.array(list(contact_map.sequence))
    chains = numbers = np.array([""] * len(letters))
    if residues is not None:
        chains, numbers = np.array(residues.chains), np.array(residues.numbers)
    elif len(contact_map.chain_lengths) > 1:
        chains = np.array(contact_map.chain_names)[chain]
        numbers = np.concatenate([np.arange(1, length + 1) for length in contact_map.chain_lengths]).astype(str)
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


def write_pairs(contact_map: MapValues, path: str | Path) -> None:
    """Write the pairs as a table (CSV), the most probable first.

    The 5 L most probable of the pairs with p of at least 0.01 that are at least 6 residues apart or of different
    chains. ``i`` and ``j`` count residues from 1 through all chains; chain, number (with insertion code) and distance
    in Å are those of the structure (of a complex without one chains are A, B, …, each counted from 1); ``contact`` is
    1 or 0 where the truth is known, ``called`` 1 above the threshold.
    """
    most = int(np.ceil(CSV_PER_RESIDUE * len(contact_map)))
    columns = pair_columns(contact_map, *ranked_pairs(contact_map, most, LEAST_SEPARATION, LEAST_CSV_PROBABILITY))
    cells = [[_cell(value, DIGITS.get(name, 0)) for value in columns[name].tolist()] for name in COLUMNS]
    rows = [dict(zip(COLUMNS, row, strict=True)) for row in zip(*cells, strict=True)]
    write_csv(Path(path).expanduser(), rows, COLUMNS)


def _cell(value: Any, digits: int) -> Any:
    if not isinstance(value, float):
        return int(value) if isinstance(value, bool) else value
    return "" if np.isnan(value) else f"{value:.{digits}f}"


RANKED = "rank of a pair's score among all pairs of the map, between 0 and 1: no probability"
RR_LINE = 50  # letters of the sequence in a line, at most
RR_KEYWORDS = frozenset({"PFRMAT", "TARGET", "AUTHOR", "REMARK", "METHOD", "MODEL", "END"})
RR_MIN_SEPARATION = 6
RR_MIN_PROBABILITY = 0.01
RR_PAIRS_PER_RESIDUE = 20.0  # CASP scores at most 5 L; all pairs of 4,000 residues may take 171 MB


def write_rr(
    contact_map: MapValues,
    path: str | Path,
    min_separation: int = RR_MIN_SEPARATION,
    min_probability: float = RR_MIN_PROBABILITY,
    pairs_per_residue: float | None = RR_PAIRS_PER_RESIDUE,
) -> None:
    """Write the residue-residue format of CASP (predictioncenter.org, format RR), most probable pairs first.

    One line ``i j 0 8 p`` per pair, i < j counted from 1, p with five decimals (the upper bound of another contact
    definition in the place of 8); pairs of equal p by i, then j. Where distances were predicted, the expected one in Å
    follows as a sixth column, and a REMARK says so. By default pairs less than 6 residues apart (local, which CASP
    leaves out) and those less probable than 0.01 are not listed, and of the others the 20 L most probable; REMARKs say
    so. In a complex, residues are counted through all chains, and pairs between chains are listed whatever |i - j| is.
    The AUTHOR record, in CASP a registration code, holds the package's name.

    Args:
        contact_map: The map; whitespace in its id becomes ``_``.
        path: The file.
        min_separation: Least |i - j| listed within a chain, at least 1.
        min_probability: Least p listed.
        pairs_per_residue: Most pairs listed, in units of L; None: all.
    """
    if min_separation < 1:
        raise ValueError(f"min_separation is {min_separation}: a residue has no contact with itself, use 1 or more")
    if pairs_per_residue is not None and not 0 < pairs_per_residue < math.inf:
        raise ValueError(f"pairs_per_residue is {pairs_per_residue}: give a positive number, or None for all pairs")
    i, j, p = listed_pairs(contact_map, min_separation, min_probability)
    remarks = [f"p is the {RANKED}"] if contact_map.is_ranked else []
    remarks += ["last column: expected distance of the C-betas in A"] if contact_map.distance is not None else []
    remarks += [f"pairs at least {min_separation} residues apart with p >= {min_probability:g}"]
    most = len(p) if pairs_per_residue is None else math.ceil(pairs_per_residue * len(contact_map))
    order = highest(p, most)
    if pairs_per_residue is None:
        remarks.append(f"all {len(p)} such pairs")
    else:
        limit = f"at most {pairs_per_residue:g} L = {most}"
        remarks.append(f"the {len(order)} most probable of {len(p)} such pairs: {limit}")
    with (
        atomic_path(Path(path).expanduser()) as temporary,
        temporary.open("x", encoding="utf-8", newline="\n") as handle,
    ):
        handle.writelines(f"{line}\n" for line in _rr_header(contact_map, remarks))
        ends = [""] * len(order)
        if contact_map.distance is not None:
            ends = [f" {d:.2f}" for d in contact_map.distance[i[order], j[order]]]
        below = f"{contact_map.contact.below:g}"
        for a, b, value, end in zip(i[order] + 1, j[order] + 1, p[order], ends, strict=True):
            handle.write(f"{a} {b} 0 {below} {value:.5f}{end}\n")
        handle.write("END\n")


def _rr_header(contact_map: MapValues, remarks: Iterable[str]) -> Iterator[str]:
    yield "PFRMAT RR"
    yield f"TARGET {'_'.join(contact_map.id.split()) or 'unnamed'}"
    yield "AUTHOR contactlm"
    yield from (f"REMARK {remark}" for remark in remarks)
    yield f"METHOD contactlm {__version__}"
    for key, value in contact_map.how.items():
        yield f"METHOD {key}: {json.dumps(value)}"
    yield "MODEL 1"
    sequence = contact_map.sequence
    for width in range(RR_LINE, 0, -1):  # until no line reads like a keyword (Glu-Asn-Asp is a fine last line, but END)
        lines = [sequence[start : start + width] for start in range(0, len(sequence), width)]
        if RR_KEYWORDS.isdisjoint(lines):
            break
    yield from lines
